//! What goes into the engine, and what comes out.

use std::fmt;
use std::sync::Arc;

use crate::TokenId;
use crate::constraint::Constraint;
use crate::error::{Error, Result};
use crate::logprobs::TokenLogprobs;
use crate::sampling_params::SamplingParams;
use crate::scheduler::SequenceId;

/// A prompt and how to continue it.
#[derive(Debug, Clone)]
pub struct Request {
    /// What to continue, at least one token.
    pub prompt_token_ids: Vec<TokenId>,
    /// How, how often and how far.
    pub params: SamplingParams,
    /// Who goes first: a lower number before a higher one, within the reach that
    /// [`SchedulerConfig`](crate::SchedulerConfig) gives priorities.
    pub priority: i32,
    /// Requests of different salts never share blocks: nobody learns by waiting times what others asked.
    pub cache_salt: Option<Arc<str>>,
    /// What each continuation is held to. Its log-probabilities are still the model's own.
    pub constraint: Option<Arc<dyn Constraint>>,
}

impl Request {
    /// A request of usual priority, without a salt, held to nothing.
    pub fn new(prompt_token_ids: Vec<TokenId>, params: SamplingParams) -> Self {
        Self { prompt_token_ids, params, priority: 0, cache_salt: None, constraint: None }
    }
}

/// A request in an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl RequestId {
    /// The sequence that is the request's continuation number `index`. A request takes as many ids as it has of them.
    pub fn sequence(self, index: usize) -> SequenceId {
        SequenceId(self.0 + index as u64)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a step added to one continuation of a request.
#[derive(Debug, Clone)]
pub struct RequestOutput {
    /// The request.
    pub request_id: RequestId,
    /// Which of its [`n`](SamplingParams::n) continuations.
    pub index: usize,
    /// The tokens that are new. The stop token that ends a text is no part of it; it is in the [`FinishReason`].
    pub token_ids: Vec<TokenId>,
    /// One for each new token, if [`logprobs`](SamplingParams::logprobs) are asked for, else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// For the next tokens of the prompt, from its second on, if [`prompt_logprobs`](SamplingParams::prompt_logprobs) are
    /// asked for; all come with the first continuation, no later than its first token.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Tokens of the prompt that were found in the prefix cache.
    pub num_cached_tokens: usize,
    /// Whether the continuation has ended, and how. Nothing of it comes after that.
    pub finished: Option<Result<FinishReason>>,
}

impl RequestOutput {
    /// Nothing new.
    pub(crate) fn empty(request_id: RequestId, index: usize) -> Self {
        Self {
            request_id,
            index,
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            prompt_logprobs: Vec::new(),
            num_cached_tokens: 0,
            finished: None,
        }
    }
}

/// Why a continuation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model chose a stop token.
    Stop {
        /// Which of them.
        token_id: TokenId,
    },
    /// As many tokens as `max_tokens` allows were generated.
    Length,
    /// What the text is held to is complete: it may end, and nothing may follow.
    Complete,
    /// Prompt and continuation are as long as a sequence can be.
    ContextFull,
}

/// A request that is done.
#[derive(Debug, Clone)]
pub struct Generation {
    /// One for each token of the prompt but the first, if they are asked for.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Tokens of the prompt that were found in the prefix cache.
    pub num_cached_tokens: usize,
    /// The continuations, [`n`](SamplingParams::n) of them.
    pub completions: Vec<Completion>,
}

/// A continuation that is done.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Its tokens, without the stop token that ended it.
    pub token_ids: Vec<TokenId>,
    /// One for each token, if they are asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A [`Generation`] in the making: outputs put together.
#[derive(Debug)]
pub(crate) struct Gathered {
    prompt_logprobs: Vec<TokenLogprobs>,
    num_cached_tokens: usize,
    completions: Vec<RequestOutput>,
    error: Option<Error>,
    num_unfinished: usize,
}

impl Gathered {
    /// Nothing yet, of `n` continuations.
    pub(crate) fn new(request_id: RequestId, n: usize) -> Self {
        Self {
            prompt_logprobs: Vec::new(),
            num_cached_tokens: 0,
            completions: (0..n).map(|index| RequestOutput::empty(request_id, index)).collect(),
            error: None,
            num_unfinished: n,
        }
    }

    /// Takes up one more output.
    pub(crate) fn push(&mut self, output: RequestOutput) {
        let completion = &mut self.completions[output.index];
        completion.token_ids.extend(output.token_ids);
        completion.logprobs.extend(output.logprobs);
        self.prompt_logprobs.extend(output.prompt_logprobs);
        self.num_cached_tokens = output.num_cached_tokens;
        self.num_unfinished -= usize::from(output.finished.is_some());
        if let Some(Err(error)) = &output.finished {
            self.error.get_or_insert_with(|| error.clone());
        }
        completion.finished = output.finished;
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.num_unfinished == 0
    }

    /// The request as it ended.
    pub(crate) fn finish(self) -> Result<Generation> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let completion = |output: RequestOutput| {
            let finish_reason = output.finished.unwrap_or(Err(Error::Stopped))?;
            let RequestOutput { token_ids, logprobs, .. } = output;
            Ok(Completion { token_ids, logprobs, finish_reason })
        };
        Ok(Generation {
            prompt_logprobs: self.prompt_logprobs,
            num_cached_tokens: self.num_cached_tokens,
            completions: self.completions.into_iter().map(completion).collect::<Result<_>>()?,
        })
    }
}
