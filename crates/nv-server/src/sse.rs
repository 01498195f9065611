//! Answers as server-sent events, as they come.
//!
//! Knows nothing of what is in them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tracing::{Instrument, Span};

use crate::choice::Piece;
use crate::error::Error;
use crate::generation::{Generation, Usage};

/// After how long without an event a comment says that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Turns pieces into chunks of JSON.
pub(crate) trait Chunks: Send + 'static {
    /// What comes before all pieces.
    fn begin(&mut self, usage: Usage) -> Vec<String>;

    /// What a piece becomes.
    fn push(&mut self, piece: Piece, usage: Usage) -> Vec<String>;

    /// What comes after all pieces.
    fn end(&mut self, usage: Usage) -> Vec<String>;
}

/// Where a stream is.
struct State<C> {
    /// `None` once it has ended.
    generation: Option<Generation>,
    chunks: C,
    pending: VecDeque<String>,
}

/// Sends a generation in chunks; an error on the way is one, and the last. A client that goes away ends the generation.
pub(crate) fn stream<C: Chunks>(generation: Generation, mut chunks: C) -> Response {
    let pending = chunks.begin(generation.usage()).into();
    let state = State { generation: Some(generation), chunks, pending };
    // The body is asked for when the request has left the span that its id stands in.
    let span = Span::current();
    let events = stream::unfold(state, move |mut state| {
        let next = async {
            let data = state.next().await?;
            Some((Ok::<_, Infallible>(Event::default().data(data)), state))
        };
        next.instrument(span.clone())
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

impl<C: Chunks> State<C> {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.pending.pop_front() {
                return Some(data);
            }
            let generation = self.generation.as_mut()?;
            match generation.next().await {
                Ok(Some(piece)) => {
                    let usage = generation.usage();
                    self.pending.extend(self.chunks.push(piece, usage));
                }
                Ok(None) => {
                    let usage = generation.usage();
                    self.pending.extend(self.chunks.end(usage));
                    self.end();
                }
                Err(error) => {
                    self.pending.push_back(error.to_json().to_string());
                    self.end();
                }
            }
        }
    }

    fn end(&mut self) {
        self.generation = None;
        self.pending.push_back("[DONE]".to_owned());
    }
}

/// A chunk as text, or the error that it can't be.
pub(crate) fn to_json(chunk: &impl Serialize) -> String {
    serde_json::to_string(chunk).unwrap_or_else(|_| Error::Panic.to_json().to_string())
}
