//! The continuations of one request to the server: from the engine's outputs to pieces of text.
//!
//! Dropped, it ends what the engine still does for it. Knows nothing of HTTP, nor of chats and completions.

use std::future::poll_fn;
use std::iter;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use nv_engine::{Request, RequestOutput, RequestStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use crate::choice::{Choice, Finish, Piece};
use crate::counts::Ending;
use crate::error::{Error, Result};
use crate::params::TextParams;
use crate::server::Server;

/// Prompts that are being continued.
#[derive(Debug)]
pub(crate) struct Generation {
    parts: Vec<Part>,
    server: Server,
    start: Instant,
    /// When the request's time is up, and how much of it there was.
    deadline: Option<(Instant, Duration)>,
    /// The part that is looked at first.
    turn: usize,
    usage: Usage,
    has_failed: bool,
    span: Span,
    _permit: OwnedSemaphorePermit,
}

/// One prompt and its continuations.
#[derive(Debug)]
struct Part {
    /// `None` once all have ended.
    stream: Option<RequestStream>,
    choices: Vec<Choice>,
    num_cached_tokens: usize,
}

/// Tokens so far.
#[expect(clippy::struct_field_names, reason = "each is a number of tokens")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) num_prompt_tokens: usize,
    pub(crate) num_cached_tokens: usize,
    pub(crate) num_completion_tokens: usize,
}

impl Generation {
    /// Hands requests to the engine, all or none.
    pub(crate) async fn start(
        server: &Server,
        requests: Vec<Request>,
        text: TextParams,
    ) -> Result<Self> {
        let start = Instant::now();
        let nums_choices: Vec<usize> = requests.iter().map(|request| request.params.n()).collect();
        let permit = server.admit(nums_choices.iter().sum())?;
        let num_prompt_tokens = requests.iter().map(|request| request.prompt_token_ids.len()).sum();
        let streams = server.engine().add_requests(requests).await?;
        let text = Arc::new(text);
        let part = |(stream, num_choices)| {
            let choice = || Choice::new(Arc::clone(&text), server.tokenizer());
            let choices = iter::repeat_with(choice).take(num_choices).collect();
            Part { stream: Some(stream), choices, num_cached_tokens: 0 }
        };
        let parts = streams.into_iter().zip(nums_choices).map(part).collect();
        let limit = server.config().request_timeout;
        Ok(Self {
            parts,
            server: server.clone(),
            start,
            deadline: limit.map(|limit| (start + limit, limit)),
            turn: 0,
            usage: Usage { num_prompt_tokens, ..Usage::default() },
            has_failed: false,
            span: Span::current(),
            _permit: permit,
        })
    }

    /// How many continuations there are.
    pub(crate) fn num_choices(&self) -> usize {
        self.parts.iter().map(|part| part.choices.len()).sum()
    }

    /// What is new; `None` once all have ended.
    ///
    /// # Errors
    /// What one of the requests failed with, or [`Error::Timeout`]. Nothing comes after that.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            let output = match self.deadline {
                None => self.next_output().await,
                Some((deadline, limit)) => match timeout_at(deadline, self.next_output()).await {
                    Ok(output) => output,
                    Err(_) => return Err(Error::Timeout { limit }),
                },
            };
            let Some((part, output)) = output else { return Ok(None) };
            if let Some(Err(error)) = &output.finished {
                self.has_failed = true;
                return Err(error.clone().into());
            }
            if let Some(piece) = self.take(part, output) {
                return Ok(Some(piece));
            }
        }
    }

    /// Tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// What comes next of any part, and of which.
    async fn next_output(&mut self) -> Option<(usize, RequestOutput)> {
        let (parts, turn) = (&mut self.parts, &mut self.turn);
        poll_fn(|context| {
            let num_parts = parts.len();
            let mut is_over = true;
            for index in (0..num_parts).map(|i| (*turn + i) % num_parts) {
                let Some(stream) = &mut parts[index].stream else { continue };
                // Whoever waits for a channel is still woken when the future is gone.
                let polled = pin!(stream.next()).poll(context);
                match polled {
                    Poll::Ready(Some(output)) => {
                        *turn = index + 1;
                        return Poll::Ready(Some((index, output)));
                    }
                    Poll::Ready(None) => parts[index].stream = None,
                    Poll::Pending => is_over = false,
                }
            }
            if is_over { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    /// Makes a piece of an output, unless its continuation has ended before.
    fn take(&mut self, part_index: usize, output: RequestOutput) -> Option<Piece> {
        let first_index: usize =
            self.parts[..part_index].iter().map(|part| part.choices.len()).sum();
        let part = &mut self.parts[part_index];
        let index = first_index + output.index;
        // Of a request's continuations, not all need say it.
        let num_cached_tokens = part.num_cached_tokens.max(output.num_cached_tokens);
        self.usage.num_cached_tokens += num_cached_tokens - part.num_cached_tokens;
        part.num_cached_tokens = num_cached_tokens;
        let choice = &mut part.choices[output.index];
        if choice.is_finished() {
            return None;
        }
        let (num_tokens, output_index) = (choice.num_tokens(), output.index);
        let piece = choice.push(output);
        self.usage.num_completion_tokens += choice.num_tokens() - num_tokens;
        if let Some(finish) = &piece.finish {
            let ending = match finish {
                Finish::Length => Ending::Length,
                Finish::Eos | Finish::StopToken(_) | Finish::StopString(_) => Ending::Stop,
            };
            self.server.counts().end(ending, self.start.elapsed());
            // The engine knows nothing of a stop string.
            if let Some(stream) = &mut part.stream {
                stream.abort_continuation(output_index);
            }
        }
        Some(Piece { index, ..piece })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let elapsed = self.start.elapsed();
        let ending = if self.has_failed { Ending::Error } else { Ending::Abort };
        let choices = self.parts.iter().flat_map(|part| &part.choices);
        let num_unfinished = choices.filter(|choice| !choice.is_finished()).count();
        {
            let mut counts = self.server.counts();
            for _ in 0..num_unfinished {
                counts.end(ending, elapsed);
            }
        }
        let Usage { num_prompt_tokens, num_cached_tokens, num_completion_tokens } = self.usage;
        tracing::info!(
            parent: &self.span,
            num_prompt_tokens,
            num_cached_tokens,
            num_completion_tokens,
            num_unfinished,
            seconds = elapsed.as_secs_f64(),
            "generation ended"
        );
    }
}
