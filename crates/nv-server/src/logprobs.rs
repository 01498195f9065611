//! Log-probabilities in the forms of the OpenAI API: one for chats, one for completions, and vLLM's for prompts.

use nv_engine::{Logprob, TokenLogprobs};
use nv_text::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::choice::PieceToken;

/// JSON has no infinity: what the OpenAI API says of a token that can't come.
const IMPOSSIBLE: f32 = -9999.0;

/// Of a chat's tokens.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: ChatLogprob,
    top_logprobs: Vec<ChatLogprob>,
}

#[derive(Debug, Serialize)]
struct ChatLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// Of a completion's tokens, in columns.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl ChatLogprobs {
    pub(crate) fn extend(&mut self, tokens: &[PieceToken], tokenizer: &Tokenizer) {
        let logprobs = tokens.iter().filter_map(|token| token.logprobs.as_ref());
        self.content.extend(logprobs.map(|logprobs| ChatToken {
            token: ChatLogprob::new(&logprobs.token, tokenizer),
            top_logprobs: logprobs.top.iter().map(|top| ChatLogprob::new(top, tokenizer)).collect(),
        }));
    }
}

impl ChatLogprob {
    fn new(logprob: &Logprob, tokenizer: &Tokenizer) -> Self {
        Self {
            token: tokenizer.decode(&[logprob.token_id], false),
            logprob: finite(logprob.logprob),
            bytes: tokenizer.token_bytes(logprob.token_id),
        }
    }
}

impl CompletionLogprobs {
    /// Adds tokens of the continuation, which begins `offset` characters into the text.
    pub(crate) fn extend(&mut self, tokens: &[PieceToken], offset: usize, tokenizer: &Tokenizer) {
        for token in tokens {
            let Some(logprobs) = &token.logprobs else { continue };
            self.push(logprobs, offset + token.text_offset, tokenizer);
        }
    }

    /// Adds the prompt; of its first token nothing is known.
    pub(crate) fn extend_prompt(
        &mut self,
        token_ids: &[u32],
        logprobs: &[TokenLogprobs],
        tokenizer: &Tokenizer,
    ) {
        let Some(&first) = token_ids.first() else { return };
        self.tokens.push(tokenizer.decode(&[first], false));
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
        self.text_offset.push(0);
        let mut text = tokenizer.stream(false);
        let mut offset = text.push(first).chars().count();
        for logprobs in logprobs {
            self.push(logprobs, offset, tokenizer);
            offset += text.push(logprobs.token.token_id).chars().count();
        }
    }

    fn push(&mut self, logprobs: &TokenLogprobs, offset: usize, tokenizer: &Tokenizer) {
        let token = |logprob: &Logprob| tokenizer.decode(&[logprob.token_id], false);
        self.tokens.push(token(&logprobs.token));
        self.token_logprobs.push(Some(finite(logprobs.token.logprob)));
        // The token that came counts among the likeliest, even if it isn't.
        let top = logprobs.top.iter().chain([&logprobs.token]);
        let top = top.map(|top| (token(top), finite(top.logprob).into()));
        self.top_logprobs.push(Some(top.collect()));
        self.text_offset.push(offset);
    }
}

/// The prompt's, as vLLM has them: an object a token, of those that came and the likeliest by their ids.
pub(crate) fn prompt_logprobs(logprobs: &[TokenLogprobs], tokenizer: &Tokenizer) -> Vec<Value> {
    let entry = |logprob: &Logprob| {
        let value = json!({
            "logprob": finite(logprob.logprob),
            "rank": logprob.rank,
            "decoded_token": tokenizer.decode(&[logprob.token_id], false),
        });
        (logprob.token_id.to_string(), value)
    };
    let row = |row: &TokenLogprobs| {
        Value::Object([&row.token].into_iter().chain(&row.top).map(entry).collect())
    };
    [Value::Null].into_iter().chain(logprobs.iter().map(row)).collect()
}

fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}
