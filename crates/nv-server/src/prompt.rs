//! The prompt of a completion, as text and as tokens.
//!
//! Knows nothing of what continues it.

use nv_engine::TokenId;
use nv_text::Tokenizer;

use crate::error::Result;

/// A prompt, as text and as tokens.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<TokenId>,
    /// Characters of the text before each token; empty unless the request needs them.
    pub(crate) text_offsets: Vec<usize>,
}

impl Prompt {
    pub(crate) fn of_text(
        text: String,
        add_special_tokens: bool,
        with_offsets: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let (token_ids, text_offsets) = if with_offsets {
            tokenizer.encode_with_offsets(&text, add_special_tokens)?
        } else {
            (tokenizer.encode(&text, add_special_tokens)?, Vec::new())
        };
        Ok(Self { text, token_ids, text_offsets })
    }

    pub(crate) fn of_token_ids(
        token_ids: Vec<TokenId>,
        skip_special_tokens: bool,
        tokenizer: &Tokenizer,
    ) -> Self {
        let mut stream = tokenizer.stream(skip_special_tokens);
        let (mut text, mut text_offsets, mut offset) = (String::new(), Vec::new(), 0);
        for &token_id in &token_ids {
            text_offsets.push(offset);
            let piece = stream.push(token_id);
            offset += piece.chars().count();
            text += piece;
        }
        text += &stream.finish();
        Self { text, token_ids, text_offsets }
    }
}
