//! `nv generate`: a prompt in, text out as it is generated.

use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write as _};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nano_vllm_rs::config::GenerationConfig;
use nano_vllm_rs::engine::{
    Engine, EngineConfig, FinishReason, KvCacheMemory, Request, SamplingParams, TokenId,
};
use nano_vllm_rs::model::Qwen3ForCausalLM;
use nano_vllm_rs::text::{ChatMessage, ChatOptions, ChatTemplate, Tokenizer};

use crate::args::{DeviceArg, GenerateArgs};
use crate::format::{plural, seconds};
use crate::model::Model;
use crate::{copies, interrupt, say};

/// How to run a larger one.
const LARGER: &str =
    r#"cargo run --release -- generate --model Qwen/Qwen3-0.6B "In the beginning""#;

/// What `--max-tokens` is if neither the user nor the model says.
const DEFAULT_MAX_TOKENS: usize = 256;

/// Prompt tokens that are computed at once: bounds the memory that a long prompt takes, and the wait for Ctrl-C.
const PREFILL_CHUNK: usize = 256;

pub(crate) fn run(args: &GenerateArgs, verbose: bool) -> Result<ExitCode> {
    let prompt = prompt(args)?;
    let start = Instant::now();
    let model = open(args)?;
    let (text, qwen3) = load(args, &model, &prompt);
    let Text { tokenizer, prompt } = text?;
    let params = sampling_params(args, &model.generation_config()?)?;
    let qwen3 = qwen3?;
    if verbose {
        say(copied(&model, args));
    }
    let mut engine = engine(qwen3, prompt.len(), &params)?;
    if verbose {
        say(engine.kv_cache_size());
    }
    engine.add_request(Request::new(prompt.clone(), params.clone()))?;
    let generated = stream(&mut engine, &tokenizer, interrupt::flag()?, start)?;
    say(summary(&generated, prompt.len(), &params, &tokenizer));
    Ok(match generated.finish_reason {
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::from(interrupt::EXIT_CODE),
    })
}

/// An engine for one request.
fn engine(
    qwen3: Qwen3ForCausalLM,
    num_prompt_tokens: usize,
    params: &SamplingParams,
) -> Result<Engine> {
    let room = qwen3.config().max_position_embeddings.saturating_sub(num_prompt_tokens);
    let max_tokens = params.max_tokens().unwrap_or(room).min(room);
    Ok(Engine::new(
        qwen3,
        EngineConfig {
            kv_cache_memory: KvCacheMemory::Tokens((num_prompt_tokens + max_tokens).max(2)),
            max_num_batched_tokens: PREFILL_CHUNK,
            max_num_seqs: 1,
            enable_prefix_caching: false,
            ..EngineConfig::default()
        },
    )?)
}

/// What the model is to go on from, and what turns its tokens into text.
struct Text {
    tokenizer: Tokenizer,
    prompt: Vec<TokenId>,
}

/// Prepares text and weights at the same time: parsing a tokenizer takes longer than all the rest.
fn load(
    args: &GenerateArgs,
    model: &Model,
    prompt: &str,
) -> (Result<Text>, Result<Qwen3ForCausalLM>) {
    let text_is_ready = AtomicBool::new(false);
    thread::scope(|scope| {
        let qwen3 = scope.spawn(|| {
            let qwen3 = model.load(args.dtype, args.device, args.threads);
            model.checkpoint.prefetch(&text_is_ready);
            qwen3
        });
        let text = load_text(args, model, prompt);
        text_is_ready.store(true, Ordering::Relaxed);
        (text, qwen3.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn load_text(args: &GenerateArgs, model: &Model, prompt: &str) -> Result<Text> {
    let tokenizer = model.tokenizer()?;
    let template = if args.raw { None } else { model.chat_template()? };
    let prompt = encode(prompt, template.as_ref(), &tokenizer)?;
    Ok(Text { tokenizer, prompt })
}

/// Which weights the model is computed from copies of.
fn copied(model: &Model, args: &GenerateArgs) -> String {
    match args.device {
        DeviceArg::Cpu => {
            let dtype = model.dtype(args.dtype);
            copies::table(&model.config, &model.checkpoint, dtype).to_string().trim_end().to_owned()
        }
        DeviceArg::Cuda | DeviceArg::Metal => "weights copied to the device: all".to_owned(),
    }
}

/// The user's words.
fn prompt(args: &GenerateArgs) -> Result<String> {
    let Some(path) = &args.prompt_file else {
        return Ok(args.prompt.clone().unwrap_or_default());
    };
    let prompt = if path == Path::new("-") {
        io::read_to_string(io::stdin()).context("cannot read the prompt from stdin")?
    } else {
        fs::read_to_string(path)
            .with_context(|| format!("cannot read the prompt from {}", path.display()))?
    };
    // An editor ends every file with a newline; it is no part of what was meant.
    let meant = prompt.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    Ok(meant.unwrap_or(&prompt).to_owned())
}

fn open(args: &GenerateArgs) -> Result<Model> {
    match &args.model {
        Some(name) => Model::open(name, args.revision.as_deref()),
        None => Model::open_demo("--model", LARGER),
    }
}

/// The tokens that the model is to go on from.
fn encode(
    prompt: &str,
    template: Option<&ChatTemplate>,
    tokenizer: &Tokenizer,
) -> Result<Vec<TokenId>> {
    let Some(template) = template else {
        return Ok(tokenizer.encode(prompt, true)?);
    };
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let conversation = template.render(&[ChatMessage::new("user", prompt)], &options)?;
    Ok(tokenizer.encode(&conversation, false)?)
}

/// What the user asks for, and what the model's makers recommend where the user is silent.
fn sampling_params(args: &GenerateArgs, recommended: &GenerationConfig) -> Result<SamplingParams> {
    let samples = recommended.do_sample || args.top_k.is_some() || args.top_p.is_some();
    let temperature = if samples { recommended.temperature.unwrap_or(1.0) } else { 0.0 };
    let max_tokens = recommended.max_new_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    Ok(SamplingParams::default()
        .with_temperature(args.temperature.unwrap_or(temperature))?
        .with_top_k(args.top_k.or(recommended.top_k).unwrap_or(0))
        .with_top_p(args.top_p.or(recommended.top_p).unwrap_or(1.0))?
        .with_min_p(recommended.min_p.unwrap_or(0.0))?
        .with_repetition_penalty(recommended.repetition_penalty.unwrap_or(1.0))?
        .with_seed(args.seed.unwrap_or_else(|| RandomState::new().hash_one(())))
        .with_max_tokens(args.max_tokens.unwrap_or(max_tokens))?
        .with_eos_token_ids(recommended.eos_token_id.clone()))
}

/// What was generated, and how long its parts took.
#[derive(Default)]
struct Generated {
    num_tokens: usize,
    /// `None` if it was interrupted.
    finish_reason: Option<FinishReason>,
    /// Until the first token was there, loading included.
    first_token: Duration,
    /// Until the first token was there, loading left out.
    prompt: Duration,
    /// From the first token to the last.
    generation: Duration,
}

/// Prints the text of the engine's request as it comes, from a model that began to be loaded at `load_start`.
fn stream(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    interrupted: &AtomicBool,
    load_start: Instant,
) -> Result<Generated> {
    let mut out = io::stdout().lock();
    let mut text = tokenizer.stream(true);
    let start = Instant::now();
    let mut first_token = None;
    let mut generated = Generated::default();
    while engine.has_unfinished_requests() && !interrupted.load(Ordering::Relaxed) {
        for output in engine.step() {
            generated.finish_reason = output.finished.transpose()?;
            let now = Instant::now();
            for token_id in output.token_ids {
                let first = *first_token.get_or_insert(now);
                generated.num_tokens += 1;
                generated.first_token = first - load_start;
                generated.prompt = first - start;
                generated.generation = now - first;
                out.write_all(text.push(token_id).as_bytes())?;
            }
            out.flush()?;
        }
    }
    writeln!(out, "{}", text.finish())?;
    Ok(generated)
}

/// What was done, at what speed, and why it ended.
fn summary(
    generated: &Generated,
    num_prompt_tokens: usize,
    params: &SamplingParams,
    tokenizer: &Tokenizer,
) -> String {
    let &Generated { num_tokens, finish_reason, first_token, prompt, generation } = generated;
    let end = match finish_reason {
        Some(FinishReason::Stop { token_id }) => match tokenizer.id_to_token(token_id) {
            Some(token) => format!("ended by {token}"),
            None => format!("ended by token {token_id}"),
        },
        Some(FinishReason::Length) => "cut at --max-tokens".into(),
        Some(FinishReason::ContextFull) => "cut at the end of the model's context".into(),
        None => "interrupted".into(),
        reason => format!("{reason:?}"),
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

/// `, 12.3 tok/s`, if there is anything to tell.
fn speed(num_tokens: usize, time: Duration) -> String {
    if num_tokens == 0 || time.is_zero() {
        return String::new();
    }
    format!(", {:.1} tok/s", num_tokens as f64 / time.as_secs_f64())
}
