//! The model answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nano_vllm_rs::engine::{Engine, FinishReason, Request};
use nano_vllm_rs::text::{ChatAnswer, ChatDelta, ChatParser, Reasoning, Tokenizer, ToolCalls};

use super::conversation::Prompt;
use super::screen::Screen;
use super::settings::Settings;
use crate::ending;
use crate::format::{plural, seconds, speed};

/// The model and its text. Its engine keeps what it has computed, so that a turn costs no more than what is new in it.
pub(super) struct Answerer {
    engine: Engine,
    tokenizer: Tokenizer,
}

/// An answer, and what is to be said about it.
pub(super) struct Answered {
    pub(super) answer: ChatAnswer,
    /// Why it is not all that the model had to say.
    pub(super) note: Option<String>,
    /// What it cost.
    pub(super) stats: String,
}

/// What an answer took.
#[derive(Default)]
struct Cost {
    num_prompt_tokens: usize,
    num_cached_tokens: usize,
    num_tokens: usize,
    /// Until the first token was there.
    first_token: Duration,
    /// From the first token to the last.
    generation: Duration,
}

impl Answerer {
    pub(super) fn new(engine: Engine, tokenizer: Tokenizer) -> Self {
        Self { engine, tokenizer }
    }

    /// Goes on with `prompt` and shows what comes, until it ends or `stop` is raised.
    ///
    /// # Errors
    /// If the prompt is longer than the context, or a step fails; nothing of the request is left in the engine then.
    pub(super) fn answer(
        &mut self,
        prompt: &Prompt,
        settings: &Settings,
        screen: &Screen,
        stop: &AtomicBool,
    ) -> Result<Answered> {
        let token_ids = self.tokenizer.encode(&prompt.text, prompt.add_special_tokens)?;
        let mut cost = Cost { num_prompt_tokens: token_ids.len(), ..Cost::default() };
        let context = self.num_context_tokens();
        ensure!(
            token_ids.len() < context,
            "the conversation has {}, and the context of {} is full: /reset begins anew",
            plural(token_ids.len(), "token"),
            plural(context, "token"),
        );
        let room = context - token_ids.len();
        let mut params = settings.params();
        let max_tokens = params.max_tokens().filter(|&max_tokens| max_tokens < room);
        params = params.with_max_tokens(max_tokens.unwrap_or(room))?;
        let start = Instant::now();
        let id = self.engine.add_request(Request::new(token_ids, params))?;

        let mut text = self.tokenizer.stream(true);
        let mut parser = ChatParser::new(Reasoning::after_prompt(&prompt.text), ToolCalls::Off);
        let mut answer = ChatAnswer::default();
        let mut shown = screen.begin();
        let mut show = |deltas: Vec<ChatDelta>| {
            let result = shown.show(&deltas);
            answer.extend(deltas);
            result
        };
        let mut finished = None;
        let mut first_token = None;
        while self.engine.has_unfinished_requests() && !stop.load(Ordering::Relaxed) {
            for output in self.engine.step() {
                cost.num_cached_tokens = output.num_cached_tokens;
                let now = Instant::now();
                for token_id in output.token_ids {
                    let first = *first_token.get_or_insert(now);
                    cost.num_tokens += 1;
                    (cost.first_token, cost.generation) = (first - start, now - first);
                    show(parser.push(text.push(token_id)))?;
                }
                finished = output.finished;
            }
        }
        self.engine.abort(id);
        show(parser.push(&text.finish()))?;
        let is_whole =
            matches!(finished, Some(Ok(FinishReason::Stop { .. } | FinishReason::Complete)));
        show(if is_whole { parser.finish() } else { parser.cut() })?;
        shown.finish()?;
        let mut end = finished.transpose().context("the answer is cut short")?;
        if end == Some(FinishReason::Length) && max_tokens.is_none() {
            end = Some(FinishReason::ContextFull);
        }
        let stats = cost.stats(&ending::describe(end, &self.tokenizer));
        Ok(Answered { answer, note: note(end, cost.num_tokens, context), stats })
    }

    /// Tokens that conversation and answer have together at most.
    fn num_context_tokens(&self) -> usize {
        let limits = self.engine.scheduler_config();
        limits.max_model_len.min(limits.num_cache_tokens())
    }
}

/// What a user should know of the end.
fn note(reason: Option<FinishReason>, num_tokens: usize, context: usize) -> Option<String> {
    match reason {
        Some(FinishReason::Length) => {
            let num_tokens = plural(num_tokens, "token");
            Some(format!("[cut after {num_tokens}; /set max_tokens N allows more]"))
        }
        Some(FinishReason::ContextFull) => {
            let context = plural(context, "token");
            Some(format!("[the context of {context} is full; /reset begins anew]"))
        }
        None => Some("[stopped]".to_owned()),
        _ => None,
    }
}

impl Cost {
    fn stats(&self, end: &str) -> String {
        let first_token = match self.num_tokens {
            0 => String::new(),
            _ => format!("; first token after {}", seconds(self.first_token.as_secs_f64())),
        };
        format!(
            "prompt: {}, {} cached{first_token}; generated: {}{}; {end}",
            plural(self.num_prompt_tokens, "token"),
            self.num_cached_tokens,
            plural(self.num_tokens, "token"),
            // The first token comes with the prompt.
            speed(self.num_tokens.saturating_sub(1), self.generation),
        )
    }
}
