//! A prompt, and what a model goes on from.
//!
//! Knows nothing of where prompts come from.

use anyhow::{Context, Result};
use nano_vllm_rs::engine::TokenId;
use nano_vllm_rs::text::{ChatMessage, ChatOptions, ChatTemplate, Reasoning, Tokenizer};

/// What is to be answered or continued.
#[derive(Debug, PartialEq)]
pub(crate) enum Prompt {
    /// By the chat template, if there is one.
    Answer(String),
    /// As it stands.
    Continue(String),
    TokenIds(Vec<TokenId>),
    Conversation(Vec<ChatMessage>),
}

/// A prompt as the model takes it.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) token_ids: Vec<TokenId>,
    /// Where its continuation may hold reasoning.
    pub(crate) reasoning: Reasoning,
}

impl Prompt {
    /// What the model is to go on from.
    ///
    /// # Errors
    /// If a text has no tokens, or the template refuses a conversation.
    pub(crate) fn encode(
        &self,
        template: Option<&ChatTemplate>,
        tokenizer: &Tokenizer,
    ) -> Result<Encoded> {
        let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
        let messages = match (self, template) {
            (Self::TokenIds(token_ids), _) => return Ok(Encoded::text(token_ids.clone())),
            (Self::Answer(text), None) | (Self::Continue(text), _) => {
                return Ok(Encoded::text(tokenizer.encode(text, true)?));
            }
            (Self::Answer(text), Some(_)) => &[ChatMessage::new("user", text.clone())],
            (Self::Conversation(messages), _) => messages.as_slice(),
        };
        let template = template.context("field `messages`: the model has no chat template")?;
        let text = template.render(messages, &options)?;
        let token_ids = tokenizer.encode(&text, false)?;
        Ok(Encoded { token_ids, reasoning: Reasoning::after_prompt(&text) })
    }
}

impl Encoded {
    /// A text that is continued, which has no reasoning.
    fn text(token_ids: Vec<TokenId>) -> Self {
        Self { token_ids, reasoning: Reasoning::Off }
    }
}
