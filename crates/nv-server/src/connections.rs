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

/// How long nothing is taken where the system has no room for more.
const PAUSE: Duration = Duration::from_secs(1);

/// A socket, and the connections that came by it.
pub(crate) struct Connections {
    listener: TcpListener,
    router: Router,
    http: http1::Builder,
    open: GracefulShutdown,
}

impl Connections {
    /// `read_timeout` is how long a connection may be without a whole head of a request, before its first and between two.
    pub(crate) fn new(listener: TcpListener, router: Router, read_timeout: Duration) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(read_timeout);
        Self { listener, router, http, open: GracefulShutdown::new() }
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

    /// Takes no more, and waits until what was asked is answered.
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
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
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
