//! Models by their ids, from a hub on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::nv::{command, stderr};

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

#[test]
fn a_model_of_another_kind_is_refused_before_its_weights_are_fetched() {
    let config = r#"{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}"#;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let hub = thread::spawn(move || serve(&listener, config));

    let home = tempfile::tempdir().unwrap();
    let mut command = command(&["inspect", "owner/moe"]);
    command.env_remove("HF_HUB_OFFLINE").env_remove("TRANSFORMERS_OFFLINE");
    command.env("HF_ENDPOINT", format!("http://{address}")).env("NO_PROXY", "127.0.0.1");
    let output = command.env("HF_HUB_CACHE", home.path()).output().unwrap();
    let found = stderr(&output);
    assert!(found.contains("`model_type`: \"qwen3_moe\" is not supported"), "{found}");

    TcpStream::connect(address).unwrap().write_all(b"GET /end HTTP/1.1\r\n\r\n").unwrap();
    let paths = hub.join().unwrap();
    assert!(!paths.is_empty());
    assert!(paths.iter().all(|path| path.ends_with("/config.json")), "{paths:?}");
}
