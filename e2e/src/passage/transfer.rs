//! A TCP connection that carries bytes both ways, whose content and pauses are checked.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{BothWays, End, Moment};
use crate::error::{Doing, Error, Result};

/// So much is written ...
const BLOCK: usize = 4096;
/// ... so often: a video's rate, which saturates nothing.
const EVERY: Duration = Duration::from_millis(10);
/// A connection that is silent for so long has not survived.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes repeat after so many: none of them is where another could be.
const PATTERN: u64 = 251;

/// One that is under way, from its beginning to [`Transfer::end`].
#[derive(Debug)]
pub struct Transfer {
    stop: Arc<AtomicBool>,
    threads: Option<BothWays<Threads>>,
}

/// What came of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transferred {
    /// How many bytes, all of them right.
    pub bytes: u64,
    /// When something came.
    pub came: Vec<Moment>,
}

#[derive(Debug)]
struct Threads {
    writer: JoinHandle<std::io::Result<u64>>,
    reader: JoinHandle<std::io::Result<Transferred>>,
}

impl Transfer {
    /// Connects the near end to the far end and begins.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn begin(near: End<'_>, far: End<'_>) -> Result<Self> {
        let doing = || format!("connecting {} to {}", near.address, far.address);
        let listener = far.netns.within(|| TcpListener::bind((far.address, 0)))?.doing(doing)?;
        let to = listener.local_addr().doing(doing)?;
        let connect = || {
            let socket = TcpStream::connect_timeout(&to, PATIENCE)?;
            let accepted = listener.accept()?.0;
            std::io::Result::Ok((socket, accepted))
        };
        let (near, far) = near.netns.within(connect)?.doing(doing)?;
        for stream in [&near, &far] {
            stream.set_nodelay(true).doing(doing)?;
            stream.set_read_timeout(Some(PATIENCE)).doing(doing)?;
            stream.set_write_timeout(Some(PATIENCE)).doing(doing)?;
        }
        let (near, far) = (Arc::new(near), Arc::new(far));
        let stop = Arc::new(AtomicBool::new(false));
        let one_way = |from: &Arc<TcpStream>, to: &Arc<TcpStream>| {
            let (from, stop, to) = (Arc::clone(from), Arc::clone(&stop), Arc::clone(to));
            let writer = std::thread::Builder::new().name("transfer-writer".to_owned());
            let writer = writer.spawn(move || write(&from, &stop)).doing(doing)?;
            let reader = std::thread::Builder::new().name("transfer-reader".to_owned());
            let reader = reader.spawn(move || read(&to)).doing(doing)?;
            Ok::<_, Error>(Threads { writer, reader })
        };
        let threads = BothWays { up: one_way(&near, &far)?, down: one_way(&far, &near)? };
        Ok(Self { stop, threads: Some(threads) })
    }

    /// Stops writing and yields what came, which is all that was written.
    ///
    /// # Errors
    /// When the connection did not survive, or a byte is missing or wrong.
    pub async fn end(mut self) -> Result<BothWays<Transferred>> {
        self.stop.store(true, Ordering::SeqCst);
        let Some(threads) = self.threads.take() else { return Ok(BothWays::default()) };
        threads.join(Threads::came).await
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Threads {
    fn came(self) -> Result<Transferred> {
        let lost = |_| Error::Invalid("a transfer's thread panicked".to_owned());
        let written = self.writer.join().map_err(lost)?.doing(|| "writing a transfer".to_owned())?;
        let came = self.reader.join().map_err(lost)?.doing(|| "reading a transfer".to_owned())?;
        if came.bytes != written {
            return Err(Error::Invalid(format!("{} of {written} bytes of a transfer came", came.bytes)));
        }
        Ok(came)
    }
}

fn byte(place: u64) -> u8 {
    u8::try_from(place % PATTERN).unwrap_or_default()
}

/// The first place, of bytes from this one on, where another byte came than was written.
fn first_wrong(from: u64, came: &[u8]) -> Option<u64> {
    (from..).zip(came).find(|(place, read)| byte(*place) != **read).map(|(place, _)| place)
}

fn write(mut stream: &TcpStream, stop: &AtomicBool) -> std::io::Result<u64> {
    let mut written = 0;
    let mut due = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        let block: Vec<u8> = (written..).take(BLOCK).map(byte).collect();
        stream.write_all(&block)?;
        written += u64::try_from(BLOCK).unwrap_or_default();
        // After a pause it does not make up for it.
        due = (due + EVERY).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(written)
}

fn read(mut stream: &TcpStream) -> std::io::Result<Transferred> {
    let mut transferred = Transferred::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(transferred),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        transferred.came.push(Moment::now());
        let came = buffer.get(..length).unwrap_or_default();
        if let Some(place) = first_wrong(transferred.bytes, came) {
            return Err(std::io::Error::new(ErrorKind::InvalidData, format!("byte {place} is another")));
        }
        transferred.bytes += u64::try_from(length).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nat::OwnedNetns, netns::Netns, passage::longest_stall};

    #[test]
    fn a_byte_that_is_another_or_out_of_its_place_is_found() {
        let whole: Vec<u8> = (1000..1600).map(byte).collect();
        assert_eq!(first_wrong(1000, &whole), None);
        assert_eq!(first_wrong(1004, &whole), Some(1004));
        let mut bitten = whole;
        bitten[400] ^= 1;
        assert_eq!(first_wrong(1000, &bitten), Some(1400));
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_for_a_while_stalls_and_loses_nothing() {
        let netns = OwnedNetns(Netns::create("transfer").await.unwrap());
        let [near, far] = ["127.0.0.1", "127.0.0.2"]
            .map(|address| End { netns: &netns.0, address: address.parse().unwrap() });
        let transfer = Transfer::begin(near, far).unwrap();
        let begun = Moment::now();
        let rules = "table inet cut { chain in { type filter hook input priority filter; ip daddr 127.0.0.2 drop; }; }";
        netns.0.command("nft").arg(rules).run().await.unwrap();
        // The pause is what is tested.
        tokio::time::sleep(Duration::from_millis(500)).await;
        netns.0.command("nft").arg("delete table inet cut").run().await.unwrap();
        let healed = Moment::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ended = Moment::now();
        let came = transfer.end().await.unwrap();
        assert!(came.up.bytes > 100 * 4096 && came.down.bytes > 100 * 4096);
        let stall = longest_stall(&came.up.came, begun..ended);
        // After the cut TCP repeats itself some time later; after the second thereafter it is over.
        assert!(
            stall.lasted > Duration::from_millis(450) && stall.lasted < Duration::from_millis(1400),
            "{stall:?}"
        );
        let other = longest_stall(&came.down.came, begun..ended);
        assert!(other.lasted < stall.lasted, "{other:?}, {stall:?}");
        assert!(stall.began < healed, "{stall:?}");
    }
}
