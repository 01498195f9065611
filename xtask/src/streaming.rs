//! Streams of completions, as far as loads need them: HTTP by hand, so that clients cost little beside the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long the next part of an answer may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    /// The caller went away.
    Left,
    /// With 429.
    Refused,
}

/// Asks for completions as a stream, and calls `chunk` for each; it breaks to go away.
///
/// # Errors
/// If the answer is another than 200 or 429, has an error in it, or breaks off.
pub(crate) fn stream(
    address: &str,
    body: &Value,
    mut chunk: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Ended> {
    let body = body.to_string();
    let connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: load\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    (&connection).write_all((head + &body).as_bytes())?;
    let mut lines = BufReader::new(connection).lines();
    let status = lines.next().context("no answer")??;
    if status.contains(" 429 ") {
        return Ok(Ended::Refused);
    }
    ensure!(status.contains(" 200 "), "{status}");
    let mut num_chunks = 0;
    for line in lines {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return Ok(Ended::Done);
        }
        ensure!(!data.contains("\"error\""), "{data}");
        num_chunks += 1;
        if chunk(data).is_break() {
            return Ok(Ended::Left);
        }
    }
    bail!("the stream breaks off after {num_chunks} chunks")
}

/// A page as text, such as `/metrics`.
///
/// # Errors
/// If it can't be had.
pub(crate) fn get(address: &str, path: &str) -> Result<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n");
    connection.write_all(head.as_bytes())?;
    let mut page = String::new();
    connection.read_to_string(&mut page)?;
    Ok(page)
}
