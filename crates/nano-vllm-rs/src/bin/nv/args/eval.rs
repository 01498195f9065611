//! What `nv eval` measures.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::value_parser;

use super::CpuArgs;

/// Measure how well a model predicts a text: perplexity, bits a token and bits a byte. With a reference, also how far the model's
/// probabilities are from its.
///
/// The text is cut into windows that don't overlap. Within a window the model predicts every token from those before it, but for
/// the first, which isn't predicted. (llama-perplexity counts only the second half of each window, so its perplexity is usually
/// lower at the same --context.) A special token that is spelled out in the text is that token.
///
/// The reference is computed in f32. For every token that is predicted, the Kullback-Leibler divergence KL(reference || model) is
/// summed over the whole vocabulary, in nats. Results go to stdout.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    /// Folder or Hugging Face id of the model.
    #[arg(value_name = "DIR|ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) model: String,

    /// Branch, tag or commit of a model of the hub [default: main].
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,

    /// The text, in UTF-8; `-` for stdin.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,

    /// Folder or Hugging Face id of a model with the same tokenizer, such as the one that was quantised.
    #[arg(long, value_name = "DIR|ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) reference: Option<String>,

    /// Tokens a window [default: 512, or as many as the model has positions].
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(2..))]
    pub(crate) context: Option<u32>,

    /// Windows to measure, from the start of the text [default: all].
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) windows: Option<u32>,

    #[command(flatten)]
    pub(crate) cpu: CpuArgs,

    /// Print JSON, with the same numbers.
    #[arg(long)]
    pub(crate) json: bool,
}
