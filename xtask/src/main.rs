//! The project's tasks: `cargo xtask --help`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{
    asan, bench, ci, deny, fetch, fuzz, load, openai, overhead, page, reference, router, simulate,
    synth, tidy, verify,
};

/// The engine is measured with the allocator that `nv` gives it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about = "The project's tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run the kernels' tests under the address sanitizer; needs a nightly toolchain
    Asan,
    /// Compare two records of `cargo bench`; fails if something became slower by more than noise
    BenchCheck(bench::CheckArgs),
    /// Run `cargo bench` and keep what it measured
    BenchRecord(bench::RecordArgs),
    /// Make a page with plots of each record of `cargo bench`
    BenchReport(bench::ReportArgs),
    /// Run everything that a change must pass
    Ci,
    /// Check the licences, sources and versions of dependencies, and what is known against them
    Deny,
    /// Download a model and print where its files are
    Fetch(fetch::Args),
    /// Run the fuzz targets, one after the other; needs a nightly toolchain and cargo-fuzz
    Fuzz(fuzz::Args),
    /// Serve the demo checkpoint to many clients at once, some of which go away, and report what they got
    Load(load::Args),
    /// Test the server with clients of the OpenAI API, and against its own description
    Openai,
    /// Measure what the server costs beside its engine
    Overhead(overhead::Args),
    /// Test the server's page in headless Chromium
    Page,
    /// Have transformers write reference logits; without arguments, all committed ones
    Reference(reference::Args),
    /// Test two replicas of the server behind a router, one of which is killed under load
    Router(router::Args),
    /// Serve imagined requests with real schedulers and report throughput, memory and waits
    Simulate(simulate::Args),
    /// Write a random checkpoint of a config
    Synth(synth::Args),
    /// Check the habits that no compiler checks
    Tidy,
    /// Compare logits with reference logits; without arguments, all committed ones
    Verify(verify::Args),
}

fn main() -> ExitCode {
    let task = Cli::parse().task;
    match run(task, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done if standard error is closed.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task, out: &mut dyn Write) -> Result<()> {
    match task {
        Task::Asan => asan::run(out),
        Task::BenchCheck(args) => bench::check(&args, out),
        Task::BenchRecord(args) => bench::record(&args, out),
        Task::BenchReport(args) => bench::report(&args, out),
        Task::Ci => ci::run(out),
        Task::Deny => deny::run(out),
        Task::Fetch(args) => fetch::run(&args, out),
        Task::Fuzz(args) => fuzz::run(&args, out),
        Task::Load(args) => load::run(&args, out),
        Task::Openai => openai::run(out),
        Task::Overhead(args) => overhead::run(&args, out),
        Task::Page => page::run(out),
        Task::Reference(args) => reference::run(args, out),
        Task::Router(args) => router::run(&args, out),
        Task::Simulate(args) => simulate::run(&args, out),
        Task::Synth(args) => synth::run(&args, out),
        Task::Tidy => tidy::run(out),
        Task::Verify(args) => verify::run(&args, out),
    }
}
