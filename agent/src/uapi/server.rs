//! The socket: who connects to it asks, one request after another, and is answered.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    sync::{mpsc, oneshot},
};
use zeroize::Zeroizing;

use super::{Change, Device, Refusal, Request, UapiError};
use crate::kernel::RouteSocket;

/// Where `wg` looks.
const DIRECTORY: &str = "/var/run/wireguard";
/// A request with 100 000 peers is about 40 MB.
const LONGEST_REQUEST: usize = 64 << 20;
/// Questions that wait for the owner.
const QUESTIONS: usize = 16;

/// What the owner of a tunnel is asked. Without an answer the asker is told that it failed.
#[derive(Debug)]
pub enum Question {
    /// How everything is.
    Get(oneshot::Sender<Device>),
    /// To change something.
    Set(Change, oneshot::Sender<Result<(), Refusal>>),
}

/// A socket that listens, for its user alone. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of the file: another one of the same name is not ours to remove.
    identity: (u64, u64),
}

impl Socket {
    /// Listens where `wg` looks for a device of this name. Replaces a file on which nobody listens any more.
    pub fn open(name: &str) -> Result<Self, UapiError> {
        Self::open_in(Path::new(DIRECTORY), name)
    }

    fn open_in(directory: &Path, name: &str) -> Result<Self, UapiError> {
        let path = directory.join(format!("{name}.sock"));
        let failed = |source| UapiError::Socket { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        close_to_others(directory)?;
        make_room(&path)?;
        // It appears under its name only once nobody else may open it. The name is none that `wg` lists.
        let hidden = directory.join(format!(".{name}.{}", std::process::id()));
        let listen = || {
            let _ = fs::remove_file(&hidden);
            let listener = UnixListener::bind(&hidden)?;
            fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let file = fs::symlink_metadata(&hidden)?;
            fs::rename(&hidden, &path)?;
            Ok((listener, (file.dev(), file.ino())))
        };
        let (listener, identity) = listen().map_err(|error| {
            let _ = fs::remove_file(&hidden);
            failed(error)
        })?;
        Ok(Self { path, listener, identity })
    }

    /// Answers, on the runtime of the caller, as long as somebody takes the questions.
    pub fn serve(&self) -> Result<mpsc::Receiver<Question>, UapiError> {
        let failed = |source| UapiError::Socket { path: self.path.clone(), source };
        let listener = self.listener.try_clone().map_err(failed)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
        let (questions, receiver) = mpsc::channel(QUESTIONS);
        tokio::spawn(accept(listener, questions));
        Ok(receiver)
    }

    /// Resolves once the file is gone, or another one has its name.
    pub fn removal(&self) -> Result<oneshot::Receiver<()>, UapiError> {
        let failed = |source: io::Error| UapiError::Socket { path: self.path.clone(), source };
        let notify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let flags = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        notify.add_watch(&self.path, flags).map_err(|errno| failed(errno.into()))?;
        let (removed, removal) = oneshot::channel();
        let (path, identity) = (self.path.clone(), self.identity);
        let watch = move || {
            while is_there(&path, identity) {
                if notify.read_events().is_err() {
                    return std::mem::forget(removed);
                }
            }
            let _ = removed.send(());
        };
        thread::Builder::new().name("uapi-watch".to_owned()).spawn(watch).map_err(failed)?;
        Ok(removal)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if is_there(&self.path, self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens a socket that is good to have, and no more. Where it cannot be had says so, and no question comes.
pub fn open_or_say(name: &str) -> (Option<Socket>, mpsc::Receiver<Question>) {
    let opened = Socket::open(name).and_then(|socket| {
        let questions = socket.serve()?;
        Ok((Some(socket), questions))
    });
    opened.unwrap_or_else(|error| {
        tracing::info!(%error, category = error.category(), "`wg show` will not be answered");
        (None, mpsc::channel(1).1)
    })
}

/// Answers where nothing may be changed.
pub fn answer_read_only(question: Question, device: impl FnOnce() -> Device) {
    // Who asked may be gone by now.
    match question {
        Question::Get(answer) => {
            let _ = answer.send(device());
        }
        Question::Set(_, answer) => {
            let _ = answer.send(Err(Refusal::ReadOnly));
        }
    }
}

fn is_there(path: &Path, identity: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == identity)
}

/// A volume of a pod may be open to all; who can write there can put a socket of its own in the place of ours.
fn close_to_others(directory: &Path) -> Result<(), UapiError> {
    let failed = |source| UapiError::Socket { path: directory.to_owned(), source };
    let mode = fs::metadata(directory).map_err(failed)?.permissions().mode();
    if mode & 0o022 == 0 {
        return Ok(());
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        .map_err(|_| UapiError::OpenToAll(directory.to_owned()))
}

/// Sees to it that the path is free, or nobody listens there.
fn make_room(path: &Path) -> Result<(), UapiError> {
    let failed = |source| UapiError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(failed(io::ErrorKind::AlreadyExists.into())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(UapiError::InUse(path.to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

async fn accept(listener: tokio::net::UnixListener, questions: mpsc::Sender<Question>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = questions.closed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, questions.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: those who wait are served later.
                tracing::debug!(%error, "a connection to the configuration socket failed");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn converse(stream: tokio::net::UnixStream, questions: mpsc::Sender<Question>) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let request = receive(&mut reader).await?;
        let answer = match &request {
            Ok(bytes) => ask(bytes, &questions).await,
            Err(refusal) => Err(*refusal),
        };
        drop(request);
        let (text, errno) = match &answer {
            Ok(text) => (text.as_str(), 0),
            Err(refusal) => ("", refusal.errno()),
        };
        writer.write_all(text.as_bytes()).await.ok()?;
        writer.write_all(format!("errno={errno}\n\n").as_bytes()).await.ok()?;
        if matches!(answer, Err(Refusal::Protocol)) {
            return None;
        }
    }
}

/// The lines of one request, without the empty one that ends it. `None` where there is no whole one any more.
async fn receive(
    reader: &mut (impl tokio::io::AsyncBufRead + Unpin),
) -> Option<Result<Zeroizing<Vec<u8>>, Refusal>> {
    let mut request = Zeroizing::new(Vec::new());
    loop {
        let left = LONGEST_REQUEST.checked_sub(request.len())?;
        let limit = u64::try_from(left).unwrap_or(u64::MAX);
        let length = (&mut *reader).take(limit).read_until(b'\n', &mut request).await.ok()?;
        if left == 0 || length == 0 || request.last() != Some(&b'\n') {
            return (length == left).then_some(Err(Refusal::Protocol));
        }
        if length == 1 {
            request.pop();
            return Some(Ok(request));
        }
    }
}

async fn ask(request: &[u8], questions: &mpsc::Sender<Question>) -> Result<Zeroizing<String>, Refusal> {
    match Request::parse(request, &|name| RouteSocket::index_of(name).ok())? {
        Request::Get => {
            let (answer, device) = oneshot::channel();
            questions.send(Question::Get(answer)).await.map_err(|_| Refusal::Failed)?;
            Ok(device.await.map_err(|_| Refusal::Failed)?.to_text())
        }
        Request::Set(change) => {
            let (answer, result) = oneshot::channel();
            questions.send(Question::Set(change, answer)).await.map_err(|_| Refusal::Failed)?;
            result.await.map_err(|_| Refusal::Failed)??;
            Ok(Zeroizing::default())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Answers as a device with one port would, and refuses changes.
    fn serve(socket: &Socket) {
        let mut questions = socket.serve().unwrap();
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                answer_read_only(question, || Device { listen_port: 7, ..Device::default() });
            }
        });
    }

    async fn say(socket: &Socket, request: &[u8]) -> String {
        let mut stream = tokio::net::UnixStream::connect(&socket.path).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        answer
    }

    #[tokio::test]
    async fn requests_are_answered_in_their_order_on_one_connection() {
        let directory = tempfile::tempdir().unwrap();
        let socket = Socket::open_in(directory.path(), "wg0").unwrap();
        serve(&socket);
        let request = b"get=1\n\nset=1\nfwmark=1\n\nset=1\nfwmark=x\n\nget=1\n\nget=1\n";
        assert_eq!(
            say(&socket, request).await,
            "listen_port=7\nerrno=0\n\nerrno=-1\n\nerrno=-22\n\nlisten_port=7\nerrno=0\n\n",
            "what is not ended is not answered"
        );
        assert_eq!(say(&socket, b"hello\n\nget=1\n\n").await, "errno=-71\n\n", "another protocol ends it");
    }

    #[tokio::test]
    async fn it_is_for_its_user_alone_and_gone_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("deeper/wireguard");
        let socket = Socket::open_in(&inner, "wg0").unwrap();
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&socket.path), mode(&inner)), (0o600, 0o700));
        assert_eq!(Socket::open_in(&inner, "wg0").unwrap_err().category(), "UapiSocketInUse");
        drop(socket);
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
        // A volume of a pod is open to all at first.
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o777)).unwrap();
        let _socket = Socket::open_in(&inner, "wg0").unwrap();
        assert_eq!(mode(&inner), 0o700);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wg0.sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::open_in(directory.path(), "wg0").unwrap();
        serve(&socket);
        assert_eq!(say(&socket, b"get=1\n\n").await, "listen_port=7\nerrno=0\n\n");
        fs::write(directory.path().join("wg1.sock"), "precious").unwrap();
        assert_eq!(Socket::open_in(directory.path(), "wg1").unwrap_err().category(), "UapiSocketFailed");
    }

    #[tokio::test]
    async fn the_removal_of_the_file_is_told_and_a_successors_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let socket = Socket::open_in(directory.path(), "wg0").unwrap();
        let mut removal = socket.removal().unwrap();
        assert!(removal.try_recv().is_err());
        fs::remove_file(&socket.path).unwrap();
        tokio::time::timeout(Duration::from_secs(10), removal).await.unwrap().unwrap();
        let successor = Socket::open_in(directory.path(), "wg0").unwrap();
        drop(socket);
        assert!(successor.path.exists());
    }
}
