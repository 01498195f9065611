//! `nv serve`, run as a user runs it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::nv::{command, nv, stderr};
use crate::server::client::{self, get, post};

pub(crate) struct Serving {
    child: Child,
    pub(crate) address: SocketAddr,
    _stdout: BufReader<ChildStdout>,
}

impl Serving {
    fn start(options: &[&str]) -> Self {
        Self::start_with(options, |_| {})
    }

    /// A server whose environment `prepare` may change.
    pub(crate) fn start_with(options: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let usual = ["serve", "--port", "0", "--threads", "1", "--kv-cache-memory", "64MiB"];
        let mut command = command(&[&usual, options].concat());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on http://");
        let address = address.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        Self { child, address, _stdout: stdout }
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Its exit code, once it has ended, and what it said meanwhile.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            assert!(start.elapsed() < Duration::from_secs(30), "it does not end");
            thread::sleep(Duration::from_millis(5));
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (code, log)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended, as most tests want it to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request that takes a while.
fn long(max_tokens: usize) -> serde_json::Value {
    json!({"prompt": "In the beginning", "max_tokens": max_tokens, "ignore_eos": true, "stream": true, "seed": 1})
}

#[test]
fn the_demo_answers_and_its_log_keeps_the_words_to_itself() {
    let serving = Serving::start(&["--log-format", "json"]);
    let messages = json!([{"role": "user", "content": "And God said unto Noah"}]);
    let request = json!({"model": "demo", "messages": messages, "max_tokens": 8, "temperature": 0});
    let answer = post(serving.address, "/v1/chat/completions", &request).json();
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    // The demo has no chat template: it goes on with the words.
    let request = json!({"prompt": "And God said unto Noah", "max_tokens": 8, "temperature": 0});
    let continued = post(serving.address, "/v1/completions", &request).json();
    assert_eq!(continued["choices"][0]["text"], said);
    assert_eq!(get(serving.address, "/v1/models").json()["data"][0]["id"], "demo");

    serving.signal("-INT");
    let (code, log) = serving.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("Noah") && !log.contains(said.trim()), "{log}");
    let lines = log.lines().filter(|line| line.contains("\"message\":\"answered\""));
    let lines: Vec<serde_json::Value> =
        lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{log}");
    assert_eq!(lines[0]["status"], 200);
    assert_eq!(lines[0]["path"], "/v1/chat/completions");
    assert!(lines[0]["span"]["request_id"].as_str().unwrap().starts_with("req-"));
}

#[test]
fn what_clients_make_up_is_logged_neither_by_name_nor_at_length() {
    let serving = Serving::start(&[]);
    let send = |method: &str, path: &str, headers: &str, body: &serde_json::Value| {
        let headers = format!("content-type: application/json\r\n{headers}");
        let body = body.to_string();
        client::receive(client::send(serving.address, method, path, &headers, body.as_bytes()))
    };
    let long = "Shem".repeat(1000);
    let body = json!({"prompt": "a", "Ham": 1, "Japheth\n ERROR forged: yes": [], &long: null});
    assert_eq!(send("POST", "/tokenize", "", &body).status, 200);
    let body = json!({"prompt": "a", "model": long, "temperature": long, &long: long});
    assert_eq!(send("POST", "/v1/completions", "", &body).status, 404);
    assert_eq!(send(&long, &format!("/{long}"), "", &json!({})).status, 404);
    for id in [&long, "forged\tid", "\u{e4}"] {
        let answer = send("GET", "/version", &format!("x-request-id: {id}\r\n"), &json!({}));
        assert!(answer.header("x-request-id").unwrap().starts_with("req-"), "{answer:?}");
    }
    serving.signal("-TERM");
    let (code, log) = serving.end();
    assert_eq!(code, Some(0), "{log}");
    let warning = log.lines().find(|line| line.contains("WARN")).unwrap();
    assert!(warning.ends_with("unknown fields ignored num_fields=3"), "{warning}");
    for made_up in ["Ham", "Japheth", "forged", "\u{e4}"] {
        assert!(!log.contains(made_up), "{log}");
    }
    assert!(log.lines().all(|line| line.len() < 1000), "{log}");
    // The path, for its operator to see what clients get wrong.
    assert!(log.contains("path=\"/Shem") && log.contains("(4001 characters)"), "{log}");
}

#[test]
fn sigterm_lets_requests_end_and_takes_no_more() {
    let serving = Serving::start(&[]);
    let running = client::start(serving.address, "/v1/completions", &long(300));
    client::wait_for_metric(serving.address, "vllm:num_requests_running", 1.);
    serving.signal("-TERM");
    let answer = client::receive(running);
    let tokens = answer.chunks().iter().filter(|chunk| chunk["choices"][0]["text"] != "").count();
    assert!(tokens > 100, "{tokens}");
    let address = serving.address;
    let (code, log) = serving.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let serving = Serving::start(&[]);
    let running = client::start(serving.address, "/v1/completions", &long(1000));
    client::wait_for_metric(serving.address, "vllm:num_requests_running", 1.);
    serving.signal("-TERM");
    // Two signals of one kind at once may become one.
    thread::sleep(Duration::from_millis(100));
    serving.signal("-INT");
    let (code, log) = serving.end();
    assert_eq!(code, Some(130), "{log}");
    drop(running);
}

#[test]
fn the_engine_is_set_as_for_other_commands() {
    let cached = |options: &[&str]| {
        let serving = Serving::start(options);
        let prompt = "In the beginning God created the heaven and the earth. ".repeat(4);
        let request = json!({"prompt": prompt, "max_tokens": 1});
        let mut answers = (0..2).map(|_| post(serving.address, "/v1/completions", &request).json());
        let usage = answers.nth(1).unwrap()["usage"].take();
        let page = get(serving.address, "/metrics").body;
        let cache = page.lines().find(|line| line.starts_with("vllm:cache_config_info")).unwrap();
        (usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(), cache.to_owned())
    };
    let (num_cached, cache) = cached(&["--block-size", "16", "--kv-cache-dtype", "f32"]);
    assert!(num_cached >= 32 && num_cached % 16 == 0, "{num_cached}");
    let num_blocks = |cache: &str| -> f64 {
        let (_, rest) = cache.split_once("num_gpu_blocks=\"").unwrap();
        rest.split_once('"').unwrap().0.parse().unwrap()
    };
    assert!(cache.contains("block_size=\"16\""), "{cache}");
    let (num_cached, half) = cached(&["--block-size", "16", "--no-enable-prefix-caching"]);
    assert_eq!(num_cached, 0);
    // The demo computes in bfloat16.
    assert!((num_blocks(&half) / num_blocks(&cache) - 2.).abs() < 0.01, "{cache}, {half}");
}

#[test]
fn a_key_may_come_by_the_environment() {
    let mut command = command(&["serve", "--port", "0", "--help"]);
    let output = command.env("NV_API_KEY", "secret").stdout(Stdio::piped()).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("NV_API_KEY") && !help.contains("secret"), "{help}");
    let serving = Serving::start_with(&[], |command| {
        command.env("NV_API_KEY", "secret");
    });
    assert_eq!(get(serving.address, "/v1/models").status, 401);
    let key = "authorization: Bearer secret\r\n";
    let answer = client::receive(client::send(serving.address, "GET", "/v1/models", key, b""));
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn what_cannot_be_served_is_said() {
    let check = |options: &[&str], expected: &str| {
        let output = nv(&[&["serve"], options].concat());
        assert!(!output.status.success());
        let found = stderr(&output);
        assert!(found.contains(expected), "{found}");
    };
    check(&["--kv-cache-memory", "lots"], "expected bytes, such as 500MiB or 2GiB");
    check(
        &["--max-num-seqs", "0", "--kv-cache-memory", "64MiB"],
        "max_num_seqs: expected at least 1",
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    check(&["--port", &port, "--kv-cache-memory", "64MiB"], "cannot listen on 127.0.0.1");
}
