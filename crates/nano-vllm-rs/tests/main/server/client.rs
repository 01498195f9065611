//! HTTP as far as the tests need it, byte by byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The field of the head, which is in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The chunks of a stream that ends well.
    #[track_caller]
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{self:?}");
        let data: Vec<_> =
            self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let (last, chunks) = data.split_last().unwrap();
        assert_eq!(*last, "[DONE]");
        chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
    }
}

/// Sends a request; the connection is open when this returns.
pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> TcpStream {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    send_bytes(address, &[head.as_bytes(), body].concat())
}

/// Sends whatever it may be.
pub(crate) fn send_bytes(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    connection.write_all(bytes).unwrap();
    connection
}

/// Reads an answer to its end. Of a chunked one, the sizes stay in the body.
pub(crate) fn receive(mut connection: TcpStream) -> Answer {
    let mut text = Vec::new();
    connection.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    receive(send(address, "GET", path, "", b""))
}

pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    receive(start(address, path, body))
}

/// Sends a request of JSON, whose answer is still to be read.
pub(crate) fn start(address: SocketAddr, path: &str, body: &Value) -> TcpStream {
    send(address, "POST", path, "content-type: application/json\r\n", body.to_string().as_bytes())
}

/// A sample of `/metrics`; `name` has its labels after those that all have.
#[track_caller]
pub(crate) fn metric(address: SocketAddr, name: &str) -> f64 {
    let (name, label) = name.split_once('{').unwrap_or((name, ""));
    let page = get(address, "/metrics").body;
    let line = page.lines().find(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') && rest.contains(label))
    });
    let line = line.unwrap_or_else(|| panic!("{name} is not in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until a sample has a value.
#[track_caller]
pub(crate) fn wait_for_metric(address: SocketAddr, name: &str, expected: f64) {
    let start = Instant::now();
    loop {
        let found = metric(address, name);
        if (found - expected).abs() < f64::EPSILON {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{name} stays {found}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
