//! The server over loopback, with a model that says what it is told to.

mod accepted;
mod bad_requests;
mod chat;
pub(crate) mod client;
mod completions;
mod endings;
mod http;
mod limits;
mod paths;
mod structured;

use std::net::SocketAddr;
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use nano_vllm_rs::server::{ServerConfig, run};
use nv_testing::scripted_server;

/// Starts a server that lives as long as the tests.
fn serve(config: ServerConfig) -> SocketAddr {
    let (sender, receiver) = mpsc::channel();
    // Slow enough to be caught in the middle.
    let server = scripted_server(config, 2048, Duration::from_millis(1));
    thread::spawn(move || run(server, "127.0.0.1", 0, |address| sender.send(address).unwrap()));
    receiver.recv().unwrap()
}

/// One for the tests that only ask.
fn shared() -> SocketAddr {
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    *SERVER.get_or_init(|| serve(ServerConfig::new("scripted")))
}
