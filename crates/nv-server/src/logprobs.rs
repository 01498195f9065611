//! Log-probabilities in the forms of the OpenAI API: one for chats, one for completions, and vLLM's for prompts.

use nv_engine::{Logprob, TokenId, TokenLogprobs};
use nv_text::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::choice::PieceToken;
use crate::prompt::Prompt;

/// JSON has no infinity: what the OpenAI API says of a token that can't come.
const IMPOSSIBLE: f32 = -9999.0;

/// How tokens are spelled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spelling<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// By their ids, as vLLM has it: different tokens may have the same text.
    pub(crate) as_token_ids: bool,
}

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

impl Spelling<'_> {
    fn of(self, token_id: TokenId) -> String {
        if self.as_token_ids {
            format!("token_id:{token_id}")
        } else {
            self.tokenizer.decode(&[token_id], false)
        }
    }
}

impl ChatLogprobs {
    pub(crate) fn extend(&mut self, tokens: &[PieceToken], spelling: Spelling<'_>) {
        let logprobs = tokens.iter().filter_map(|token| token.logprobs.as_ref());
        self.content.extend(logprobs.map(|logprobs| ChatToken {
            token: ChatLogprob::new(&logprobs.token, spelling),
            top_logprobs: logprobs.top.iter().map(|top| ChatLogprob::new(top, spelling)).collect(),
        }));
    }
}

impl ChatLogprob {
    fn new(logprob: &Logprob, spelling: Spelling<'_>) -> Self {
        Self {
            token: spelling.of(logprob.token_id),
            logprob: finite(logprob.logprob),
            bytes: spelling.tokenizer.token_bytes(logprob.token_id),
        }
    }
}

impl CompletionLogprobs {
    /// Adds tokens of the continuation, which begins `offset` characters into the text.
    pub(crate) fn extend(&mut self, tokens: &[PieceToken], offset: usize, spelling: Spelling<'_>) {
        for token in tokens {
            let Some(logprobs) = &token.logprobs else { continue };
            self.push(logprobs, offset + token.text_offset, spelling);
        }
    }

    /// Adds the prompt; of its first token nothing is known.
    pub(crate) fn extend_prompt(
        &mut self,
        prompt: &Prompt,
        logprobs: &[TokenLogprobs],
        spelling: Spelling<'_>,
    ) {
        let (Some(&first), Some((&offset, offsets))) =
            (prompt.token_ids.first(), prompt.text_offsets.split_first())
        else {
            return;
        };
        self.tokens.push(spelling.of(first));
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
        self.text_offset.push(offset);
        for (logprobs, &offset) in logprobs.iter().zip(offsets) {
            self.push(logprobs, offset, spelling);
        }
    }

    fn push(&mut self, logprobs: &TokenLogprobs, offset: usize, spelling: Spelling<'_>) {
        self.tokens.push(spelling.of(logprobs.token.token_id));
        self.token_logprobs.push(Some(finite(logprobs.token.logprob)));
        // The token that came counts among the likeliest, even if it isn't. Of those with one spelling the likeliest counts.
        let mut likeliest: Vec<_> = logprobs.top.iter().chain([&logprobs.token]).collect();
        likeliest.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
        let mut top = Map::new();
        for logprob in likeliest {
            let spelled = spelling.of(logprob.token_id);
            top.entry(spelled).or_insert_with(|| finite(logprob.logprob).into());
        }
        self.top_logprobs.push(Some(top));
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
