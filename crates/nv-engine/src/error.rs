//! What can go wrong between a prompt and its continuation.

use std::any::Any;
use std::io;
use std::sync::Arc;

use crate::{SequenceId, TokenId};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was refused, or a token could not be computed. Clones are cheap: one failure may end many requests.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A sampling parameter has a value that says nothing about sampling.
    #[error("{parameter}: expected {expected}, found {found}")]
    SamplingParameter {
        /// The parameter, as [`SamplingParams`](crate::SamplingParams) names it.
        parameter: &'static str,
        /// What would have been right.
        expected: String,
        /// What was given.
        found: String,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty: expected at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room for a continuation.
    #[error(
        "the prompt has {num_tokens} tokens: expected fewer than the model's {max_position_embeddings} positions"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        num_tokens: usize,
        /// The longest sequence of the model, prompt and continuation together.
        max_position_embeddings: usize,
    },
    /// A request asks for more tokens than can be served, however empty the KV cache.
    #[error(
        "the request has {num_prompt_tokens} prompt tokens and wants {max_tokens} more: expected at most \
         {max_model_len} together (the KV cache holds {num_cache_tokens})"
    )]
    RequestTooLong {
        /// Tokens in the prompt.
        num_prompt_tokens: usize,
        /// Tokens to add to it; 1 if the request says no number.
        max_tokens: usize,
        /// The longest sequence that is served.
        max_model_len: usize,
        /// Tokens that the KV cache holds.
        num_cache_tokens: usize,
    },
    /// A sequence is added under the id of one that hasn't ended.
    #[error("sequence {id} hasn't ended yet: expected an id of its own for each sequence")]
    DuplicateSequence {
        /// The id of both.
        id: SequenceId,
    },
    /// A sequence is named that there is not.
    #[error("there is no sequence {id}: it has ended or was never added")]
    UnknownSequence {
        /// The id that nothing has.
        id: SequenceId,
    },
    /// A setting leaves nothing that could run.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// The setting, as [`SchedulerConfig`](crate::SchedulerConfig) or [`EngineConfig`](crate::EngineConfig) names it.
        setting: &'static str,
        /// What would have been right, and why.
        expected: String,
        /// What was given.
        found: usize,
    },
    /// The model put out something that is no logit.
    #[error("the logit of token {token_id} is {found}: expected a finite number or -inf")]
    Logit {
        /// The token whose logit it is.
        token_id: TokenId,
        /// NaN or infinity.
        found: f32,
    },
    /// A token that the model does not know.
    #[error("token {token_id} has no logit: expected an id below {num_logits}")]
    TokenId {
        /// The token.
        token_id: TokenId,
        /// How many logits there are.
        num_logits: usize,
    },
    /// Every token is ruled out.
    #[error("none of the {num_logits} logits is above -inf: expected at least one")]
    NoChoice {
        /// How many logits there are.
        num_logits: usize,
    },
    /// A text can't go on under what it is held to.
    #[error("the text can't be held to what was asked: {reason}")]
    Constraint {
        /// What the [`Constraint`](crate::Constraint) says.
        reason: String,
    },
    /// The model refused the tokens, or failed on them.
    #[error(transparent)]
    Model(Arc<nv_qwen3::Error>),
    /// A tensor operation failed on its device.
    #[error(transparent)]
    Candle(Arc<candle_core::Error>),
    /// The step panicked that the request was part of.
    #[error("the step that computed the request panicked: {message}")]
    Panic {
        /// What the panic says.
        message: String,
    },
    /// The system refuses the memory of the KV cache.
    #[error("kv_cache_memory: the system refuses {bytes} bytes; ask for less")]
    KvCacheMemory {
        /// How many were asked for.
        bytes: usize,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// A share of the free memory is asked for where nobody says how much there is.
    #[error(
        "kv_cache_memory: this system does not say how much memory is free; give a number of bytes"
    )]
    UnknownMemory,
    /// The system refuses the engine's thread.
    #[error("the system does not start the engine's thread: {kind}")]
    Spawn {
        /// What the system says.
        kind: io::ErrorKind,
    },
    /// The engine takes no more requests: it is shutting down, or its thread has died.
    #[error("the engine has stopped")]
    Stopped,
}

impl From<nv_qwen3::Error> for Error {
    fn from(error: nv_qwen3::Error) -> Self {
        Self::Model(Arc::new(error))
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(Arc::new(error))
    }
}

/// What a panic says.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
