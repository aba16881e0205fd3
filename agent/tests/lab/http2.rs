//! HTTP/2 as a stranger speaks it that means no good: frames by hand, no certificate.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;

/// A connection of its own to the session port.
pub(crate) struct Http2 {
    stream: StreamOwned<ClientConnection, TcpStream>,
    call: Vec<u8>,
    next: u32,
}

impl Http2 {
    /// For calls of a method, as in `/package.Service/Method`.
    pub(crate) fn over(tcp: TcpStream, ca_pem: &str, name: &'static str, method: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        tcp.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let name = ServerName::try_from(name).unwrap();
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp);
        while stream.conn.is_handshaking() {
            match stream.conn.complete_io(&mut stream.sock) {
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => panic!("{error}"),
                _ => {}
            }
        }
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
        Self { stream, call: headers(method), next: 1 }
    }

    /// Begins so many calls and takes each back at once. False: the other side has ended the connection.
    pub(crate) fn begin_and_reset(&mut self, calls: u32) -> bool {
        let mut bytes = Vec::new();
        for _ in 0..calls {
            bytes.extend(frame(HEADERS, END_HEADERS, self.next, &self.call));
            bytes.extend(frame(RST_STREAM, 0, self.next, &CANCEL.to_be_bytes()));
            self.next += 2;
        }
        if self.stream.write_all(&bytes).is_err() {
            return false;
        }
        match self.stream.read(&mut [0; 8192]) {
            Ok(read) => read > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A gRPC call's headers, in HPACK without its tables' memory (RFC 7541, appendix A).
fn headers(method: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [
        // `:method: POST` and `:scheme: https`
        vec![0x83, 0x87],
        // `:path`, `:authority` and `content-type`, by their numbers
        [&[0x04], text(method).as_slice()].concat(),
        [&[0x01], text("x").as_slice()].concat(),
        [&[0x0f, 0x10], text("application/grpc").as_slice()].concat(),
        [&[0x00], text("te").as_slice(), &text("trailers")].concat(),
    ]
    .concat()
}
