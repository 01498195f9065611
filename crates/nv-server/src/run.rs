//! A server with its socket, from its start to its last answer.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::connections::Connections;
use crate::error::{Error, Result};
use crate::router::router_of_socket;
use crate::server::Server;

/// Threads that talk to clients; the engine has its own.
const NUM_THREADS: usize = 2;

/// How a server came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to end, and has answered all that it had taken.
    Drained,
    /// It was told twice, and has left its clients alone.
    Interrupted,
}

/// Serves on `host` and `port` until a signal says to end (SIGINT or SIGTERM): then it takes no more connections and
/// finishes what it has, unless nobody reads it; at a second signal it ends at once.
///
/// `listening` is called once with the address, which has the port that the system chose if `port` is 0.
///
/// # Errors
/// [`Error::Listen`] if the address can't be had; [`Error::Setting`] as [`router`](crate::router); [`Error::Serve`] if the system
/// refuses threads or signals.
///
/// # Panics
/// In async code, as it brings its own runtime.
pub fn run(
    server: Server,
    host: &str,
    port: u16,
    listening: impl FnOnce(SocketAddr),
) -> Result<Outcome> {
    let serve = |source| Error::Serve { source };
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(NUM_THREADS).enable_all().build().map_err(serve)?;
    let outcome = runtime.block_on(async {
        let listen = |source| Error::Listen { address: format!("{host}:{port}"), source };
        let router = router_of_socket(server.clone())?;
        let mut signals = Signals::new().map_err(serve)?;
        let listener = TcpListener::bind((host, port)).await.map_err(listen)?;
        listening(listener.local_addr().map_err(listen)?);
        let connections = Connections::new(listener, router, server.config());
        tokio::select! {
            () = signals.next() => {}
            () = connections.accept() => {}
        }
        tracing::info!("shutting down: no new requests; those that run are finished");
        server.drain();
        let finish = async {
            connections.finish().await;
            server.shut_down().await;
        };
        tokio::select! {
            () = signals.next() => Ok(Outcome::Interrupted),
            () = finish => Ok(Outcome::Drained),
        }
    });
    // What is left, after a second signal, is not waited for.
    runtime.shutdown_background();
    outcome
}

/// What tells a server to end.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Self { interrupt: signal(interrupt)?, terminate: signal(terminate)? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What tells a server to end.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // Then nothing but the system ends the process.
            std::future::pending::<()>().await;
        }
    }
}
