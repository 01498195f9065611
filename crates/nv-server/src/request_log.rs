//! A line of the log for each request, and an id that log and client know it by.
//!
//! What a request says is no part of the log, nor what it is answered.

use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::ids::unique_id;
use crate::shortened::{VALUE, shortened};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a client.
const MAX_ID_BYTES: usize = 128;

/// Gives a request the id that its client names, or a new one, and logs how it was answered.
pub(crate) async fn log(request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_plain(id)).cloned();
    let id = id.unwrap_or_else(|| {
        HeaderValue::try_from(new_id()).unwrap_or(HeaderValue::from_static("req-"))
    });
    let request_id = id.to_str().unwrap_or_default();
    let span = tracing::info_span!("request", request_id);
    // Both are whatever a client likes.
    let method = shortened(request.method().as_str(), VALUE).into_owned();
    let path = shortened(request.uri().path(), VALUE).into_owned();
    let start = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    tracing::info!(
        parent: &span,
        %method,
        path,
        status = response.status().as_u16(),
        seconds = start.elapsed().as_secs_f64(),
        "answered"
    );
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// An id for a request that brings none.
pub(crate) fn new_id() -> String {
    unique_id("req-")
}

/// Whether an id can stand in a log as it is.
fn is_plain(id: &HeaderValue) -> bool {
    (1..=MAX_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}
