//! Models over a text, window by window.
//!
//! Memory is bounded, whatever the window: hidden states of some hundred tokens at a time, logits of a few.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use nano_vllm_rs::engine::TokenId;
use nano_vllm_rs::model::{Cpu, Device, Qwen3ForCausalLM, Tensor};
use nano_vllm_rs::text::Tokenizer;

use super::statistics::{Comparison, Distribution, Likelihood, NotFinite};
use crate::model::PREFILL_CHUNK;
use crate::progress;

/// Tokens whose logits are there at once: enough for the head's matrix to be read seldom, few enough for a vocabulary of 151,936 to
/// take some megabytes.
const LOGIT_ROWS: usize = 64;

/// What is measured, and what it is measured against; both compute with `cpu`.
pub(super) struct Models {
    pub(super) model: Qwen3ForCausalLM,
    pub(super) reference: Option<Qwen3ForCausalLM>,
    pub(super) cpu: Cpu,
}

/// What is predicted, `context` tokens a window.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub(super) token_ids: &'a [TokenId],
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) context: usize,
    pub(super) max_windows: usize,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) num_windows: usize,
    pub(super) model: Likelihood,
    /// If there is a reference.
    pub(super) comparison: Option<Comparison>,
    /// Whether the user ended it before everything was measured.
    pub(super) interrupted: bool,
}

impl Text<'_> {
    /// Windows with something to predict: a last token alone is left out.
    fn windows(&self) -> impl Iterator<Item = &[TokenId]> {
        let windows = self.token_ids.chunks(self.context).take(self.max_windows);
        windows.filter(|window| window.len() > 1)
    }
}

impl Models {
    /// Has the models predict `text`, until its end or until it was `interrupted`.
    ///
    /// # Errors
    /// If a model fails, or has a logit that is not finite.
    pub(super) fn measure(&mut self, text: &Text, interrupted: &AtomicBool) -> Result<Measured> {
        let comparison = self.reference.is_some().then(Comparison::default);
        let mut measured = Measured { comparison, ..Measured::default() };
        let num_predicted = text.windows().map(|window| window.len() - 1).sum();
        let bar = progress::token_bar("evaluating", num_predicted);
        for (number, window) in (1..).zip(text.windows()) {
            measured.num_windows = number;
            // The last one is predicted, and predicts nothing.
            let inputs = &window[..window.len() - 1];
            for (chunk, start) in inputs.chunks(PREFILL_CHUNK).zip((0..).step_by(PREFILL_CHUNK)) {
                if interrupted.load(Ordering::Relaxed) {
                    measured.interrupted = true;
                    return Ok(measured);
                }
                let targets = &window[start + 1..][..chunk.len()];
                let chunk = Chunk { window: number, start, token_ids: chunk, targets };
                self.add(chunk, text.tokenizer, &mut measured)?;
                bar.inc(targets.len() as u64);
                bar.set_message(format!("perplexity {:.4}", measured.model.perplexity()));
            }
            tracing::debug!(window = number, num_tokens = measured.model.num_tokens, "evaluated");
        }
        Ok(measured)
    }

    /// Has the models go on by a chunk of a window.
    fn add(&mut self, chunk: Chunk, tokenizer: &Tokenizer, measured: &mut Measured) -> Result<()> {
        let hidden_states = chunk.hidden_states(&mut self.model)?;
        let of_reference = self.reference.as_mut().map(|model| chunk.hidden_states(model));
        let of_reference = of_reference.transpose()?;
        for first in (0..chunk.targets.len()).step_by(LOGIT_ROWS) {
            let targets = &chunk.targets[first..];
            let targets = &targets[..targets.len().min(LOGIT_ROWS)];
            let logits = |model: &Qwen3ForCausalLM, hidden_states: &Tensor| -> Result<_> {
                let rows = hidden_states.narrow(0, first, targets.len())?;
                Ok(model.compute_logits(&rows)?.flatten_all()?.to_vec1::<f32>()?)
            };
            let of_model = logits(&self.model, &hidden_states)?;
            let of_reference = match (&self.reference, &of_reference) {
                (Some(model), Some(hidden_states)) => Some(logits(model, hidden_states)?),
                _ => None,
            };
            for (row, found) in judge(&self.cpu, targets, &of_model, of_reference.as_deref()) {
                let judged = match found {
                    Ok(judged) => judged,
                    Err((whose, NotFinite { token_id, logit })) => bail!(
                        "window {}, after token {}: the {whose}'s logit of token id {token_id} is {logit}",
                        chunk.window,
                        chunk.start + first + row + 1
                    ),
                };
                let num_bytes = tokenizer.token_bytes(targets[row]).len();
                measured.model.add(judged.logprob, num_bytes);
                if let (Some(comparison), Some(compared)) =
                    (&mut measured.comparison, judged.compared)
                {
                    comparison.reference.add(compared.logprob, num_bytes);
                    comparison.add(compared.divergence, compared.agrees);
                }
            }
        }
        Ok(())
    }
}

/// Tokens of a window, and those that follow each of them.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    /// Counted from 1.
    window: usize,
    /// Tokens of the window before it.
    start: usize,
    token_ids: &'a [TokenId],
    targets: &'a [TokenId],
}

impl Chunk<'_> {
    /// Shapes: `[num_tokens, hidden_size]`.
    fn hidden_states(&self, model: &mut Qwen3ForCausalLM) -> Result<Tensor> {
        let input_ids = Tensor::new(self.token_ids, &Device::Cpu)?.unsqueeze(0)?; // [1, num_tokens]
        Ok(model.model_mut().forward(&input_ids, self.start)?.squeeze(0)?)
    }
}

/// What the logits before a token say of it.
#[derive(Debug, Clone, Copy)]
struct Judged {
    logprob: f64,
    /// If there is a reference.
    compared: Option<Compared>,
}

#[derive(Debug, Clone, Copy)]
struct Compared {
    /// By the reference.
    logprob: f64,
    /// KL(reference || model).
    divergence: f64,
    agrees: bool,
}

/// A judgement, or whose logit is not finite.
type Judgement = Result<Judged, (&'static str, NotFinite)>;

/// Judges each of `targets` by the row of logits of its number, on the threads of `cpu`.
fn judge(
    cpu: &Cpu,
    targets: &[TokenId],
    of_model: &[f32],
    of_reference: Option<&[f32]>,
) -> impl Iterator<Item = (usize, Judgement)> {
    let vocab_size = of_model.len() / targets.len();
    let row = |logits, row: usize| -> &[f32] {
        let logits: &[f32] = logits;
        &logits[row * vocab_size..][..vocab_size]
    };
    let judged: Vec<OnceLock<Judgement>> = targets.iter().map(|_| OnceLock::new()).collect();
    cpu.pool().run(targets.len(), |i| {
        let of_reference = of_reference.map(|logits| row(logits, i));
        let judgement = judge_one(targets[i] as usize, row(of_model, i), of_reference);
        judged[i].set(judgement).expect("the pool runs a task once");
    });
    judged
        .into_iter()
        .enumerate()
        .map(|(row, judgement)| (row, judgement.into_inner().expect("the pool has run every task")))
}

fn judge_one(target: usize, of_model: &[f32], of_reference: Option<&[f32]>) -> Judgement {
    let model = Distribution::new(of_model).map_err(|error| ("model", error))?;
    let compare = |logits| {
        let reference = Distribution::new(logits).map_err(|error| ("reference", error))?;
        Ok(Compared {
            logprob: reference.logprob(target),
            divergence: reference.divergence(&model),
            agrees: reference.agrees(&model),
        })
    };
    let compared = of_reference.map(compare).transpose()?;
    Ok(Judged { logprob: model.logprob(target), compared })
}
