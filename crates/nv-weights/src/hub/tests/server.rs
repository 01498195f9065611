//! A hub on loopback that behaves, but where a test wants otherwise.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{COMMIT, OLD_COMMIT, cache};
use crate::hub::Hub;
use crate::hub::transfer::hex;

/// A request as the server saw it; header names in lower case.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
}

impl Request {
    /// Where the wanted bytes begin.
    pub(super) fn offset(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    pub(super) fn is_get(&self, file: &str) -> bool {
        self.method == "GET" && self.path.ends_with(&format!("/{file}"))
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(super) cut: Option<usize>,
    /// Close the connection without an answer.
    pub(super) is_dropped: bool,
    /// Send no `Content-Length`.
    pub(super) unsized_body: bool,
    /// In one chunk.
    pub(super) is_chunked: bool,
    /// Wait here, twice, when half of the body is sent.
    pub(super) halfway: Option<Arc<Barrier>>,
}

impl Reply {
    pub(super) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(super) fn error(status: u16, code: &str) -> Self {
        Self::status(status).with("X-Error-Code", code)
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
        self
    }
}

/// The files of the model that the servers serve, by name.
pub(super) type Files = BTreeMap<&'static str, Vec<u8>>;

pub(super) fn single_file_model() -> Files {
    BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"tokens\": 1}".to_vec()),
        ("model.safetensors", safetensors("w", 1000)),
    ])
}

/// A model of these shards, each with a tensor of its own name.
pub(super) fn many_shards(names: &[&'static str]) -> Files {
    let entries: Vec<_> = names.iter().map(|name| format!(r#""{name}": "{name}""#)).collect();
    let index = format!(r#"{{"weight_map": {{{}}}}}"#, entries.join(", "));
    let shards = names.iter().map(|name| (*name, safetensors(name, 1000)));
    let config = [("config.json", b"{}".to_vec()), ("model.safetensors.index.json", index.into())];
    config.into_iter().chain(shards).collect()
}

pub(super) fn sharded_model() -> Files {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.as_bytes().to_vec()),
        ("model-1.safetensors", safetensors("a", 10)),
        ("model-2.safetensors", safetensors("b", 20)),
    ])
}

/// A file of one U8 tensor that takes the whole file to `len` bytes or a little more.
pub(super) fn safetensors(name: &str, len: usize) -> Vec<u8> {
    let header =
        format!(r#"{{"{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..len).map(|i| u8::try_from(i % 251).unwrap()));
    file
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What a hub that behaves says.
pub(super) fn behave(files: &Files, request: &Request) -> Reply {
    let Some((revision, file)) =
        request.path.strip_prefix("/owner/model/resolve/").and_then(|rest| rest.split_once('/'))
    else {
        return Reply::error(404, "RepoNotFound");
    };
    let commit = match revision {
        "main" | COMMIT => COMMIT,
        "v1" | OLD_COMMIT => OLD_COMMIT,
        _ => return Reply::error(404, "RevisionNotFound"),
    };
    let Some(content) = files.get(file) else {
        return Reply::error(404, "EntryNotFound").with("X-Repo-Commit", commit);
    };
    let reply = Reply::status(200).with("X-Repo-Commit", commit);
    let reply = if file.ends_with(".safetensors") {
        reply
            .with("ETag", "\"of-the-pointer\"")
            .with("X-Linked-Etag", format!("\"{}\"", sha256(content)))
    } else {
        reply.with("ETag", format!("W/\"git-{}\"", content.len()))
    };
    match request.offset() {
        Some(offset) if request.method == "GET" && offset < content.len() => {
            Reply { status: 206, body: content[offset..].to_vec(), ..reply }.with(
                "Content-Range",
                format!("bytes {offset}-{}/{}", content.len() - 1, content.len()),
            )
        }
        Some(_) => Reply::status(416),
        None => Reply { body: content.clone(), ..reply },
    }
}

/// A server on loopback. It ends when it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `files` as a hub does, but where `misbehave` changes the reply.
    pub(super) fn start(
        files: Files,
        misbehave: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_on(files, misbehave, |stream| Box::new(stream))
    }

    fn start_on(
        files: Files,
        misbehave: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
        connect: impl Fn(TcpStream) -> Box<dyn Connection> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let answer = {
            let seen = Arc::clone(&seen);
            move |request: Request| {
                seen.lock().unwrap().push(request.clone());
                let reply = behave(&files, &request);
                misbehave(&request, reply)
            }
        };
        let thread = thread::spawn({
            let stopped = Arc::clone(&stopped);
            move || {
                thread::scope(|scope| {
                    for stream in listener.incoming() {
                        if stopped.load(Ordering::SeqCst) {
                            break;
                        }
                        let (answer, connect) = (&answer, &connect);
                        scope.spawn(move || {
                            let stream = stream.unwrap();
                            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                            serve(&mut connect(stream), answer);
                        });
                    }
                });
            }
        });
        Self { address, seen, stopped, thread: Some(thread) }
    }

    /// As a hub whose authority is nobody's but `tls`'s.
    pub(super) fn start_with_tls(files: Files, tls: Arc<rustls::ServerConfig>) -> Self {
        Self::start_on(
            files,
            |_, reply| reply,
            move |stream| {
                let connection = rustls::ServerConnection::new(Arc::clone(&tls)).unwrap();
                Box::new(rustls::StreamOwned::new(connection, stream))
            },
        )
    }

    pub(super) fn well_behaved(files: Files) -> Self {
        Self::start(files, |_, reply| reply)
    }

    /// A client of this server with an empty cache in `dir`.
    pub(super) fn hub(&self, dir: &TempDir) -> Hub {
        Hub {
            etag_timeout: Duration::from_secs(5),
            download_timeout: Duration::from_secs(5),
            pause: Duration::ZERO,
            ..Hub::new(cache(dir)).with_endpoint(format!("http://{}/", self.address))
        }
    }

    /// The requests since the last call.
    pub(super) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

trait Connection: Read + Write {}

impl<T: Read + Write> Connection for T {}

/// Answers one request and closes the connection. A client that goes away early is no error.
fn serve(stream: &mut dyn Connection, answer: impl Fn(Request) -> Reply) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut start = lines.next().unwrap().split(' ');
    let request = Request {
        method: start.next().unwrap().into(),
        path: start.next().unwrap().into(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
    };
    let is_head = request.method == "HEAD";
    let reply = answer(request);
    if reply.is_dropped {
        return;
    }
    let mut headers = reply.headers;
    headers.push(("Connection", "close".into()));
    if reply.is_chunked {
        headers.push(("Transfer-Encoding", "chunked".into()));
    } else if !reply.unsized_body {
        headers.push(("Content-Length", reply.body.len().to_string()));
    }
    let lines: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {} Status\r\n{}\r\n", reply.status, lines.concat()).into_bytes();
    let body = &reply.body[..reply.cut.unwrap_or(usize::MAX).min(reply.body.len())];
    let (half, rest) = body.split_at(body.len() / 2);
    let send = || -> io::Result<()> {
        stream.write_all(&head)?;
        if is_head {
            return stream.flush();
        }
        if reply.is_chunked {
            stream.write_all(format!("{:x}\r\n", reply.body.len()).as_bytes())?;
        }
        stream.write_all(half)?;
        stream.flush()?;
        if let Some(barrier) = reply.halfway {
            barrier.wait();
            barrier.wait();
        }
        stream.write_all(rest)?;
        if reply.is_chunked && reply.cut.is_none() {
            stream.write_all(b"\r\n0\r\n\r\n")?;
        }
        stream.flush()
    };
    let _ = send();
}
