//! Why a text ended, in words.

use nano_vllm_rs::engine::FinishReason;
use nano_vllm_rs::text::Tokenizer;

/// `reason` in words; without one the text was interrupted.
pub(crate) fn describe(reason: Option<FinishReason>, tokenizer: &Tokenizer) -> String {
    match reason {
        Some(FinishReason::Stop { token_id }) => match tokenizer.id_to_token(token_id) {
            Some(token) => format!("ended by {token}"),
            None => format!("ended by token {token_id}"),
        },
        Some(FinishReason::Length) => "cut at --max-tokens".into(),
        Some(FinishReason::ContextFull) => {
            "cut at the end of the context, the model's or what the KV cache holds".into()
        }
        None => "interrupted".into(),
        reason => format!("{reason:?}"),
    }
}
