//! Parts of answers that chats and completions have alike.

use serde::Serialize;

use crate::choice::Finish;
use crate::generation::Usage;
use crate::params::Delivery;

/// Tokens, as the OpenAI API counts them.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct UsageJson {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

/// The field `usage` of a chunk, which with `include_usage` every chunk has.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum ChunkUsage {
    /// Null, as tokens are still to come.
    Pending(()),
    Tokens(UsageJson),
}

/// What vLLM adds to the finish reason: the token or the string, if the request named it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum StopReason {
    Token(u32),
    String(String),
}

impl From<Usage> for UsageJson {
    fn from(usage: Usage) -> Self {
        let Usage { num_prompt_tokens, num_cached_tokens, num_completion_tokens } = usage;
        Self {
            prompt_tokens: num_prompt_tokens,
            completion_tokens: num_completion_tokens,
            total_tokens: num_prompt_tokens + num_completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: num_cached_tokens },
        }
    }
}

impl ChunkUsage {
    /// What a chunk says of the tokens so far, if anything.
    pub(crate) fn new(usage: Usage, is_last: bool, delivery: Delivery) -> Option<Self> {
        let is_told = is_last || delivery.continuous_usage_stats;
        let told = if is_told { Self::Tokens(usage.into()) } else { Self::Pending(()) };
        delivery.include_usage.then_some(told)
    }
}

impl StopReason {
    pub(crate) fn of(finish: &Finish) -> Option<Self> {
        match finish {
            Finish::StopToken(token_id) => Some(Self::Token(*token_id)),
            Finish::StopString(string) => Some(Self::String(string.clone())),
            Finish::Eos | Finish::Length => None,
        }
    }
}
