//! Asks an agent for its profile.

use std::{
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    error::{Doing, Error, Result},
    netns::Netns,
};

/// Where an agent with the feature `profile` listens.
const PORT: u16 = 6061;

/// What it answers to GET.
///
/// # Errors
/// When it does not listen, refuses, or lets wait longer than `patience`.
pub(super) async fn get(netns: &Netns, target: &str, patience: Duration) -> Result<String> {
    let failed = || format!("asking {netns} for {target}");
    let stream = netns.within(|| TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)))?;
    let stream = stream.doing(|| format!("{} (is it built with the feature `profile`?)", failed()))?;
    stream.set_nonblocking(true).doing(failed)?;
    let mut stream = tokio::net::TcpStream::from_std(stream).doing(failed)?;
    let exchange = async {
        let question = format!("GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(question.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let answer = timeout(patience, exchange).await.map_err(std::io::Error::from).flatten().doing(failed)?;
    body(&answer).map(str::to_owned).map_err(|said| Error::Invalid(format!("{}: {said}", failed())))
}

/// What an answer holds, or else what it says is wrong.
fn body(answer: &str) -> std::result::Result<&str, &str> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let status = head.lines().next().and_then(|line| line.split(' ').nth(1));
    if status == Some("200") { Ok(body) } else { Err(body.trim_end()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_body_or_what_is_wrong() {
        assert_eq!(body("HTTP/1.0 200 OK\r\na: b\r\n\r\nc\r\n\r\nd"), Ok("c\r\n\r\nd"));
        assert_eq!(body("HTTP/1.0 409 Conflict\r\n\r\nbusy\n"), Err("busy"));
        assert_eq!(body("HTTP/1.0 200 OK\r\n"), Err("no answer"));
        assert_eq!(body(""), Err("no answer"));
    }
}
