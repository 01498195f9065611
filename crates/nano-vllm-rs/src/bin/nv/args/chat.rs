//! The command line of `nv chat`.

use clap::builder::NonEmptyStringValueParser;
use clap::value_parser;

use super::sampling::top_k;
use super::{DeviceArg, DtypeArg, SamplingArgs};

/// Talk with a model in the terminal; `/help` there tells how.
///
/// Answers go to stdout as they are generated, all else to stderr. If stdin is no terminal, each of its lines is a message.
#[derive(Debug, clap::Args)]
pub(crate) struct ChatArgs {
    /// Folder or Hugging Face id of the model [default: the demo checkpoint of the repository].
    #[arg(value_name = "ID|DIR", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) model: Option<String>,

    /// Branch, tag or commit of a model of the hub [default: main].
    #[arg(long, value_name = "REVISION", requires = "model")]
    pub(crate) revision: Option<String>,

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

    /// What to compute in [default: bf16 for a checkpoint stored in bf16, else f32].
    #[arg(long)]
    pub(crate) dtype: Option<DtypeArg>,

    /// What to compute on.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: DeviceArg,

    /// CPU threads [default: one a physical core].
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
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
