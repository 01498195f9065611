//! What can go wrong between a prompt and its continuation.

use crate::TokenId;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was refused, or a token could not be computed.
#[derive(Debug, thiserror::Error)]
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
    /// The model refused the tokens, or failed on them.
    #[error(transparent)]
    Model(#[from] nv_qwen3::Error),
    /// A tensor operation failed on its device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
