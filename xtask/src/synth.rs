//! `cargo xtask synth`: a random checkpoint of any Qwen3 config, laid out as Hugging Face publishes one, or quantised.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use nv_kernels::Pool;
use nv_qwen3::{Cpu, Preset};

pub use nv_synth::Recipe;

/// The arguments of `cargo xtask synth`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config.json to make weights for; it is copied beside them
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Seed of every weight
    #[arg(long, value_name = "N")]
    seed: u64,
    /// Largest file; a checkpoint that needs more is split into shards with an index
    #[arg(long, value_name = "N", default_value_t = 5_000_000_000)]
    max_shard_bytes: usize,
    /// Write it quantised, as `nv quantize` would, without the checkpoint that this would read
    #[arg(long, value_name = "PRESET")]
    quantize: Option<Preset>,
    /// Folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Writes the checkpoint and says what was written.
///
/// # Errors
/// As [`Recipe::write`] and [`Recipe::write_quantized`].
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let start = Instant::now();
    let recipe = Recipe {
        config: args.config.clone(),
        seed: args.seed,
        max_shard_bytes: args.max_shard_bytes,
    };
    let weights = match args.quantize {
        None => recipe.write(&args.out)?,
        Some(preset) => {
            let cpu = Cpu::new(Pool::default_threads())?;
            recipe.write_quantized(&args.out, preset, &cpu, || false)?
        }
    };
    let num_bytes =
        weights.iter().map(|path| Ok(path.metadata()?.len())).sum::<io::Result<u64>>()?;
    let seconds = start.elapsed().as_secs_f64();
    for path in &weights {
        writeln!(out, "{}", path.display())?;
    }
    writeln!(out, "{:.3} GB in {seconds:.1} s", num_bytes as f64 / 1e9)?;
    Ok(())
}
