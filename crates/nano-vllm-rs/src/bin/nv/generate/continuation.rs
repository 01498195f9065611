//! One continuation of a prompt, from tokens to text.

use nano_vllm_rs::engine::{FinishReason, RequestOutput, TokenId, TokenLogprobs};
use nano_vllm_rs::text::{StopStrings, TokenStream};

/// What there is of a continuation.
#[derive(Debug)]
pub(super) struct Continuation {
    stream: TokenStream,
    stop: StopStrings,
    /// Tokens in which no stop string ends; one may begin in them.
    min_tokens: usize,
    /// The text that is certain.
    pub(super) text: String,
    pub(super) token_ids: Vec<TokenId>,
    pub(super) logprobs: Vec<TokenLogprobs>,
    /// `None` as long as it goes on.
    pub(super) end: Option<End>,
}

/// Why a continuation ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    Engine(FinishReason),
    StopString(String),
}

impl Continuation {
    pub(super) fn new(stream: TokenStream, stop: StopStrings, min_tokens: usize) -> Self {
        Self {
            stream,
            stop,
            min_tokens,
            text: String::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            end: None,
        }
    }

    /// Goes on by what a step added.
    pub(super) fn push(&mut self, output: RequestOutput) {
        let mut logprobs = output.logprobs.into_iter();
        for token_id in output.token_ids {
            if self.end.is_some() {
                return;
            }
            self.token_ids.push(token_id);
            self.logprobs.extend(logprobs.next());
            let text = self.stream.push(token_id);
            let check = self.stop.push_if(self.token_ids.len() > self.min_tokens, text);
            self.text.push_str(check.text);
            self.end = check.stop_string.map(|stop| End::StopString(stop.to_owned()));
        }
        if self.end.is_none()
            && let Some(Ok(reason)) = output.finished
        {
            self.end = Some(End::Engine(reason));
            self.finish();
        }
    }

    /// Adds what was held back, as nothing comes that could change its meaning.
    pub(super) fn finish(&mut self) {
        let rest = self.stream.clone().finish();
        let may_end = self.token_ids.len() > self.min_tokens;
        self.text.push_str(self.stop.push_if(may_end, &rest).text);
        let check = self.stop.finish();
        self.text.push_str(check.text);
        if let Some(stop) = check.stop_string {
            self.end = Some(End::StopString(stop.to_owned()));
        }
    }

    /// Tokens that were computed for it, a stop token included.
    pub(super) fn num_tokens(&self) -> usize {
        let is_stop_token = matches!(self.end, Some(End::Engine(FinishReason::Stop { .. })));
        self.token_ids.len() + usize::from(is_stop_token)
    }
}
