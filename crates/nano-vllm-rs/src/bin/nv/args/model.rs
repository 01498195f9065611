//! Which model a command runs, and how it is computed.

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{ValueEnum, value_parser};
use nano_vllm_rs::qwen3::Preset;

/// The model that a command runs. Its name is an argument; a command that has another argument makes an option of it.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Folder or Hugging Face id of the model [default: the demo checkpoint of the repository].
    #[arg(id = "model", value_name = "ID|DIR", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,

    /// Branch, tag or commit of a model of the hub [default: main].
    #[arg(long, value_name = "REVISION", requires = "model")]
    pub(crate) revision: Option<String>,
}

/// How a command computes on the CPU.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct CpuArgs {
    /// What to compute in [default: bf16 for a checkpoint stored in bf16, else f32].
    #[arg(long)]
    pub(crate) dtype: Option<DtypeArg>,

    /// Quantise the model's matrices while it is loaded.
    #[arg(long, value_name = "PRESET", value_parser = preset())]
    pub(crate) quantize: Option<Preset>,

    /// CPU threads [default: one a physical core].
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// How a command computes on whatever device.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ComputeArgs {
    #[command(flatten)]
    pub(crate) cpu: CpuArgs,

    /// What to compute on.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: DeviceArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
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

/// The names of the presets of quantisation.
pub(super) fn preset() -> impl TypedValueParser<Value = Preset> {
    PossibleValuesParser::new(Preset::ALL.map(Preset::name)).try_map(|name| name.parse::<Preset>())
}
