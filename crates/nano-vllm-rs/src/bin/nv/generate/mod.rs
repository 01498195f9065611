//! `nv generate`: prompts in, text out.
//!
//! `prompts` reads what is asked, `continuation` makes text of tokens; `stream` shows a single text as it comes, `batch` serves many
//! requests together, `answer` is what comes of one.

mod answer;
mod batch;
mod continuation;
mod prompts;
mod stream;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use nano_vllm_rs::engine::{Engine, EngineConfig, Request};
use nano_vllm_rs::model::Qwen3ForCausalLM;
use nano_vllm_rs::text::Tokenizer;

use crate::args::GenerateArgs;
use crate::model::{Model, PREFILL_CHUNK};
use crate::prompt::Encoded;
use crate::{copies, interrupt, say};
use answer::Job;
use prompts::Input;

/// How to run a larger one.
const LARGER: &str =
    r#"cargo run --release -- generate --model Qwen/Qwen3-0.6B "In the beginning""#;

pub(crate) fn run(args: &GenerateArgs, verbose: bool) -> Result<ExitCode> {
    let inputs = Input::read(args)?;
    let start = Instant::now();
    let model = Model::open_or_demo(&args.model, "--model", LARGER)?;
    let text = || load_text(&model, &inputs);
    let (text, qwen3) = model.load_beside(args.compute, text);
    let Text { tokenizer, prompts } = text?;
    let recommended = model.generation_config()?.with_eos_token(tokenizer.eos_token_id());
    let job = |(input, prompt)| Job::new(input, prompt, &recommended);
    let mut jobs: Vec<Job> = inputs.into_iter().zip(prompts).map(job).collect();
    // A single text without more to tell is shown as it comes; its errors are the command's.
    let single = match &jobs[..] {
        [job] if !args.prints_json() && job.n() == 1 => {
            jobs.pop().map(|job| job.request).transpose()?
        }
        _ => None,
    };
    let qwen3 = qwen3?;
    if verbose {
        say(copies::report(&model, args.compute));
    }
    let served = match &single {
        Some(single) => vec![&single.request],
        None => jobs.iter().filter_map(Job::request).collect(),
    };
    let config = config(args, &qwen3, &served);
    let mut engine = Engine::new(qwen3, config)?;
    if verbose {
        say(engine.kv_cache_size());
    }
    let interrupted = interrupt::flag()?;
    match single {
        Some(single) => stream::run(&mut engine, single, &tokenizer, interrupted, start),
        None => batch::run(&mut engine, jobs, args.prints_json(), &tokenizer, interrupted),
    }
}

/// An engine with room for `requests`, or for as many of them as memory allows.
fn config(args: &GenerateArgs, qwen3: &Qwen3ForCausalLM, requests: &[&Request]) -> EngineConfig {
    let defaults = match requests {
        [_] => EngineConfig {
            max_num_batched_tokens: PREFILL_CHUNK,
            enable_prefix_caching: false,
            ..EngineConfig::default()
        },
        _ => EngineConfig::default(),
    };
    let lens = requests.iter().flat_map(|request| {
        let max_tokens = request.params.max_tokens().unwrap_or(usize::MAX);
        let len = request.prompt_token_ids.len().saturating_add(max_tokens);
        std::iter::repeat_n(len, request.params.n())
    });
    args.engine.config(defaults, qwen3, lens)
}

/// What the model is to go on from, and what turns its tokens into text.
struct Text {
    tokenizer: Tokenizer,
    prompts: Vec<Result<Encoded>>,
}

fn load_text(model: &Model, inputs: &[Input]) -> Result<Text> {
    let tokenizer = model.tokenizer()?;
    let template =
        if inputs.iter().any(Input::needs_template) { model.chat_template()? } else { None };
    let encode = |input: &Input| input.encode(template.as_ref(), &tokenizer);
    let prompts = inputs.iter().map(encode).collect();
    Ok(Text { tokenizer, prompts })
}
