//! `nv bench`: a model's speed on the CPU beside what the machine could do at best.
//!
//! `workload` lists what is run, `floor` says what a step of it costs at least, `limits` what the machine gives, `timing` how
//! both are measured together, `patience` when to give up; `measure` runs the model, `report` prints. Of `--requests`, `traffic`
//! says what is asked when, `serving` puts it through the engine, `serving_report` prints that.

mod floor;
mod limits;
mod measure;
mod memory;
mod patience;
mod report;
mod server;
mod serving;
mod serving_report;
mod timing;
mod traffic;
mod workload;

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nv_synth::{PublishedSize, Recipe};
use tempfile::TempDir;

use crate::args::BenchArgs;
use crate::model::Model;
use crate::{copies, interrupt, print_report, say};

pub(crate) fn run(args: &BenchArgs, verbose: bool) -> Result<ExitCode> {
    let Some(size) = args.synth else {
        let name = args.model.as_deref().context("a model or a size to measure")?;
        let model = Model::open(name, args.revision.as_deref())?;
        // Only now: until then, Ctrl-C ends a download as it ends any process.
        return measure(args, name, &model, interrupt::flag()?, verbose);
    };
    let interrupted = interrupt::flag()?;
    // Lives until the end, and takes the random checkpoint with it.
    let Some(dir) = write_synthetic(size, interrupted)? else {
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    };
    let name = dir.path().join(CHECKPOINT).display().to_string();
    measure(args, &name, &Model::open(&name, None)?, interrupted, verbose)
}

/// Measures `model` and prints what was found until it was `interrupted`.
fn measure(
    args: &BenchArgs,
    name: &str,
    model: &Model,
    interrupted: &AtomicBool,
    verbose: bool,
) -> Result<ExitCode> {
    if verbose {
        say(copies::report_on_cpu(model, args.cpu));
    }
    let report = measure::measure(args, name, model, interrupted)?;
    print_report(&report, args.json.then(|| report.to_json()))?;
    Ok(if report.interrupted { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

/// The folder of a random checkpoint in its temporary one.
const CHECKPOINT: &str = "checkpoint";

/// A folder with a random checkpoint; `None` if it was `interrupted`.
fn write_synthetic(size: PublishedSize, interrupted: &AtomicBool) -> Result<Option<TempDir>> {
    say(format_args!("writing a {size} with random weights"));
    let dir = tempfile::Builder::new().prefix("nv-bench-").tempdir()?;
    let config = dir.path().join("config.json");
    fs::write(&config, size.config_json())
        .with_context(|| format!("cannot write {}", config.display()))?;
    let recipe = Recipe { config, seed: 0, max_shard_bytes: usize::MAX };
    let is_stopped = || interrupted.load(Ordering::Relaxed);
    match recipe.write_until(&dir.path().join(CHECKPOINT), is_stopped) {
        Ok(_) => Ok(Some(dir)),
        Err(nv_synth::Error::Stopped { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
