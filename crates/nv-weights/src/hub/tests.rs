//! Downloads from hubs on loopback that misbehave.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::transfer::hex;
use super::{Hub, MAX_ATTEMPTS, is_truthy};
#[cfg(target_os = "linux")]
use crate::child;
use crate::error::{Error, Result};
use crate::files::ModelFiles;

const MODEL: &str = "owner/model";
const COMMIT: &str = "1111111111111111111111111111111111111111";
const OLD_COMMIT: &str = "2222222222222222222222222222222222222222";

/// A request as the server saw it; header names in lower case.
#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    /// Where the wanted bytes begin.
    fn offset(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    fn is_get(&self, file: &str) -> bool {
        self.method == "GET" && self.path.ends_with(&format!("/{file}"))
    }
}

#[derive(Debug, Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    cut: Option<usize>,
    /// Send no `Content-Length`.
    unsized_body: bool,
}

impl Reply {
    fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::status(status).with("X-Error-Code", code)
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
        self
    }
}

/// The files of the model that the servers serve, by name.
type Files = BTreeMap<&'static str, Vec<u8>>;

fn single_file_model() -> Files {
    BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"tokens\": 1}".to_vec()),
        ("model.safetensors", safetensors("w", 1000)),
    ])
}

fn sharded_model() -> Files {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.as_bytes().to_vec()),
        ("model-1.safetensors", safetensors("a", 10)),
        ("model-2.safetensors", safetensors("b", 20)),
    ])
}

/// A file of one U8 tensor that takes the whole file to `len` bytes or a little more.
fn safetensors(name: &str, len: usize) -> Vec<u8> {
    let header =
        format!(r#"{{"{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..len).map(|i| u8::try_from(i % 251).unwrap()));
    file
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What a hub that behaves says.
fn behave(files: &Files, request: &Request) -> Reply {
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
        return Reply::error(404, "EntryNotFound");
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
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `files` as a hub does, but where `misbehave` changes the reply.
    fn start(
        files: Files,
        misbehave: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
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
                        let answer = &answer;
                        scope.spawn(move || serve(stream.unwrap(), answer));
                    }
                });
            }
        });
        Self { address, seen, stopped, thread: Some(thread) }
    }

    fn well_behaved(files: Files) -> Self {
        Self::start(files, |_, reply| reply)
    }

    /// A client of this server with an empty cache in `dir`.
    fn hub(&self, dir: &TempDir) -> Hub {
        Hub {
            timeout: Duration::from_secs(5),
            pause: Duration::ZERO,
            ..Hub::new(cache(dir)).with_endpoint(format!("http://{}/", self.address))
        }
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<Request> {
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

/// Answers one request and closes the connection. A client that goes away early is no error.
fn serve(mut stream: TcpStream, answer: impl Fn(Request) -> Reply) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
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
    let mut headers = reply.headers;
    headers.push(("Connection", "close".into()));
    if !reply.unsized_body {
        headers.push(("Content-Length", reply.body.len().to_string()));
    }
    let lines: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut bytes =
        format!("HTTP/1.1 {} Status\r\n{}\r\n", reply.status, lines.concat()).into_bytes();
    if !is_head {
        bytes.extend(reply.body.iter().take(reply.cut.unwrap_or(usize::MAX)));
    }
    let _ = stream.write_all(&bytes);
}

fn cache(dir: &TempDir) -> PathBuf {
    dir.path().join("cache")
}

fn repo_dir(dir: &TempDir) -> PathBuf {
    cache(dir).join("models--owner--model")
}

fn tempdir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Every path under `dir`, relative to it.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(dir).unwrap().to_path_buf());
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

fn has_unfinished(dir: &TempDir) -> bool {
    let is_unfinished = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "incomplete" || extension == "tmp")
    };
    tree(dir.path()).iter().any(is_unfinished)
}

/// Checks that every one of `files` is where `found` says, byte for byte.
fn assert_downloaded(found: &Result<ModelFiles>, files: &Files) {
    let found = found.as_ref().unwrap();
    let snapshot = found.config.parent().unwrap();
    for (name, content) in files {
        assert_eq!(&fs::read(snapshot.join(name)).unwrap(), content, "{name}");
    }
    let weights: Vec<_> = files.keys().filter(|name| name.ends_with(".safetensors")).collect();
    let found_weights: Vec<_> =
        found.weights.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(found_weights, weights.into_iter().copied().collect::<Vec<_>>());
    assert_eq!(found.tokenizer.is_some(), files.contains_key("tokenizer.json"));
}

#[test]
fn a_model_is_downloaded_once() {
    for files in [single_file_model(), sharded_model()] {
        let dir = tempdir();
        let server = Server::well_behaved(files.clone());
        let hub = server.hub(&dir);
        assert_downloaded(&hub.download_model(MODEL, "main"), &files);
        assert!(!has_unfinished(&dir));
        let gets = server.requests().iter().filter(|request| request.method == "GET").count();
        assert_eq!(gets, files.len());

        // Once more: one request, to ask which commit the branch is now.
        assert_downloaded(&hub.download_model(MODEL, "main"), &files);
        assert_eq!(server.requests().len(), 1);
        // By commit, or offline: none.
        assert_downloaded(&hub.download_model(MODEL, COMMIT), &files);
        let offline = hub.with_offline(true);
        assert_downloaded(&offline.download_model(MODEL, "main"), &files);
        assert_downloaded(&offline.download_model(MODEL, COMMIT), &files);
        assert_eq!(server.requests().len(), 0);
    }
}

#[cfg(unix)]
#[test]
fn the_cache_has_the_layout_of_other_tools() {
    let dir = tempdir();
    let files = BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", safetensors("w", 5)),
    ]);
    let server = Server::well_behaved(files.clone());
    server.hub(&dir).download_model(MODEL, "main").unwrap();
    let repo = repo_dir(&dir);
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let hash = sha256(&files["model.safetensors"]);
    for (name, blob) in [("config.json", "git-2"), ("model.safetensors", hash.as_str())] {
        let link = fs::read_link(repo.join("snapshots").join(COMMIT).join(name)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(blob));
        assert_eq!(fs::read(repo.join("blobs").join(blob)).unwrap(), files[name]);
    }
    assert!(repo.join(".no_exist").join(COMMIT).join("tokenizer.json").is_file());
}

#[test]
fn a_revision_is_honoured() {
    let dir = tempdir();
    let server = Server::start(single_file_model(), |request, reply| {
        let is_old = request.path.contains("/v1/") || request.path.contains(OLD_COMMIT);
        if is_old && request.path.ends_with("/config.json") {
            Reply { body: b"{\"old\":1}".to_vec(), ..reply }.with("ETag", "\"old\"")
        } else {
            reply
        }
    });
    let hub = server.hub(&dir);
    let config = |revision| fs::read(hub.download_model(MODEL, revision).unwrap().config).unwrap();
    assert_eq!(config("main"), b"{}");
    server.requests();
    assert_eq!(config("v1"), b"{\"old\":1}");
    // The weights are the same at both: linked, not fetched.
    assert!(!server.requests().iter().any(|request| request.is_get("model.safetensors")));
    let hub = hub.clone().with_offline(true);
    let config = |revision| fs::read(hub.download_model(MODEL, revision).unwrap().config).unwrap();
    assert_eq!(config("main"), b"{}");
    assert_eq!(config("v1"), b"{\"old\":1}");
    assert_eq!(config(OLD_COMMIT), b"{\"old\":1}");
    assert!(matches!(hub.download_model(MODEL, "v2"), Err(Error::NotCached { source: None, .. })));
}

#[test]
fn a_local_folder_stands_for_itself() {
    let dir = tempdir();
    for (name, content) in single_file_model() {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let server = Server::well_behaved(Files::new());
    let found = server.hub(&tempdir()).download_model(dir.path().to_str().unwrap(), "main");
    assert_downloaded(&found, &single_file_model());
    assert!(server.requests().is_empty());
    let missing = dir.path().join("missing");
    let error = server.hub(&dir).download_model(missing.to_str().unwrap(), "main").unwrap_err();
    assert!(matches!(error, Error::ModelId { .. }), "{error}");
}

#[test]
fn offline_and_not_cached() {
    let dir = tempdir();
    let server = Server::well_behaved(single_file_model());
    let hub = server.hub(&dir).with_offline(true);
    for revision in ["main", COMMIT] {
        let error = hub.download_model(MODEL, revision).unwrap_err();
        assert!(matches!(error, Error::NotCached { .. }), "{error}");
        assert!(error.to_string().contains("HF_HUB_OFFLINE"));
    }
    let snapshot = repo_dir(&dir).join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    match hub.download_model(MODEL, COMMIT) {
        Err(Error::NotCached { source: Some(source), .. }) => {
            assert!(matches!(*source, Error::NoWeights { .. }));
        }
        other => panic!("{other:?}"),
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_hub_that_is_away_is_replaced_by_the_cache() {
    let dir = tempdir();
    let server = Server::well_behaved(single_file_model());
    let hub = server.hub(&dir);
    hub.download_model(MODEL, "main").unwrap();
    drop(server);
    assert_downloaded(&hub.download_model(MODEL, "main"), &single_file_model());
    let error = hub.download_model("owner/other", "main").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");

    let failing = Server::start(Files::new(), |_, _| Reply::status(503));
    let hub = failing.hub(&dir);
    assert_downloaded(&hub.download_model(MODEL, "main"), &single_file_model());
    let error = hub.download_model("owner/other", "main").unwrap_err();
    assert!(matches!(error, Error::Status { status: 503, .. }), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let check = |token: Option<&str>, reply: Reply, advice: &str, expected: fn(&Error) -> bool| {
        let dir = tempdir();
        let server = Server::start(single_file_model(), move |_, _| reply.clone());
        let hub = server.hub(&dir).with_token(token.map(str::to_owned)).unwrap();
        let error = hub.download_model(MODEL, "main").unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert!(error.to_string().contains(advice), "{error}");
        for request in server.requests() {
            let shown = request.headers.get("authorization").map(String::as_str);
            assert_eq!(shown, token.map(|token| format!("Bearer {token}")).as_deref());
        }
        assert!(tree(dir.path()).is_empty());
    };
    let token = Some("secret");
    let no_such_model: fn(&Error) -> bool = |error| matches!(error, Error::NoSuchModel { .. });
    let gated: fn(&Error) -> bool = |error| matches!(error, Error::Gated { .. });
    check(None, Reply::status(404), "check the model id", |error| {
        matches!(error, Error::MissingRemoteFile { .. })
    });
    check(None, Reply::error(404, "RepoNotFound"), "check the spelling", no_such_model);
    check(None, Reply::error(401, "RepoNotFound"), "set HF_TOKEN", no_such_model);
    check(None, Reply::status(401), "set HF_TOKEN", no_such_model);
    check(token, Reply::status(401), "that HF_TOKEN is valid", no_such_model);
    check(None, Reply::error(404, "RevisionNotFound"), "`main`", |error| {
        matches!(error, Error::NoSuchRevision { .. })
    });
    check(None, Reply::error(401, "GatedRepo"), "set HF_TOKEN", gated);
    check(token, Reply::error(403, "GatedRepo"), "check that HF_TOKEN", gated);
    check(None, Reply::status(403), "accept its terms", gated);
    check(None, Reply::status(429), "try again later", |error| {
        matches!(error, Error::Status { status: 429, .. })
    });
    check(None, Reply::status(500), "try again later", |error| {
        matches!(error, Error::Status { status: 500, .. })
    });
}

#[test]
fn an_error_after_a_good_description() {
    let dir = tempdir();
    let server = Server::start(single_file_model(), |request, reply| {
        if request.is_get("model.safetensors") { Reply::status(500) } else { reply }
    });
    let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Status { status: 500, .. }), "{error}");
    let attempts =
        server.requests().iter().filter(|request| request.is_get("model.safetensors")).count();
    assert_eq!(attempts, MAX_ATTEMPTS as usize);
    assert!(!repo_dir(&dir).join("refs").exists());

    // One that passes is not even noticed.
    let count = Mutex::new(0);
    let server = Server::start(single_file_model(), move |request, reply| {
        let mut count = count.lock().unwrap();
        *count += usize::from(request.is_get("model.safetensors"));
        if request.is_get("model.safetensors") && *count < 3 { Reply::status(502) } else { reply }
    });
    assert_downloaded(&server.hub(&dir).download_model(MODEL, "main"), &single_file_model());
    assert!(!has_unfinished(&dir));
}

#[test]
fn a_download_that_broke_off_is_resumed() {
    let dir = tempdir();
    let size = single_file_model()["model.safetensors"].len();
    let server = Server::start(single_file_model(), |request, reply| {
        if request.is_get("model.safetensors") { Reply { cut: Some(150), ..reply } } else { reply }
    });
    let hub = server.hub(&dir);
    match hub.download_model(MODEL, "main") {
        Err(Error::Interrupted { file, expected, found, .. }) => {
            assert_eq!(file, "model.safetensors");
            assert_eq!((expected, found), (size as u64, 750));
        }
        other => panic!("{other:?}"),
    }
    let blob = repo_dir(&dir).join("blobs").join(sha256(&single_file_model()["model.safetensors"]));
    assert!(!blob.exists());
    server.requests();

    // As a new process does it after the old one was killed.
    assert_downloaded(&hub.download_model(MODEL, "main"), &single_file_model());
    let requests = server.requests();
    let offsets: Vec<_> = requests
        .iter()
        .filter(|request| request.is_get("model.safetensors"))
        .map(Request::offset)
        .collect();
    assert_eq!(offsets, [Some(750), Some(900), Some(1050)]);
    assert!(!requests.iter().any(|request| request.is_get("config.json")));
    assert!(!has_unfinished(&dir));
}

/// Leaves `leftover` behind as an unfinished download of the weights, and lets `server` finish it.
fn finish(leftover: &[u8], server: &Server) -> (Result<ModelFiles>, Vec<Option<usize>>) {
    let dir = tempdir();
    let hash = sha256(&single_file_model()["model.safetensors"]);
    let blobs = repo_dir(&dir).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{hash}.incomplete")), leftover).unwrap();
    let found = server.hub(&dir).download_model(MODEL, "main");
    if found.is_ok() {
        assert_downloaded(&found, &single_file_model());
        assert!(!has_unfinished(&dir));
    }
    let requests = server.requests();
    let gets = requests.iter().filter(|request| request.is_get("model.safetensors"));
    (found, gets.map(Request::offset).collect())
}

#[test]
fn leftovers_are_used_only_as_far_as_they_are_right() {
    let whole = single_file_model().remove("model.safetensors").unwrap();
    let server = Server::well_behaved(single_file_model());
    let check = |leftover: &[u8], offsets: &[Option<usize>]| {
        assert_eq!(finish(leftover, &server).1, offsets, "{} bytes", leftover.len());
    };
    check(&whole[..0], &[None]);
    check(&whole[..300], &[Some(300)]);
    check(&whole, &[]);
    let mut too_long = whole.clone();
    too_long.push(0);
    check(&too_long, &[None]);
    let zeros = vec![0; whole.len()];
    check(&zeros[..300], &[Some(300), None]);
    check(&zeros, &[None]);
}

#[test]
fn servers_that_do_not_resume() {
    let whole = single_file_model().remove("model.safetensors").unwrap();
    // The range is ignored.
    let server = Server::start(single_file_model(), |request, reply| {
        let mut request = request.clone();
        match request.headers.remove("range") {
            Some(_) => behave(&single_file_model(), &request),
            None => reply,
        }
    });
    assert_eq!(finish(&whole[..300], &server).1, [Some(300)]);
    // The range is refused.
    let server = Server::start(single_file_model(), |request, reply| {
        if request.offset().is_some() { Reply::status(416) } else { reply }
    });
    assert_eq!(finish(&whole[..300], &server).1, [Some(300), None]);
    // Another range is sent.
    let server = Server::start(single_file_model(), |request, reply| match request.offset() {
        Some(_) => reply.with("Content-Range", "bytes 5-1000/1001"),
        None => reply,
    });
    assert_eq!(finish(&whole[..300], &server).1, [Some(300), None]);
}

#[test]
fn damage_is_noticed() {
    let check = |file: &'static str, damage: fn(&mut Vec<u8>), expected: fn(&Error) -> bool| {
        let dir = tempdir();
        let server = Server::start(single_file_model(), move |request, mut reply| {
            if request.is_get(file) {
                damage(&mut reply.body);
                reply.unsized_body = true;
            }
            reply
        });
        let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
        assert!(expected(&error), "{error}");
        assert!(error.to_string().contains(file), "{error}");
        assert!(!repo_dir(&dir).join("snapshots").join(COMMIT).join(file).exists());
        assert!(!repo_dir(&dir).join("refs").exists());
    };
    check(
        "model.safetensors",
        |body| body[500] ^= 1,
        |error| matches!(error, Error::Corrupt { .. }),
    );
    check("model.safetensors", |body| body.push(0), |error| matches!(error, Error::TooLong { .. }));
    check("model.safetensors", Vec::clear, |error| matches!(error, Error::Interrupted { .. }));
    check("config.json", |body| body.push(0), |error| matches!(error, Error::TooLong { .. }));
    check("config.json", Vec::clear, |error| matches!(error, Error::Interrupted { .. }));
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let content = single_file_model().remove("model.safetensors").unwrap();
    let served = content.clone();
    let elsewhere = Server::start(Files::new(), move |request, _| Reply {
        body: served[request.offset().unwrap_or(0)..].to_vec(),
        ..Reply::status(200)
    });
    let address = elsewhere.address;
    let server = Server::start(single_file_model(), move |request, reply| {
        if request.path.ends_with("/config.json") && !request.path.starts_with("/moved") {
            // A path of the same hub: followed for the description too.
            return Reply::status(307).with("Location", format!("/moved{}", request.path));
        }
        if let Some(path) = request.path.strip_prefix("/moved") {
            let request = Request { path: path.into(), ..request.clone() };
            return behave(&single_file_model(), &request);
        }
        if request.path.ends_with("/model.safetensors") {
            let size = single_file_model()["model.safetensors"].len();
            return Reply { status: 302, body: b"elsewhere".to_vec(), ..reply }
                .with("Location", format!("http://{address}/storage/model.safetensors?signature=x"))
                .with("X-Linked-Size", size.to_string());
        }
        reply
    });
    let dir = tempdir();
    let hub = server.hub(&dir).with_token(Some("secret".into())).unwrap();
    assert_downloaded(&hub.download_model(MODEL, "main"), &single_file_model());
    assert!(
        server.requests().iter().all(|request| request.headers["authorization"] == "Bearer secret")
    );
    let foreign = elsewhere.requests();
    assert_eq!(foreign.len(), 1);
    assert!(!foreign[0].headers.contains_key("authorization"));
    assert!(!format!("{hub:?}").contains("secret"));
    assert!(matches!(hub.with_token(Some("se\ncret".into())), Err(Error::Token)));
}

#[test]
fn answers_that_no_hub_gives() {
    let check = |file: &'static str, change: fn(Reply) -> Reply, expected: fn(&Error) -> bool| {
        let dir = tempdir();
        let server = Server::start(single_file_model(), move |request, reply| {
            let is_described = request.method == "HEAD" && request.path.ends_with(file);
            if is_described { change(reply) } else { reply }
        });
        let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
        assert!(expected(&error), "{error:?}");
        assert_eq!(
            tree(dir.path()).iter().filter(|path| path.starts_with("cache")).count(),
            tree(dir.path()).len()
        );
        assert!(!tree(dir.path()).iter().any(|path| path.to_string_lossy().contains("evil")));
    };
    let bad: fn(&Error) -> bool = |error| matches!(error, Error::BadAnswer { .. });
    for file in ["config.json", "model.safetensors"] {
        check(file, |reply| reply.with("X-Linked-Etag", "\"../../../../evil\""), bad);
        check(file, |reply| reply.with("X-Linked-Etag", "/evil"), bad);
        check(file, |reply| reply.with("X-Linked-Etag", "..\\evil"), bad);
        check(file, |reply| reply.with("X-Linked-Etag", "e".repeat(300)), bad);
        check(file, |reply| reply.with("X-Linked-Etag", ""), bad);
        check(file, |reply| reply.with("X-Linked-Etag", "evil.incomplete"), bad);
        check(file, |reply| reply.with("X-Linked-Size", "-1"), bad);
        check(file, |reply| reply.with("X-Linked-Size", "99999999999999999999999"), bad);
        check(file, |reply| reply.with("X-Repo-Commit", "../../evil"), bad);
        check(file, |reply| reply.with("X-Repo-Commit", "/evil"), bad);
        check(file, |reply| reply.with("X-Repo-Commit", ""), bad);
        check(file, |_| Reply::status(200), bad);
        check(file, |_| Reply::status(302), bad);
        check(file, |_| Reply::status(302).with("Location", "evil"), bad);
        check(file, |_| Reply::status(302).with("Location", "file:///evil"), bad);
        check(
            file,
            |_| Reply::status(302).with("Location", format!("/{file}", file = "config.json")),
            |error| matches!(error, Error::NoSuchModel { .. } | Error::Unreachable { .. }),
        );
    }
    // Another commit than the one that was asked for.
    check("model.safetensors", |reply| reply.with("X-Repo-Commit", OLD_COMMIT), bad);
}

#[test]
fn shards_are_named_by_names() {
    for shard in [
        "../evil.safetensors",
        "/evil.safetensors",
        "a/evil.safetensors",
        "evil",
        ".evil.safetensors",
    ] {
        let mut files = sharded_model();
        let index = format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
        files.insert("model.safetensors.index.json", index.into_bytes());
        let dir = tempdir();
        let server = Server::well_behaved(files);
        let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
        assert!(matches!(&error, Error::ShardName { name, .. } if name == "a"), "{error:?}");
        assert!(!server.requests().iter().any(|request| request.path.contains("evil")));
    }
}

#[test]
fn a_shard_that_the_hub_lacks() {
    let mut files = sharded_model();
    files.remove("model-2.safetensors");
    let server = Server::well_behaved(files);
    let error = server.hub(&tempdir()).download_model(MODEL, "main").unwrap_err();
    assert!(
        matches!(&error, Error::MissingRemoteFile { url } if url.ends_with("model-2.safetensors")),
        "{error}"
    );
}

#[test]
fn two_downloads_at_once_make_one() {
    let dir = tempdir();
    let server = Server::start(single_file_model(), |request, reply| {
        if request.is_get("model.safetensors") {
            thread::sleep(Duration::from_millis(100));
        }
        reply
    });
    thread::scope(|scope| {
        let calls: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| server.hub(&dir).download_model(MODEL, "main")))
            .collect();
        for call in calls {
            assert_downloaded(&call.join().unwrap(), &single_file_model());
        }
    });
    for file in single_file_model().keys() {
        let gets =
            server.seen.lock().unwrap().iter().filter(|request| request.is_get(file)).count();
        assert_eq!(gets, 1, "{file}");
    }
    assert!(!has_unfinished(&dir));
}

#[test]
fn a_server_that_falls_silent() {
    let server = Server::start(single_file_model(), |_, reply| {
        thread::sleep(Duration::from_millis(500));
        reply
    });
    let dir = tempdir();
    let hub = Hub { timeout: Duration::from_millis(100), ..server.hub(&dir) };
    let error = hub.download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let dir = tempdir();
    let hash = sha256(&single_file_model()["model.safetensors"]);
    let blobs = repo_dir(&dir).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    std::os::unix::fs::symlink("/dev/full", blobs.join(format!("{hash}.incomplete"))).unwrap();
    let server = Server::well_behaved(single_file_model());
    let error = server.hub(&dir).download_model(MODEL, "main").unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
    assert!(error.to_string().contains("make some"), "{error}");
}

/// The disk is full in the middle of a file, and has room again later.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_loses_nothing() {
    if let Some(dir) = child::dir() {
        let address = fs::read_to_string(Path::new(&dir).join("address")).unwrap();
        let hub = Hub::new(Path::new(&dir).join("cache")).with_endpoint(address);
        let error = hub.download_model(MODEL, "main").unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
        assert!(error.to_string().contains(".incomplete"), "{error}");
        return;
    }
    let dir = tempdir();
    let server = Server::well_behaved(single_file_model());
    fs::write(dir.path().join("address"), format!("http://{}/", server.address)).unwrap();
    // 512 or 1,024 bytes, as shells have it. By default the system would end a process that goes beyond.
    let limits = "trap '' XFSZ; ulimit -f 1";
    child::passes("hub::tests::a_disk_that_fills_up_loses_nothing", limits, dir.path());
    let blob = repo_dir(&dir).join("blobs").join(sha256(&single_file_model()["model.safetensors"]));
    assert!(!blob.exists());
    server.requests();

    assert_downloaded(&server.hub(&dir).download_model(MODEL, "main"), &single_file_model());
    let requests = server.requests();
    let get = requests.iter().find(|request| request.is_get("model.safetensors")).unwrap();
    assert!(matches!(get.offset(), Some(512 | 1024)), "{get:?}");
    assert!(!has_unfinished(&dir));
}

#[test]
fn switches_are_read_as_other_tools_read_them() {
    for (value, expected) in
        [("1", true), ("True", true), ("YES", true), ("on", true), ("0", false), ("", false)]
    {
        assert_eq!(is_truthy(value), expected, "{value}");
    }
}
