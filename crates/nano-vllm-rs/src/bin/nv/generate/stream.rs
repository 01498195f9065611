//! A single text, shown as it comes.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use nano_vllm_rs::engine::{Engine, SamplingParams};
use nano_vllm_rs::text::Tokenizer;

use super::answer::Asked;
use super::continuation::{Continuation, End};
use crate::format::{plural, seconds, speed};
use crate::{ending, interrupt, say};

/// Serves one request, of a model that began to be loaded at `load_start`.
pub(super) fn run(
    engine: &mut Engine,
    asked: Asked,
    tokenizer: &Tokenizer,
    interrupted: &AtomicBool,
    load_start: Instant,
) -> Result<ExitCode> {
    let (params, num_prompt_tokens) =
        (asked.request.params.clone(), asked.request.prompt_token_ids.len());
    let text = asked.continuation(tokenizer);
    engine.add_request(asked.request)?;
    let generated = stream(engine, text, interrupted, load_start)?;
    say(summary(&generated, num_prompt_tokens, &params, tokenizer));
    Ok(match generated.end {
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::from(interrupt::EXIT_CODE),
    })
}

/// What was generated, and how long its parts took.
#[derive(Default)]
struct Generated {
    num_tokens: usize,
    /// `None` if it was interrupted.
    end: Option<End>,
    /// Until the first token was there, loading included.
    first_token: Duration,
    /// Until the first token was there, loading left out.
    prompt: Duration,
    /// From the first token to the last.
    generation: Duration,
}

/// Prints the text of the engine's request as it comes.
fn stream(
    engine: &mut Engine,
    mut text: Continuation,
    interrupted: &AtomicBool,
    load_start: Instant,
) -> Result<Generated> {
    let mut out = io::stdout().lock();
    let start = Instant::now();
    let mut first_token = None;
    let mut generated = Generated::default();
    while text.end.is_none() && !interrupted.load(Ordering::Relaxed) {
        for output in engine.step() {
            if let Some(Err(error)) = output.finished {
                return Err(error.into());
            }
            let now = Instant::now();
            text.push(output);
            if !text.token_ids.is_empty() {
                let first = *first_token.get_or_insert(now);
                generated.first_token = first - load_start;
                generated.prompt = first - start;
                generated.generation = now - first;
            }
            out.write_all(std::mem::take(&mut text.text).as_bytes())?;
            out.flush()?;
        }
    }
    if text.end.is_none() {
        text.finish();
    }
    writeln!(out, "{}", text.text)?;
    generated.num_tokens = text.token_ids.len();
    generated.end = text.end;
    Ok(generated)
}

/// What was done, at what speed, and why it ended.
fn summary(
    generated: &Generated,
    num_prompt_tokens: usize,
    params: &SamplingParams,
    tokenizer: &Tokenizer,
) -> String {
    let &Generated { num_tokens, ref end, first_token, prompt, generation } = generated;
    let end = match end {
        Some(End::StopString(text)) => format!("ended by {text:?}"),
        Some(End::Engine(reason)) => ending::describe(Some(*reason), tokenizer),
        None => ending::describe(None, tokenizer),
    };
    let first_token = match num_tokens {
        0 => String::new(),
        _ => format!("; first token after {}", seconds(first_token.as_secs_f64())),
    };
    let mut summary = format!(
        "prompt: {}{}{}; generated: {}{}; {end}",
        plural(num_prompt_tokens, "token"),
        speed(num_prompt_tokens, prompt),
        first_token,
        plural(num_tokens, "token"),
        // The first token comes with the prompt.
        speed(num_tokens.saturating_sub(1), generation),
    );
    if !params.is_greedy() {
        let _ = write!(summary, "; --seed {}", params.seed());
    }
    summary
}
