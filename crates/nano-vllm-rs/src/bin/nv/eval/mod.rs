//! `nv eval`: how well a model predicts a text, and how far it is from a reference.
//!
//! `measure` runs the models over the text, `statistics` has the arithmetic, `report` prints.

mod measure;
mod report;
mod statistics;

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use nano_vllm_rs::engine::{self, TokenId};
use nano_vllm_rs::kernels::Pool;
use nano_vllm_rs::model::{Cpu, DType, Device};
use nano_vllm_rs::text::Tokenizer;

use crate::args::EvalArgs;
use crate::format::grouped;
use crate::model::{Model, formats};
use crate::{copies, interrupt, print_report, say};
use measure::{Models, Text};
use report::Report;

/// Tokens a window, if the models have as many positions.
const DEFAULT_CONTEXT: usize = 512;

pub(crate) fn run(args: &EvalArgs, verbose: bool) -> Result<ExitCode> {
    // First what takes no time, and only then perhaps a download.
    let text = read(&args.text)?;
    let model = Model::open(&args.model, args.revision.as_deref())?;
    let reference = args.reference.as_deref().map(|name| Model::open(name, None)).transpose()?;
    let tokenizer = model.tokenizer()?;
    let token_ids = encode(&text, args, (&model, &tokenizer), reference.as_ref())?;
    let context = context(args.context, &model, reference.as_ref())?;

    // Only now: until then, Ctrl-C ends a download as it ends any process.
    let interrupted = interrupt::flag()?;
    let dtype = model.dtype(args.cpu.dtype);
    if verbose {
        say(copies::table(&model.config, &model.checkpoint, dtype).to_string().trim_end());
    }
    let cpu = Cpu::new(args.cpu.threads.map_or_else(Pool::default_threads, usize::from))?;
    let load = |model: &Model, dtype, quantize| {
        model.load_on(&model.checkpoint, dtype, &Device::Cpu, Some(cpu.clone()), quantize)
    };
    let qwen3 = load(&model, dtype, args.cpu.quantize)?;
    let reference = reference.map(|reference| load(&reference, DType::F32, None)).transpose()?;
    let mut report = Report {
        model: &args.model,
        dtype: if dtype == DType::BF16 { "bf16" } else { "f32" },
        formats: formats(&qwen3),
        quantize: args.cpu.quantize,
        reference: args.reference.as_deref(),
        text: &args.text,
        num_tokens: token_ids.len(),
        context,
        measured: measure::Measured::default(),
    };

    let max_windows = args.windows.map_or(usize::MAX, |windows| windows as usize);
    let text = Text { token_ids: &token_ids, tokenizer: &tokenizer, context, max_windows };
    let mut models = Models { model: qwen3, reference, cpu };
    report.measured = models.measure(&text, interrupted)?;
    if report.measured.model.num_tokens > 0 {
        print_report(&report, args.json.then(|| report.to_json()))?;
    }
    let is_whole = !report.measured.interrupted;
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::from(interrupt::EXIT_CODE) })
}

/// What is in the file `path`, or on stdin.
fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let found = if path == Path::new("-") {
        io::stdin().read_to_end(&mut bytes).map(drop)
    } else {
        fs::read(path).map(|content| bytes = content)
    };
    found.with_context(|| format!("cannot read the text from {}", path.display()))?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("the text in {} is not UTF-8", path.display()))?;
    ensure!(!text.is_empty(), "the text in {} is empty", path.display());
    Ok(text)
}

/// The tokens of `text`, which both models must know.
fn encode(
    text: &str,
    args: &EvalArgs,
    (model, tokenizer): (&Model, &Tokenizer),
    reference: Option<&Model>,
) -> Result<Vec<TokenId>> {
    let token_ids = tokenizer.encode(text, false)?;
    let num_logits = model.config.vocab_size;
    if let Some(&token_id) = token_ids.iter().find(|&&token_id| token_id as usize >= num_logits) {
        return Err(engine::Error::TokenId { token_id, num_logits })
            .context("the tokenizer is not the model's");
    }
    ensure!(
        token_ids.len() > 1,
        "the text in {} is a single token: there is none to predict it from",
        args.text.display()
    );
    if let Some(reference) = reference {
        let of_reference = reference.config.vocab_size;
        ensure!(
            of_reference == num_logits,
            "--reference must have the model's tokenizer: expected a vocab_size of {num_logits}, found {of_reference}"
        );
        ensure!(
            reference.tokenizer()?.encode(text, false)? == token_ids,
            "--reference must have the model's tokenizer: its own makes other tokens of the text"
        );
    }
    Ok(token_ids)
}

/// Tokens a window.
fn context(wanted: Option<u32>, model: &Model, reference: Option<&Model>) -> Result<usize> {
    let positions = |model: &Model| model.config.max_position_embeddings;
    let of_model = ("model", positions(model));
    let of_reference = reference.map(|reference| ("reference", positions(reference)));
    let (whose, most) = of_reference
        .into_iter()
        .fold(of_model, |least, other| if other.1 < least.1 { other } else { least });
    let Some(wanted) = wanted else { return Ok(DEFAULT_CONTEXT.min(most)) };
    let wanted = wanted as usize;
    ensure!(
        wanted <= most,
        "--context: the {whose} has {} positions, found {}",
        grouped(most as u64),
        grouped(wanted as u64)
    );
    Ok(wanted)
}
