//! The command line, typed: what can be refused without opening a file is refused here.

mod chat;
mod engine;
mod eval;
mod log_filter;
mod model;
mod requests;
mod sampling;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, Parser, Subcommand, ValueEnum, value_parser};
use nano_vllm_rs::qwen3::Preset;
use nv_kernels::Kernels;
use nv_synth::PublishedSize;
use tracing_subscriber::filter::Targets;

pub(crate) use chat::ChatArgs;
pub(crate) use engine::EngineArgs;
pub(crate) use eval::EvalArgs;
pub(crate) use model::{ComputeArgs, CpuArgs, DeviceArg, DtypeArg, ModelArgs};
pub(crate) use requests::RequestArgs;
pub(crate) use sampling::{SamplingArgs, random_seed};

/// Qwen3 on the command line.
#[derive(Debug, Parser)]
#[command(name = "nv", version = version(), max_term_width = 100)]
#[command(
    after_help = "RUST_LOG=debug, or RUST_LOG=nv_engine=debug,nv_server=info and its like, logs events and spans to stderr."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Say which weights had to be copied, and why.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,

    /// Write what each step of the engine takes to this file, in the form that Chrome and Perfetto show. A trace that is there is
    /// overwritten, another file is not.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// What `RUST_LOG` asks to be logged.
    #[arg(skip)]
    pub(crate) rust_log: Option<Targets>,
}

impl Args {
    /// Reads the command line; ends the process if it makes no sense.
    pub(crate) fn read() -> Self {
        let mut args = Self::parse();
        match args.command.check().and_then(|()| log_filter::from_env()) {
            Ok(rust_log) => args.rust_log = rust_log,
            Err(error) => Self::command().error(ErrorKind::ValueValidation, error).exit(),
        }
        args
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Generate(Box<GenerateArgs>),
    Chat(Box<ChatArgs>),
    Inspect(InspectArgs),
    Quantize(QuantizeArgs),
    #[cfg(feature = "server")]
    Serve(Box<ServeArgs>),
    Bench(Box<BenchArgs>),
    Eval(EvalArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

impl Command {
    /// What no option can tell alone.
    fn check(&self) -> Result<()> {
        match self {
            Self::Generate(args) => args.sampling.check(),
            Self::Chat(args) => args.sampling().check(),
            Self::Bench(args) => {
                let is_used = args.requests.requests.is_some();
                ensure!(
                    is_used || args.engine == EngineArgs::default(),
                    "settings of the engine are for --requests"
                );
                Ok(())
            }
            Self::Inspect(_)
            | Self::Quantize(_)
            | Self::Eval(_)
            | Self::Completions(_)
            | Self::Man(_) => Ok(()),
            #[cfg(feature = "server")]
            Self::Serve(_) => Ok(()),
        }
    }
}

/// Answer prompts, or continue them if the model has no chat template.
///
/// The text of a single prompt goes to stdout as it is generated; many prompts are served together, and their texts come in order.
/// Sampling follows the model's `generation_config.json` where no option says otherwise.
///
/// With --jsonl, each line is an object with `prompt`, a text or a list of token ids that is continued as it stands, or
/// `messages`, a conversation for the model's chat template; and any sampling option by its name with underscores, which counts
/// before the command line's.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("source").required(true).multiple(true))]
#[command(group = ArgGroup::new("json_output").multiple(true))]
// The prompt is the argument.
#[command(mut_arg("model", |model| model.long("model")))]
pub(crate) struct GenerateArgs {
    /// What to answer or continue.
    #[arg(group = "source")]
    pub(crate) prompt: Option<String>,

    /// Another prompt; may be repeated.
    #[arg(long = "prompt", id = "more", value_name = "TEXT", group = "source")]
    pub(crate) more_prompts: Vec<String>,

    /// Read prompts from a file, `-` for stdin: one a line, blank ones left out.
    #[arg(long, value_name = "FILE", group = "source", conflicts_with_all = ["prompt", "more"])]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Read requests from a file, `-` for stdin: a JSON object a line, blank lines left out; print results likewise.
    #[arg(long, value_name = "FILE", groups = ["source", "json_output"])]
    #[arg(conflicts_with_all = ["prompt", "more", "prompt_file"])]
    pub(crate) jsonl: Option<PathBuf>,

    /// Print each result as a line of JSON.
    #[arg(long, group = "json_output")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) compute: ComputeArgs,

    /// Continue prompts as they stand, without the model's chat template.
    #[arg(long, conflicts_with = "jsonl")]
    pub(crate) raw: bool,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

impl GenerateArgs {
    /// Whether results are lines of JSON.
    pub(crate) fn prints_json(&self) -> bool {
        self.json || self.jsonl.is_some()
    }
}

/// Show what a model is: its config, its tensors, the memory that it takes; and why it can't be run, if it can't.
///
/// Of the weight files, only the headers are read. What generate, chat and serve would refuse is told on stderr, every problem at
/// once, and the exit code is 1. A model of the hub is downloaded first.
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

/// Write a model with its matrices in fewer bits, as the kernels read them: it takes less memory and generates faster.
///
/// The new folder holds all that the model needs. It appears when it is complete; Ctrl-C leaves nothing. What is quantised gives the
/// same tokens on every machine.
#[derive(Debug, clap::Args)]
pub(crate) struct QuantizeArgs {
    /// Folder or Hugging Face id of the model.
    #[arg(value_name = "DIR|ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) model: String,

    /// Branch, tag or commit of a model of the hub [default: main].
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,

    /// How to quantise it.
    #[arg(long, value_name = "PRESET", value_parser = model::preset())]
    pub(crate) to: Preset,

    /// The folder to write, which must not exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// CPU threads [default: one a physical core].
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// Serve a model by the OpenAI API, until Ctrl-C or SIGTERM; requests that run are finished then, unless a second one comes.
///
/// The address goes to stdout once the server listens, the log to stderr. What is asked and answered is never logged.
#[cfg(feature = "server")]
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Name or address to listen on; 0.0.0.0 for every network.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,

    /// Port to listen on; 0 for a free one.
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,

    /// What requests call the model; may be given several times [default: its id, or its folder's name].
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) served_model_name: Vec<String>,

    /// A key that requests must have; may be given several times [default: nobody is asked].
    #[arg(long, value_name = "KEY", env = "NV_API_KEY", hide_env_values = true)]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) api_key: Vec<String>,

    /// An origin whose pages may use the server from a browser, `*` for all; may be given several times.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,

    /// Sequences that wait beyond those that run, before requests are refused.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_num_waiting: usize,

    /// Bytes of a request's body at most, such as 16MiB.
    #[arg(long, value_name = "SIZE", value_parser = engine::bytes, default_value = "16MiB")]
    pub(crate) max_body_size: usize,

    /// Seconds that a client may take to send the head of a request, and again for its body; and that a connection may idle.
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..), default_value_t = 30)]
    pub(crate) read_timeout: u64,

    /// Seconds that a client may read nothing while there is something for it to read.
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..), default_value_t = 60)]
    pub(crate) write_timeout: u64,

    /// Seconds after which a request is ended [default: never].
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..))]
    pub(crate) request_timeout: Option<u64>,

    #[command(flatten)]
    pub(crate) compute: ComputeArgs,

    /// The least that is worth a line of the log, whatever `RUST_LOG` says [default: what it says, or else info].
    #[arg(long)]
    pub(crate) log_level: Option<LogLevel>,

    /// How the log is written.
    #[arg(long, default_value = "text")]
    pub(crate) log_format: LogFormat,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
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

    #[command(flatten)]
    pub(crate) cpu: CpuArgs,

    /// Measure only these.
    #[arg(long, value_name = "SECTION", value_delimiter = ',', conflicts_with = "RequestArgs")]
    pub(crate) only: Vec<Section>,

    /// Leave out the rows that take longest, and repeat the others less.
    #[arg(long, conflicts_with = "RequestArgs")]
    pub(crate) quick: bool,

    /// Print JSON, with the same numbers in seconds and bytes.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) requests: RequestArgs,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// Print a script that has a shell complete the options of nv.
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

/// Print the manual page of nv, or write those of all its commands.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Write a page for nv and for each of its commands into this folder, such as /usr/local/share/man/man1.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
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

#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

fn published_size() -> impl TypedValueParser<Value = PublishedSize> {
    PossibleValuesParser::new(PublishedSize::ALL.map(PublishedSize::name))
        .try_map(|name| name.parse::<PublishedSize>())
}

/// The version, the commit that it is of, if that is known, and the kernels that this machine runs.
fn version() -> String {
    let commit = option_env!("NV_COMMIT").map(|commit| format!("commit {commit}"));
    let kernels = Kernels::best().map(|kernels| format!("kernels {}", kernels.isa())).ok();
    let details: Vec<String> = commit.into_iter().chain(kernels).collect();
    format!("{} ({})", env!("CARGO_PKG_VERSION"), details.join(", "))
}
