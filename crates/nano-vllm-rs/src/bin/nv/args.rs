//! The command line, typed: what can be refused without opening a file is refused here.

use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum, value_parser};
use nano_vllm_rs::engine::SamplingParams;
use nv_synth::PublishedSize;

/// Qwen3 on the command line.
#[derive(Debug, Parser)]
#[command(name = "nv", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Say which weights had to be copied, and why.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Generate(GenerateArgs),
    Inspect(InspectArgs),
    Bench(BenchArgs),
}

/// Answer a prompt, or continue it if the model has no chat template.
///
/// The text goes to stdout as it is generated. Sampling follows the model's `generation_config.json` where no option says otherwise.
#[derive(Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    /// What to answer or continue.
    #[arg(required_unless_present = "prompt_file", conflicts_with = "prompt_file")]
    pub(crate) prompt: Option<String>,

    /// Read the prompt from a file, `-` for stdin; a newline at its end is left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Folder or Hugging Face id of the model [default: the demo checkpoint of the repository].
    #[arg(long, value_name = "ID|DIR", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) model: Option<String>,

    /// Branch, tag or commit of a model of the hub [default: main].
    #[arg(long, value_name = "REVISION", requires = "model")]
    pub(crate) revision: Option<String>,

    /// Generate at most N tokens [default: the model's `max_new_tokens`, else 256].
    #[arg(long, value_name = "N", value_parser = max_tokens)]
    pub(crate) max_tokens: Option<usize>,

    /// Divide the logits by T; 0 takes the likeliest token each time [default: the model's].
    #[arg(long, value_name = "T", value_parser = temperature, allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,

    /// Sample from the K likeliest tokens; 0 for all [default: the model's].
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) top_k: Option<usize>,

    /// Sample from the likeliest tokens that have probability P together [default: the model's].
    #[arg(long, value_name = "P", value_parser = top_p, allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,

    /// Choose among the possible texts: the same seed, the same text [default: random].
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

    /// Continue the prompt as it stands, without the model's chat template.
    #[arg(long)]
    pub(crate) raw: bool,
}

/// Show what a model is: its config, its tensors, the memory that it takes.
///
/// No more than the config and the headers of the weight files are read. A model of the hub is downloaded first.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Folder or Hugging Face id of the model.
    #[arg(value_name = "DIR|ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) model: String,

    /// Branch, tag or commit of a model of the hub [default: main].
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,

    /// List every tensor by itself, not one line for the same tensor of all layers.
    #[arg(long)]
    pub(crate) all: bool,
}

/// Measure a model on the CPU, and the machine's own limits beside it.
///
/// Every row gives its time, the time that the machine's limits would allow, and how close the two are. Limits are measured again
/// around each repetition, so that a machine that gets slower or faster meanwhile doesn't distort the ratio. Results go to stdout,
/// progress to stderr.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Folder or Hugging Face id of the model.
    #[arg(long, value_name = "ID|DIR", value_parser = NonEmptyStringValueParser::new())]
    #[arg(required_unless_present = "synth", conflicts_with = "synth")]
    pub(crate) model: Option<String>,

    /// Branch, tag or commit of a model of the hub [default: main].
    #[arg(long, value_name = "REVISION", conflicts_with = "synth")]
    pub(crate) revision: Option<String>,

    /// Measure a model of this size with random weights, which are written to a temporary folder.
    #[arg(long, value_name = "SIZE", value_parser = published_size())]
    pub(crate) synth: Option<PublishedSize>,

    /// What to compute in [default: bf16 for a checkpoint stored in bf16, else f32].
    #[arg(long)]
    pub(crate) dtype: Option<DtypeArg>,

    /// CPU threads [default: one a physical core].
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Measure only these.
    #[arg(long, value_name = "SECTION", value_delimiter = ',')]
    pub(crate) only: Vec<Section>,

    /// Leave out the rows that take longest, and repeat the others less.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Print JSON, with the same numbers in seconds and bytes.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A part of what `nv bench` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// Opening the checkpoint and building the model.
    Load,
    /// Private memory at its peak.
    Memory,
    /// From starting the process to the first token.
    Start,
    /// Prompts.
    Prefill,
    /// One sequence, token by token.
    Decode,
    /// Sequences that decode together.
    Batch,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DtypeArg {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DeviceArg {
    Cpu,
    Cuda,
    Metal,
}

fn temperature(text: &str) -> anyhow::Result<f64> {
    Ok(SamplingParams::default().with_temperature(text.parse()?)?.temperature())
}

fn top_p(text: &str) -> anyhow::Result<f64> {
    Ok(SamplingParams::default().with_top_p(text.parse()?)?.top_p())
}

fn published_size() -> impl TypedValueParser<Value = PublishedSize> {
    PossibleValuesParser::new(PublishedSize::ALL.map(PublishedSize::name))
        .try_map(|name| name.parse::<PublishedSize>())
}

fn max_tokens(text: &str) -> anyhow::Result<usize> {
    let max_tokens = text.parse()?;
    SamplingParams::default().with_max_tokens(max_tokens)?;
    Ok(max_tokens)
}
