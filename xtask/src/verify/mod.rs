//! `cargo xtask verify`: compares our logits with reference logits that transformers computed.
//!
//! Each reference is computed by every tier of kernels that the machine has, in both dtypes and along every [`Mode`].
//! float32 must be the reference up to rounding, bfloat16 must be no further from the float32 reference than
//! transformers' own bfloat16 is, and within a tier and a dtype all ways must give the same bits. So must an engine, in
//! whatever way it serves.

mod invariance;
mod metrics;
mod modes;
mod report;
mod serving;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use nv_config::{Qwen3Config, load_config};
use nv_kernels::{Isa, Kernels, Pool};
use nv_qwen3::{Cpu, Qwen3ForCausalLM};
use nv_weights::{Checkpoint, Hub, ModelFiles};
use serde_json::json;

use crate::cases::{CASES, Case};
use crate::reference::{Reference, sha256};

pub use invariance::{Invariance, passed, verify_serving};
pub use metrics::{Distance, argmax, deviation, num_other_bits};
pub use modes::{MODES, Mode};
pub use report::{Greedy, Report, Row, Tier};
pub use serving::{
    Circumstances, NUM_ALL_WAYS, Preemption, Served, Serving, Way, random_checkpoint, ways,
};

/// The largest absolute difference of a float32 logit from the reference's, on logits of unit scale.
pub const F32_TOLERANCE: f64 = 2e-4;

/// Heads whose size is no multiple of this are attended by candle, whose sums depend on the batch.
const INVARIANT_HEAD_DIM: usize = 16;

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
    /// Tiers of kernels to verify, separated by commas [default: every one that the machine has]
    #[arg(long, value_name = "TIER", value_delimiter = ',', value_parser = isa)]
    isa: Vec<Isa>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn isa(name: &str) -> Result<Isa> {
    let isa = Isa::ALL.into_iter().find(|isa| isa.to_string() == name);
    isa.with_context(|| format!("use {}", list(&Isa::ALL)))
}

/// Verifies what `args` name and prints what was found.
///
/// # Errors
/// If something can't be computed, anything failed, or the machine lacks a tier that was asked for.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let tiers = chosen(&args.isa)?;
    let mut reports = Vec::new();
    let mut keep = |report: Report| -> Result<()> {
        if !args.json {
            writeln!(out, "{report}")?;
        }
        reports.push(report);
        Ok(())
    };
    let mut serving = Vec::new();
    match &args.model {
        None => {
            for case in CASES {
                keep(verify_case(case, &tiers)?)?;
            }
            // Scalar arithmetic would take minutes: it serves where there is nothing else.
            let serves = |isa: &Isa| *isa != Isa::Scalar || tiers.len() == 1;
            for &isa in tiers.iter().filter(|isa| serves(isa)) {
                serving.extend(verify_serving(isa)?);
            }
        }
        Some(model) => {
            // A config that can't be run is refused before its weights are downloaded.
            let read_config = |path: &Path| -> Result<_> { Ok(load_config(path)?) };
            let hub = Hub::from_env()?.with_progress(true);
            let (files, _) = hub.download_model_with(model, &args.revision, read_config)?;
            keep(if let Some(path) = &args.reference {
                let reference = Reference::read(path)?;
                verify(&path.display().to_string(), &files, &reference, false, &tiers)?
            } else {
                let (name, reference) = committed_reference(&files)?;
                verify(name, &files, &reference, true, &tiers)?
            })?;
        }
    }
    let mut failed: Vec<&str> =
        reports.iter().filter(|report| !report.passed()).map(|report| &*report.name).collect();
    if !serving.is_empty() && !passed(&serving) {
        failed.push("serving");
    }
    let not_served: Vec<Isa> =
        tiers.iter().filter(|isa| serving.iter().all(|row| row.isa != **isa)).copied().collect();
    let (not_asked_for, lacking): (Vec<Isa>, Vec<Isa>) =
        Isa::ALL.into_iter().filter(|isa| !tiers.contains(isa)).partition(|isa| isa.is_available());
    if args.json {
        let json = json!({
            "passed": failed.is_empty(),
            "f32_tolerance": F32_TOLERANCE,
            "tiers": names(&tiers),
            "tiers_not_served": names(&not_served),
            "tiers_not_asked_for": names(&not_asked_for),
            "tiers_not_of_this_machine": names(&lacking),
            "references": reports,
            "serving": serving,
        });
        writeln!(out, "{json:#}")?;
    } else {
        if !serving.is_empty() {
            writeln!(out, "{}", invariance::table(&serving))?;
        }
        let ways: Vec<&str> = MODES.iter().skip(1).map(|mode| mode.name).collect();
        writeln!(
            out,
            "pass is, against the reference logits of float32: f32 max abs at most {F32_TOLERANCE:.0e}; \
             bf16 mean abs and KL at most those of transformers' own bfloat16;\n\
             and every other way gives the bits of the whole prompt: {}\n\
             tiers verified: {}; of them not in serving ({}): {}; not asked for: {}; not of this machine: {}",
            ways.join(", "),
            list(&tiers),
            if args.model.is_some() {
                "which is for the committed checkpoints"
            } else {
                "scalar takes minutes"
            },
            list(&not_served),
            list(&not_asked_for),
            list(&lacking),
        )?;
    }
    ensure!(failed.is_empty(), "verification failed: {}", failed.join(", "));
    Ok(())
}

/// The tiers of this machine, weakest first.
pub fn tiers() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

/// The tiers that were `asked_for`, or all of this machine if none was; weakest first.
fn chosen(asked_for: &[Isa]) -> Result<Vec<Isa>> {
    let tiers = tiers();
    if let Some(isa) = asked_for.iter().find(|isa| !tiers.contains(isa)) {
        bail!("--isa: this machine does not have {isa}; it has {}", list(&tiers));
    }
    Ok(tiers.into_iter().filter(|isa| asked_for.is_empty() || asked_for.contains(isa)).collect())
}

fn names(tiers: &[Isa]) -> Vec<String> {
    tiers.iter().map(Isa::to_string).collect()
}

/// `avx2, avx512`, or `none`.
pub(crate) fn list(tiers: &[Isa]) -> String {
    if tiers.is_empty() { "none".to_owned() } else { names(tiers).join(", ") }
}

/// Verifies a committed reference against its checkpoint, in each of `tiers`.
///
/// # Errors
/// If the checkpoint or the reference can't be made, read or run. A difference is no error but a failing report.
pub fn verify_case(case: &Case, tiers: &[Isa]) -> Result<Report> {
    let scratch = tempfile::tempdir()?;
    let files = ModelFiles::from_dir(case.checkpoint(scratch.path())?)?;
    verify(case.name, &files, &Reference::read(&case.reference_path())?, true, tiers)
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

/// Verifies the model in `files` against `reference`, in each of `tiers`.
///
/// Weights other than the reference's are a failure in themselves if `needs_same_checkpoint`; the logits are compared
/// either way.
///
/// # Errors
/// If the model can't be loaded or run, `reference` is not for a model of this shape, or the machine lacks a tier.
pub fn verify(
    name: &str,
    files: &ModelFiles,
    reference: &Reference,
    needs_same_checkpoint: bool,
    tiers: &[Isa],
) -> Result<Report> {
    let config = load_config(&files.config)?;
    let Reference { input_ids, vocab_size, logits_f32, logits_bf16, .. } = reference;
    ensure!(
        config.vocab_size == *vocab_size,
        "{name} has logits for {vocab_size} tokens, the model for {}",
        config.vocab_size
    );
    let subject = Subject {
        checkpoint: Arc::new(Checkpoint::open(&files.weights)?),
        config,
        reference,
        transformers: Distance::between(logits_f32, logits_bf16, *vocab_size),
    };
    let verified = tiers.iter().map(|&isa| {
        subject.verify_tier(isa).with_context(|| format!("cannot verify {name} with {isa}"))
    });
    Ok(Report {
        name: name.to_owned(),
        made_by: reference.made_by(),
        num_tokens: input_ids.len(),
        vocab_size: *vocab_size,
        logit_deviation: deviation(logits_f32),
        same_checkpoint: reference.checkpoint_sha256() == sha256(&files.weights)?,
        needs_same_checkpoint,
        transformers_bf16: subject.transformers,
        why_bits_may_differ: subject.why_bits_may_differ(),
        tiers: verified.collect::<Result<_>>()?,
    })
}

/// A checkpoint and what its logits should be.
struct Subject<'a> {
    config: Qwen3Config,
    checkpoint: Arc<Checkpoint>,
    reference: &'a Reference,
    /// How far transformers' own bfloat16 is from its float32.
    transformers: Distance,
}

impl Subject<'_> {
    fn verify_tier(&self, isa: Isa) -> Result<Tier> {
        let mut rows = Vec::new();
        for dtype in [DType::F32, DType::BF16] {
            rows.extend(self.verify_modes(isa, dtype)?);
        }
        let greedy = match &self.reference.greedy {
            Some((prompt, expected)) => {
                let mut model = self.model(isa, DType::F32, Pool::default_threads())?;
                Some(compare_greedy(&mut model, prompt, expected)?)
            }
            None => None,
        };
        Ok(Tier { isa, rows, greedy })
    }

    /// A row for each of [`MODES`].
    fn verify_modes(&self, isa: Isa, dtype: DType) -> Result<Vec<Row>> {
        let Reference { input_ids, vocab_size, logits_f32, .. } = self.reference;
        let promised = self.why_bits_may_differ().is_none();
        let mut model = self.model(isa, dtype, Pool::default_threads())?;
        let mut whole: Option<Vec<f32>> = None;
        let mut rows = Vec::new();
        for mode in MODES {
            let logits = match mode.threads {
                None => mode.logits(&mut model, input_ids),
                Some(threads) => {
                    mode.logits(&mut self.model(isa, dtype, threads.get())?, input_ids)
                }
            };
            let logits = logits.with_context(|| mode.name)?;
            let distance = Distance::between(logits_f32, &logits, *vocab_size);
            let is_close = match dtype {
                DType::F32 => distance.max_abs <= F32_TOLERANCE,
                _ => {
                    distance.mean_abs <= self.transformers.mean_abs
                        && distance.kl <= self.transformers.kl
                }
            };
            let other_bits = whole.as_ref().map(|whole| num_other_bits(whole, &logits));
            rows.push(Row {
                path: mode.name,
                dtype: dtype.as_str(),
                distance,
                num_other_bits: other_bits,
                passed: is_close && (!promised || other_bits.unwrap_or(0) == 0),
            });
            whole.get_or_insert(logits);
        }
        Ok(rows)
    }

    fn model(&self, isa: Isa, dtype: DType, threads: usize) -> Result<Qwen3ForCausalLM> {
        let kernels = Kernels::for_isa(isa).context("this machine does not have it")?;
        let cpu = Cpu::with_kernels(kernels, threads)?;
        Ok(Qwen3ForCausalLM::from_checkpoint_on(&self.config, &self.checkpoint, dtype, cpu)?)
    }

    /// Why the ways of [`MODES`] may differ in bits; `None` if they must not.
    fn why_bits_may_differ(&self) -> Option<String> {
        let head_dim = self.config.head_dim;
        (!head_dim.is_multiple_of(INVARIANT_HEAD_DIM)).then(|| {
            format!("head_dim {head_dim} is no multiple of {INVARIANT_HEAD_DIM}, so candle attends")
        })
    }
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

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches as _};

    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        let command = Args::augment_args(Command::new("verify").no_binary_name(true));
        Args::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    #[test]
    fn the_tiers_of_a_run_are_those_asked_for_or_all() {
        let check = |args: &[&str], expected: &[Isa]| {
            assert_eq!(chosen(&parse(args).unwrap().isa).unwrap(), expected, "{args:?}");
        };
        let (all, best) = (tiers(), Isa::detect().to_string());
        check(&[], &all);
        check(&["--isa", "scalar"], &[Isa::Scalar]);
        let mut both = vec![Isa::Scalar, Isa::detect()];
        both.dedup();
        check(&["--isa", &format!("{best},scalar,{best}")], &both);
        check(&["--isa", &best, "--isa", "scalar"], &both);
    }

    #[test]
    fn a_tier_that_does_not_exist_or_that_the_machine_lacks_is_refused() {
        for name in ["sse9", "AVX2", "scalar,sse9", ""] {
            let error = parse(&["--isa", name]).unwrap_err().to_string();
            assert!(error.contains("use scalar, avx2, avxvnni, avx512, avx512bf16"), "{error}");
        }
        for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
            let error = chosen(&[Isa::Scalar, isa]).unwrap_err().to_string();
            let has = list(&tiers());
            assert_eq!(error, format!("--isa: this machine does not have {isa}; it has {has}"));
        }
    }
}
