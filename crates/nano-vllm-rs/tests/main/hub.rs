//! Models by their ids, from a hub on loopback.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread;

use tempfile::TempDir;

use crate::nv::stderr;

const COMMIT: &str = "1111111111111111111111111111111111111111";

/// Reads a request; returns its method and its path.
fn read_request(stream: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut words = head.split(' ').map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

/// A hub whose models have this config.json and no other file; returns all paths that it was asked for until `/end`.
fn serve(listener: &TcpListener, config: &str) -> Vec<String> {
    let mut paths = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        let (method, path) = read_request(&mut stream);
        if path == "/end" {
            return paths;
        }
        let (status, body) = if path.ends_with("/config.json") {
            ("200 OK\r\nETag: \"config\"", config)
        } else {
            ("404 Not Found\r\nX-Error-Code: EntryNotFound", "")
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let body = if method == "GET" { body } else { "" };
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
        paths.push(path);
    }
}

/// Runs `nv inspect owner/model` after the commands `limits` of a shell, with a hub that serves `config`.
fn inspect(config: &'static str, limits: &str) -> (Output, Vec<String>, TempDir) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let hub = thread::spawn(move || serve(&listener, config));
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limits} exec \"$0\" inspect owner/model")]);
    command.arg(env!("CARGO_BIN_EXE_nv")).env_remove("NV_ISA").env_remove("RUST_LOG");
    command.env_remove("HF_HUB_OFFLINE").env_remove("TRANSFORMERS_OFFLINE");
    command.env("HF_ENDPOINT", format!("http://{address}")).env("NO_PROXY", "127.0.0.1");
    let output = command.env("HF_HUB_CACHE", home.path()).output().unwrap();
    TcpStream::connect(address).unwrap().write_all(b"GET /end HTTP/1.1\r\n\r\n").unwrap();
    (output, hub.join().unwrap(), home)
}

#[cfg(unix)]
#[test]
fn a_download_that_a_limit_cuts_is_told() {
    let config: &str = Box::leak(format!("{{{:9000}}}", "").into_boxed_str());
    let (output, _, home) = inspect(config, "ulimit -f 1;");
    let found = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{found}");
    assert!(found.contains("error: cannot write ") && found.contains("`ulimit -f`"), "{found}");
    let dir = home.path().join("models--owner--model");
    assert!(!dir.join("refs").exists() && !dir.join("snapshots").join(COMMIT).exists());
    assert_eq!(fs::read_dir(dir.join("blobs")).unwrap().count(), 0);
}

#[test]
fn a_model_of_another_kind_is_refused_before_its_weights_are_fetched() {
    let config = r#"{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}"#;
    let (output, paths, _home) = inspect(config, "");
    let found = stderr(&output);
    assert!(found.contains("`model_type`: \"qwen3_moe\" is not supported"), "{found}");
    assert!(!paths.is_empty());
    assert!(paths.iter().all(|path| path.ends_with("/config.json")), "{paths:?}");
}
