//! `cargo xtask fetch`: downloads a model from the hub and says where its files are.

use std::io::Write;

use anyhow::Result;
use nv_weights::download_model;

/// The arguments of `cargo xtask fetch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model id on the hub, such as Qwen/Qwen3-0.6B
    model: String,
    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    revision: String,
}

/// Downloads what isn't in the cache and prints one path a line.
///
/// # Errors
/// If the download fails; the error says what to do.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let files = download_model(&args.model, &args.revision)?;
    let paths = [files.config].into_iter().chain(files.weights).chain(files.text);
    for path in paths.chain(files.generation_config) {
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}
