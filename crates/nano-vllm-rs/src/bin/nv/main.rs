//! `nv`: Qwen3 on the command line.
//!
//! Results go to stdout, talk to stderr. Knows nothing of how text and tokens are computed.

mod args;
mod bench;
mod chat;
mod copies;
mod ending;
mod fields;
mod format;
mod generate;
mod inspect;
mod interrupt;
mod log;
mod manual;
mod model;
#[cfg(feature = "server")]
mod serve;
mod table;
mod tensor_names;

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use args::{Args, Command};

/// The activations of each step are megabytes that come and go: an allocator that keeps them for the next step saves
/// the system from clearing new pages, a quarter of a prompt's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::read();
    let result = log::start(&args).and_then(|_log| run(args));
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = error.chain().skip(1);
            say(causes.fold(format!("error: {error}"), |text, cause| {
                format!("{text}\n  caused by: {cause}")
            }));
            ExitCode::FAILURE
        }
    }
}

fn run(Args { command, verbose, .. }: Args) -> Result<ExitCode> {
    match command {
        Command::Generate(args) => generate::run(&args, verbose),
        Command::Chat(args) => chat::run(&args, verbose),
        Command::Inspect(args) => inspect::run(&args, verbose),
        #[cfg(feature = "server")]
        Command::Serve(args) => serve::run(&args, verbose),
        Command::Bench(args) => bench::run(&args, verbose),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}

/// Writes a line to stderr; nobody listening is no reason to fail.
fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether the reader of our output has seen enough.
fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe)
}
