//! What hyper answers by itself, when what comes is no request: here such answers get a body.
//!
//! Knows nothing of what else is answered, but that it bears the id of its request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::Error;
use crate::request_log::{REQUEST_ID, new_id};

/// How hyper says that an answer has no body.
const NO_BODY: &str = "content-length: 0\r\n";

/// A stream of answers, in which those that hyper gives by itself have a body in the form of the API.
#[derive(Debug)]
pub(crate) struct Refusals<S> {
    stream: S,
    /// What of such an answer is still to be written.
    rest: Vec<u8>,
}

impl<S: AsyncWrite + Unpin> Refusals<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, rest: Vec::new() }
    }

    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &self.rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.rest.drain(..written)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The answer in the place of `head`, if that is all of one that hyper gives by itself.
fn with_body(head: &[u8]) -> Option<Vec<u8>> {
    let head = str::from_utf8(head).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let reason = match status {
        StatusCode::BAD_REQUEST => "expected a request line and headers as in RFC 9112",
        StatusCode::URI_TOO_LONG => "expected a shorter URI",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "expected fewer or shorter headers",
        _ => return None,
    };
    if !head.ends_with("\r\n\r\n") || head.contains(REQUEST_ID.as_str()) {
        return None;
    }
    let (before, after) = head.split_once(NO_BODY)?;
    let body = Error::Head { status, reason }.to_json().to_string();
    let (length, id) = (body.len(), new_id());
    let headers = format!(
        "content-type: application/json\r\ncontent-length: {length}\r\n{REQUEST_ID}: {id}\r\n"
    );
    Some([before, &headers, after, &body].concat().into_bytes())
}

impl<S: AsyncRead + Unpin> AsyncRead for Refusals<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Refusals<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(context))?;
        let [head] = slices else {
            return Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        };
        let Some(answer) = with_body(head) else {
            return Pin::new(&mut self.stream).poll_write(context, head);
        };
        self.rest = answer;
        // What is left goes with the flush that follows.
        match self.poll_rest(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(head.len())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
