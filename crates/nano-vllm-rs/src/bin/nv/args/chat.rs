//! The command line of `nv chat`.

use super::sampling::top_k;
use super::{ComputeArgs, ModelArgs, SamplingArgs};

/// Talk with a model in the terminal; `/help` there tells how.
///
/// Answers go to stdout as they are generated, all else to stderr. If stdin is no terminal, each of its lines is a message.
#[derive(Debug, clap::Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Tell the model how to behave.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    /// After each answer say what it cost, as `--verbose` does too.
    #[arg(long)]
    pub(crate) stats: bool,

    /// Generate at most N tokens in an answer [default: the model's `max_new_tokens`, else as
    /// many as the context has room for; 128 if the model has no chat template, as it may never end].
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,

    /// Divide the logits by T; 0 takes the likeliest token each time [default: the model's].
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f64>,

    /// Sample from the K likeliest tokens; 0 or -1 for all [default: the model's].
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = top_k)]
    top_k: Option<usize>,

    /// Sample from the likeliest tokens that have probability P together [default: the model's].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,

    /// Choose among the possible answers: the same seed, the same answer [default: random].
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,

    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

impl ChatArgs {
    /// What is asked for of sampling; the rest is for `/set`.
    pub(crate) fn sampling(&self) -> SamplingArgs {
        let Self { max_tokens, temperature, top_k, top_p, seed, .. } = *self;
        let mut sampling = SamplingArgs::default();
        (sampling.max_tokens, sampling.seed) = (max_tokens, seed);
        (sampling.temperature, sampling.top_k, sampling.top_p) = (temperature, top_k, top_p);
        sampling
    }
}
