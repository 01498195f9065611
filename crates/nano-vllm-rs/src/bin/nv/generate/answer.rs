//! What is asked, as the engine takes it, and what came of it, for people and as JSON.

use std::fmt::Write as _;

use anyhow::Result;
use nano_vllm_rs::config::GenerationConfig;
use nano_vllm_rs::engine::{FinishReason, Logprob, Request, RequestOutput, TokenId, TokenLogprobs};
use nano_vllm_rs::text::{StopStrings, Tokenizer};
use serde_json::{Value, json};

use super::continuation::{Continuation, End};
use super::prompts::Input;
use crate::prompt::{Encoded, Prompt};

/// The least log-probability in JSON, which has no infinity; vLLM's.
const LEAST_LOGPROB: f32 = -9999.0;

/// A request and what is to be done with its tokens.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    stop: StopStrings,
    return_token_ids: bool,
}

/// A request among others.
#[derive(Debug)]
pub(super) struct Job {
    /// Where it stands in the input.
    pub(super) place: String,
    /// The prompt as people know it.
    title: String,
    /// Or why there is none.
    pub(super) request: Result<Asked>,
}

/// What there is of a request that the engine has.
#[derive(Debug)]
pub(super) struct Answer {
    num_prompt_tokens: usize,
    pub(super) num_cached_tokens: usize,
    prompt_logprobs: Option<Vec<TokenLogprobs>>,
    stop_token_ids: Vec<TokenId>,
    /// If it says which text comes.
    seed: Option<u64>,
    has_logprobs: bool,
    return_token_ids: bool,
    pub(super) continuations: Vec<Continuation>,
}

impl Asked {
    /// The continuation of its prompt, with nothing in it yet.
    pub(super) fn continuation(&self, tokenizer: &Tokenizer) -> Continuation {
        let min_tokens = self.request.params.min_tokens();
        Continuation::new(tokenizer.stream(true), self.stop.clone(), min_tokens)
    }
}

impl Job {
    pub(super) fn new(
        input: Input,
        prompt: Result<Encoded>,
        recommended: &GenerationConfig,
    ) -> Self {
        let Input { place, content } = input;
        let title = match &content {
            Ok((Prompt::Answer(text) | Prompt::Continue(text), _)) => text.clone(),
            _ => place.clone(),
        };
        let request = content.and_then(|(_, sampling)| {
            let Encoded { token_ids, reasoning } = prompt?;
            Ok(Asked {
                request: Request::new(token_ids, sampling.params(recommended)?),
                stop: sampling.stop_strings()?.after_reasoning(reasoning),
                return_token_ids: sampling.return_token_ids,
            })
        });
        Self { place, title, request }
    }

    /// What the engine is to serve; `None` if that can't be told.
    pub(super) fn request(&self) -> Option<&Request> {
        self.request.as_ref().ok().map(|asked| &asked.request)
    }

    /// How often its prompt is continued.
    pub(super) fn n(&self) -> usize {
        self.request().map_or(1, |request| request.params.n())
    }

    /// The texts, each under a line that names its prompt.
    pub(super) fn to_text(&self, answer: &Answer) -> String {
        let mut text = String::new();
        let n = answer.continuations.len();
        for (i, continuation) in answer.continuations.iter().enumerate() {
            let which = if n > 1 { format!(" ({} of {n})", i + 1) } else { String::new() };
            let _ = writeln!(text, "==> {}{which} <==\n{}\n", self.title, continuation.text);
        }
        text
    }
}

impl Answer {
    /// Nothing yet of what is `asked`.
    pub(super) fn new(asked: &Asked, tokenizer: &Tokenizer) -> Self {
        let params = &asked.request.params;
        Self {
            num_prompt_tokens: asked.request.prompt_token_ids.len(),
            num_cached_tokens: 0,
            prompt_logprobs: params.prompt_logprobs().map(|_| Vec::new()),
            stop_token_ids: params.stop_token_ids().to_vec(),
            seed: (!params.is_greedy()).then(|| params.seed()),
            has_logprobs: params.logprobs().is_some(),
            return_token_ids: asked.return_token_ids,
            continuations: (0..params.n()).map(|_| asked.continuation(tokenizer)).collect(),
        }
    }

    /// Goes on by what a step added to a continuation; returns whether a stop string ended it, which the engine doesn't know.
    pub(super) fn push(&mut self, mut output: RequestOutput) -> bool {
        self.num_cached_tokens = output.num_cached_tokens;
        let prompt_logprobs = std::mem::take(&mut output.prompt_logprobs);
        if let Some(all) = &mut self.prompt_logprobs {
            all.extend(prompt_logprobs);
        }
        let is_over = output.finished.is_some();
        let continuation = &mut self.continuations[output.index];
        continuation.push(output);
        !is_over && continuation.end.is_some()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.continuations.iter().all(|continuation| continuation.end.is_some())
    }

    pub(super) fn num_prompt_tokens(&self) -> usize {
        self.num_prompt_tokens
    }

    /// Tokens that were generated.
    pub(super) fn num_tokens(&self) -> usize {
        self.continuations.iter().map(Continuation::num_tokens).sum()
    }

    /// The answer to request number `index`, in the names of the OpenAI API and vLLM's additions to it.
    pub(super) fn to_json(&self, index: usize, tokenizer: &Tokenizer) -> Value {
        let choices = self.continuations.iter().enumerate().map(|(i, continuation)| {
            let (finish_reason, stop_reason) = self.reasons(continuation);
            let mut choice = json!({
                "index": i,
                "text": continuation.text,
                "finish_reason": finish_reason,
                "stop_reason": stop_reason,
            });
            if self.return_token_ids {
                choice["token_ids"] = json!(continuation.token_ids);
            }
            if self.has_logprobs {
                choice["logprobs"] = logprobs_json(&continuation.logprobs, tokenizer);
            }
            choice
        });
        let choices: Vec<Value> = choices.collect();
        let num_tokens = self.num_tokens();
        let mut answer = json!({
            "index": index,
            "choices": choices,
            "usage": {
                "prompt_tokens": self.num_prompt_tokens,
                "completion_tokens": num_tokens,
                "total_tokens": self.num_prompt_tokens + num_tokens,
                "prompt_tokens_details": { "cached_tokens": self.num_cached_tokens },
            },
        });
        if let Some(seed) = self.seed {
            answer["seed"] = json!(seed);
        }
        if let Some(logprobs) = &self.prompt_logprobs {
            answer["prompt_logprobs"] = logprobs_json(logprobs, tokenizer);
        }
        answer
    }

    /// Why a continuation ended, and at what of the request's own.
    fn reasons(&self, continuation: &Continuation) -> (Option<&'static str>, Value) {
        match &continuation.end {
            None => (None, Value::Null),
            Some(End::StopString(text)) => (Some("stop"), json!(text)),
            Some(End::Engine(FinishReason::Stop { token_id })) => {
                let is_own = self.stop_token_ids.contains(token_id);
                (Some("stop"), json!(is_own.then_some(token_id)))
            }
            // The end of the context is a limit of length too.
            Some(End::Engine(_)) => (Some("length"), Value::Null),
        }
    }
}

/// A token's log-probability, and those of the likeliest in its place, one for each token.
fn logprobs_json(logprobs: &[TokenLogprobs], tokenizer: &Tokenizer) -> Value {
    let one = |logprob: &Logprob| {
        json!({
            "token_id": logprob.token_id,
            "token": tokenizer.decode(&[logprob.token_id], false),
            "logprob": logprob.logprob.max(LEAST_LOGPROB),
            "rank": logprob.rank,
        })
    };
    let each = logprobs.iter().map(|logprobs| {
        let mut token = one(&logprobs.token);
        token["top_logprobs"] = logprobs.top.iter().map(one).collect();
        token
    });
    each.collect()
}
