//! `cargo xtask verify`: compares our logits with reference logits that transformers computed.
//!
//! Each reference is computed in both dtypes and along every [`Mode`]: float32 must be the reference up to rounding,
//! bfloat16 must be no further from the float32 reference than transformers' own bfloat16 is.

mod metrics;
mod modes;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use nv_config::load_config;
use nv_qwen3::Qwen3ForCausalLM;
use nv_weights::{Checkpoint, ModelFiles, download_model};
use serde_json::json;

use crate::cases::{CASES, Case};
use crate::reference::{Reference, sha256};

pub use metrics::{Distance, argmax, deviation};
pub use modes::{MODES, Mode};
pub use report::{Greedy, Report, Row};

/// The largest absolute difference of a float32 logit from the reference's, on logits of unit scale.
pub const F32_TOLERANCE: f64 = 2e-4;

/// The arguments of `cargo xtask verify`; without any, every committed reference is verified.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Checkpoint folder, or a model id on the hub
    #[arg(long, value_name = "ID|DIR")]
    model: Option<String>,
    /// Revision of a model id
    #[arg(long, default_value = "main", requires = "model")]
    revision: String,
    /// Reference of that model; without it, the committed reference of the same weights
    #[arg(long, value_name = "FILE", requires = "model")]
    reference: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// Verifies what `args` name and prints what was found.
///
/// # Errors
/// If something can't be computed, or anything failed.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let mut reports = Vec::new();
    let mut keep = |report: Report| -> Result<()> {
        if !args.json {
            writeln!(out, "{report}")?;
        }
        reports.push(report);
        Ok(())
    };
    match &args.model {
        None => {
            for case in CASES {
                keep(verify_case(case)?)?;
            }
        }
        Some(model) => {
            let files = download_model(model, &args.revision)?;
            keep(if let Some(path) = &args.reference {
                verify(&path.display().to_string(), &files, &Reference::read(path)?, false)?
            } else {
                let (name, reference) = committed_reference(&files)?;
                verify(name, &files, &reference, true)?
            })?;
        }
    }
    let failed: Vec<&str> =
        reports.iter().filter(|report| !report.passed()).map(|report| &*report.name).collect();
    if args.json {
        let json = json!({ "passed": failed.is_empty(), "f32_tolerance": F32_TOLERANCE, "references": reports });
        writeln!(out, "{json:#}")?;
    } else {
        writeln!(
            out,
            "pass is, against the reference logits of float32: f32 max abs at most {F32_TOLERANCE:.0e}; \
             bf16 mean abs and KL at most those of transformers' own bfloat16"
        )?;
    }
    ensure!(failed.is_empty(), "verification failed: {}", failed.join(", "));
    Ok(())
}

/// Verifies a committed reference against its checkpoint.
///
/// # Errors
/// If the checkpoint or the reference can't be made, read or run. A difference is no error but a failing report.
pub fn verify_case(case: &Case) -> Result<Report> {
    let scratch = tempfile::tempdir()?;
    let files = ModelFiles::from_dir(case.checkpoint(scratch.path())?)?;
    verify(case.name, &files, &Reference::read(&case.reference_path())?, true)
}

/// The committed reference that was made from exactly these weights.
fn committed_reference(files: &ModelFiles) -> Result<(&'static str, Reference)> {
    let checkpoint_sha256 = sha256(&files.weights)?;
    for case in CASES {
        let reference = Reference::read(&case.reference_path())?;
        if reference.checkpoint_sha256() == checkpoint_sha256 {
            return Ok((case.name, reference));
        }
    }
    bail!(
        "no committed reference was made from these weights\n\
         make one:  cargo xtask reference --model DIR|ID --tokens FILE.json --out FILE.safetensors\n\
         then:      cargo xtask verify --model DIR|ID --reference FILE.safetensors"
    )
}

/// Verifies the model in `files` against `reference`.
///
/// Weights other than the reference's are a failure in themselves if `needs_same_checkpoint`; the logits are compared
/// either way.
///
/// # Errors
/// If the model can't be loaded or run, or `reference` is not for a model of this shape.
pub fn verify(
    name: &str,
    files: &ModelFiles,
    reference: &Reference,
    needs_same_checkpoint: bool,
) -> Result<Report> {
    let config = load_config(&files.config)?;
    let Reference { input_ids, vocab_size, logits_f32, .. } = reference;
    ensure!(
        config.vocab_size == *vocab_size,
        "{name} has logits for {vocab_size} tokens, the model for {}",
        config.vocab_size
    );
    let checkpoint = Arc::new(Checkpoint::open(&files.weights)?);
    let distance = |found: &[f32]| Distance::between(logits_f32, found, *vocab_size);
    let theirs = distance(&reference.logits_bf16);

    let mut rows = Vec::new();
    let mut greedy = None;
    for (dtype, label) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
        let mut model =
            Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, dtype, &Device::Cpu)?;
        if dtype == DType::BF16 {
            rows.push(Row { path: "transformers", dtype: label, distance: theirs, passed: None });
        }
        for mode in MODES {
            let logits = mode
                .logits(&mut model, input_ids)
                .with_context(|| format!("{name}, {}", mode.name))?;
            let ours = distance(&logits);
            let passed = match dtype {
                DType::F32 => ours.max_abs <= F32_TOLERANCE,
                _ => ours.mean_abs <= theirs.mean_abs && ours.kl <= theirs.kl,
            };
            rows.push(Row { path: mode.name, dtype: label, distance: ours, passed: Some(passed) });
        }
        if let (DType::F32, Some((prompt, expected))) = (dtype, &reference.greedy) {
            greedy = Some(compare_greedy(&mut model, prompt, expected)?);
        }
    }
    Ok(Report {
        name: name.to_owned(),
        made_by: reference.made_by(),
        num_tokens: input_ids.len(),
        vocab_size: *vocab_size,
        logit_deviation: deviation(logits_f32),
        same_checkpoint: reference.checkpoint_sha256() == sha256(&files.weights)?,
        needs_same_checkpoint,
        rows,
        greedy,
    })
}

/// Continues `prompt` with the likeliest token each time, until a token is not the `expected` one.
fn compare_greedy(
    model: &mut Qwen3ForCausalLM,
    prompt: &[u32],
    expected: &[u32],
) -> Result<Greedy> {
    let (mut start_pos, mut next) = (0, prompt.to_vec());
    let mut num_equal = 0;
    for &token in expected {
        let input_ids = Tensor::new(next.as_slice(), &Device::Cpu)?.unsqueeze(0)?; // [1, seq_len]
        let logits = model.forward(&input_ids, start_pos)?.squeeze(0)?.to_vec1()?; // [vocab_size]
        if argmax(&logits) != token as usize {
            break;
        }
        num_equal += 1;
        start_pos += next.len();
        next = vec![token];
    }
    Ok(Greedy { num_tokens: expected.len(), num_equal })
}
