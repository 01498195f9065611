//! The connections of a server: taken as they come, and left when their clients are too slow to ask for anything.
//!
//! Knows nothing of what is asked and answered.

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutWriter;

use crate::refusals::Refusals;
use crate::server::ServerConfig;

/// How long nothing is taken where the system has no room for more.
const PAUSE: Duration = Duration::from_secs(1);

/// A socket, and the connections that came by it.
pub(crate) struct Connections {
    listener: TcpListener,
    router: Router,
    http: http1::Builder,
    write_timeout: Duration,
    open: GracefulShutdown,
}

impl Connections {
    /// Of `config` the timeouts count: for whoever doesn't send a whole head of a request, and whoever doesn't read.
    pub(crate) fn new(listener: TcpListener, router: Router, config: &ServerConfig) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(config.read_timeout);
        let write_timeout = config.write_timeout;
        Self { listener, router, http, write_timeout, open: GracefulShutdown::new() }
    }

    /// Takes connections as long as it is waited for.
    pub(crate) async fn accept(&self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.serve(stream))),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot take a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Takes no more, and waits until what was asked is answered, or nobody reads the answer.
    pub(crate) async fn finish(self) {
        let Self { listener, open, .. } = self;
        drop(listener);
        open.shutdown().await;
    }

    fn serve(&self, stream: TcpStream) -> impl Future<Output = ()> + Send + use<> {
        // A token is a small packet, which must not wait for the one before it to be confirmed.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "small packets may wait");
        }
        let service = TowerToHyperService::new(self.router.clone());
        // Writes fail once the client has read nothing for so long while there was something to read.
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(self.write_timeout));
        let stream = TokioIo::new(Refusals::new(Box::pin(stream)));
        let connection = self.http.serve_connection(stream, service);
        let connection = self.open.watch(connection);
        async {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        }
    }
}

/// Whether an error is that of a connection which ended before it was taken.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::body::Body;
    use axum::routing::get;
    use futures_util::stream;
    use tokio::time::timeout;

    use super::*;

    static IS_GONE: AtomicBool = AtomicBool::new(false);

    /// What an answer holds, such as its room among those that run.
    struct Held;

    impl Drop for Held {
        fn drop(&mut self) {
            IS_GONE.store(true, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn who_reads_nothing_keeps_nothing_and_holds_up_no_shutdown() {
        let endless = || async {
            let held = Held;
            Body::from_stream(stream::repeat_with(move || {
                let _held = &held;
                Ok::<_, Infallible>(vec![b'a'; 1 << 16])
            }))
        };
        let router = Router::new().route("/", get(endless));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        let config =
            ServerConfig { write_timeout: Duration::from_millis(200), ..ServerConfig::new("x") };
        let connections = Connections::new(listener, router, &config);
        let accept = timeout(Duration::from_millis(50), connections.accept());
        accept.await.unwrap_err();
        assert!(!IS_GONE.load(Ordering::Relaxed));
        timeout(Duration::from_secs(20), connections.finish()).await.unwrap();
        assert!(IS_GONE.load(Ordering::Relaxed));
        drop(client);
    }
}
