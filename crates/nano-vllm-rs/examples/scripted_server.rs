//! A server that says what it is told to, for the clients that `cargo xtask openai` tests: it needs no checkpoint.

use std::io::{Write, stdout};
use std::time::Duration;

use nano_vllm_rs::server::{ServerConfig, run};
use nv_testing::scripted_server;

fn main() {
    let api_keys = vec!["key".to_owned()];
    let config = ServerConfig { max_num_waiting: 16, api_keys, ..ServerConfig::new("scripted") };
    let listening = |address| {
        let mut out = stdout().lock();
        writeln!(out, "listening on http://{address}").unwrap();
        out.flush().unwrap();
    };
    let server = scripted_server(config, 2048, Duration::from_millis(1));
    run(server, "127.0.0.1", 0, listening).unwrap();
}
