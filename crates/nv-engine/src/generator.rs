//! One sequence, continued token by token.

use std::iter::FusedIterator;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;
use nv_qwen3::Qwen3ForCausalLM;

use crate::TokenId;
use crate::error::{Error, Result};
use crate::sampler::Sampler;
use crate::sampling_params::{SamplingParams, refuse};
use crate::sampling_state::SamplingState;

/// Prompt tokens computed at once: bounds the memory that a long prompt takes, and the wait for a cancellation.
const PREFILL_CHUNK: usize = 256;

/// The continuation of a prompt, as an iterator over its tokens.
///
/// The first `next` runs the prompt through the model. Each later one feeds back the token before, so that nothing is
/// computed that isn't asked for: to stop early, stop asking. The stop token that ends a text is not part of it; it is in
/// the [`FinishReason`]. After an error the iterator is over.
#[derive(Debug)]
pub struct Generator<'a> {
    model: &'a mut Qwen3ForCausalLM,
    params: SamplingParams,
    sampler: Sampler,
    state: SamplingState,
    cancelled: Option<&'a AtomicBool>,
    /// Prompt and continuation.
    token_ids: Vec<TokenId>,
    num_prompt_tokens: usize,
    /// Tokens of `token_ids` that the model's cache holds.
    num_computed_tokens: usize,
    finish_reason: Option<FinishReason>,
    is_over: bool,
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
    /// Prompt and continuation fill the model's `max_position_embeddings`.
    ContextFull,
    /// The flag given to [`Generator::with_cancel_flag`] was raised.
    Cancelled,
}

impl<'a> Generator<'a> {
    /// Prepares to continue `prompt` with `model`, whose cached sequence is given up.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`]; [`Error::PromptTooLong`] unless `max_position_embeddings` leaves room for one more token;
    /// [`Error::SamplingParameter`] from [`SamplingParams::check`], and for more than one continuation or logprobs.
    pub fn new(
        model: &'a mut Qwen3ForCausalLM,
        prompt: Vec<TokenId>,
        params: SamplingParams,
    ) -> Result<Self> {
        let num_prompt_tokens = prompt.len();
        let max_position_embeddings = model.config().max_position_embeddings;
        if num_prompt_tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        if num_prompt_tokens >= max_position_embeddings {
            let num_tokens = num_prompt_tokens;
            return Err(Error::PromptTooLong { num_tokens, max_position_embeddings });
        }
        params.check(model.config().vocab_size)?;
        if params.n() != 1 {
            return refuse("n", "1, as a generator continues one sequence", params.n());
        }
        if params.logprobs().or(params.prompt_logprobs()).is_some() {
            return refuse("logprobs", "none, as a generator gives tokens alone", "a number");
        }
        let state = SamplingState::new(&params, 0, &prompt);
        Ok(Self {
            model,
            params,
            sampler: Sampler::new(),
            state,
            cancelled: None,
            token_ids: prompt,
            num_prompt_tokens,
            num_computed_tokens: 0,
            finish_reason: None,
            is_over: false,
        })
    }

    /// Ends the continuation soon after another thread sets `flag`, in the middle of a long prompt too.
    #[must_use]
    pub fn with_cancel_flag(mut self, flag: &'a AtomicBool) -> Self {
        self.cancelled = Some(flag);
        self
    }

    /// Why the continuation ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    /// What the tokens are chosen by.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Tokens in the prompt.
    pub fn num_prompt_tokens(&self) -> usize {
        self.num_prompt_tokens
    }

    /// Tokens, of the prompt first, that have been through the model.
    pub fn num_computed_tokens(&self) -> usize {
        self.num_computed_tokens
    }

    /// The tokens generated so far.
    pub fn token_ids(&self) -> &[TokenId] {
        &self.token_ids[self.num_prompt_tokens..]
    }

    /// The next token, or why there is none.
    fn step(&mut self) -> Result<ControlFlow<FinishReason, TokenId>> {
        let num_tokens = self.token_ids.len();
        if self.params.max_tokens() == Some(num_tokens - self.num_prompt_tokens) {
            return Ok(ControlFlow::Break(FinishReason::Length));
        }
        if num_tokens == self.model.config().max_position_embeddings {
            return Ok(ControlFlow::Break(FinishReason::ContextFull));
        }
        let Some(logits) = self.compute_logits()? else {
            return Ok(ControlFlow::Break(FinishReason::Cancelled));
        };
        let token_id = self.sampler.sample(&logits, &self.params, &self.state)?;
        if self.params.stops_at(token_id) {
            return Ok(ControlFlow::Break(FinishReason::Stop { token_id }));
        }
        self.token_ids.push(token_id);
        self.state.push(token_id);
        Ok(ControlFlow::Continue(token_id))
    }

    /// Runs the tokens that the model's cache lacks through the model, in chunks; returns the logits that follow the
    /// last of them, or `None` if cancelled on the way.
    fn compute_logits(&mut self) -> Result<Option<Vec<f32>>> {
        loop {
            if self.cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Ok(None);
            }
            let start_pos = self.num_computed_tokens;
            let end = self.token_ids.len().min(start_pos + PREFILL_CHUNK);
            let chunk = &self.token_ids[start_pos..end];
            let input_ids = Tensor::new(chunk, self.model.device())?.unsqueeze(0)?; // [1, chunk]
            let logits = self.model.forward(&input_ids, start_pos)?; // [1, vocab_size]
            self.num_computed_tokens = end;
            if end == self.token_ids.len() {
                return Ok(Some(logits.squeeze(0)?.to_vec1()?));
            }
        }
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<TokenId>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let step = self.step();
        self.is_over = !matches!(step, Ok(ControlFlow::Continue(_)));
        match step {
            Ok(ControlFlow::Continue(token_id)) => Some(Ok(token_id)),
            Ok(ControlFlow::Break(reason)) => {
                self.finish_reason = Some(reason);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }
}

impl FusedIterator for Generator<'_> {}
