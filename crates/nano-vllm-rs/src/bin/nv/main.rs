//! `nv`: Qwen3 on the command line.
//!
//! Results go to stdout, talk to stderr. Knows nothing of how text and tokens are computed.

mod args;
mod bench;
mod chat;
mod copies;
mod ending;
mod eval;
mod format;
mod generate;
mod inspect;
mod interrupt;
mod log;
mod manual;
mod model;
mod progress;
mod prompt;
mod quantize;
#[cfg(feature = "server")]
mod serve;
mod table;
mod tensor_names;

use std::error::Error as StdError;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
#[cfg(unix)]
use std::sync::Arc;

use anyhow::{Error, Result};
use args::{Args, Command};
use serde_json::Value;

/// The activations of each step are megabytes that come and go: an allocator that keeps them for the next step saves
/// the system from clearing new pages, a quarter of a prompt's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::read();
    fail_at_file_size_limit();
    let result = log::start(&args).and_then(|log| {
        let code = run(args);
        let finished = log.finish();
        code.and_then(|code| finished.map(|()| code))
    });
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Has writes beyond `ulimit -f` fail, so that an error says which: by default the system ends the process.
fn fail_at_file_size_limit() {
    #[cfg(unix)]
    {
        use signal_hook::{consts::SIGXFSZ, flag};
        // Nobody looks at the flag: that the signal is heard is enough. If it can't be, it is as before.
        let _ = flag::register(SIGXFSZ, Arc::default());
    }
}

fn run(Args { command, verbose, .. }: Args) -> Result<ExitCode> {
    match command {
        Command::Generate(args) => generate::run(&args, verbose),
        Command::Chat(args) => chat::run(&args, verbose),
        Command::Inspect(args) => inspect::run(&args, verbose),
        Command::Quantize(args) => quantize::run(&args),
        #[cfg(feature = "server")]
        Command::Serve(args) => serve::run(&args, verbose),
        Command::Bench(args) => bench::run(&args, verbose),
        Command::Eval(args) => eval::run(&args, verbose),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}

/// Writes a line to stderr; nobody listening is no reason to fail.
fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes to stdout what a command found: as JSON, if that is given, else as people read it.
fn print_report(report: &impl Display, json: Option<Value>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match json {
        Some(json) => writeln!(out, "{json:#}")?,
        None => write!(out, "{report}")?,
    }
    out.flush()
}

/// Says what went wrong, and why.
fn say_error(error: &Error) {
    let causes = error.chain().skip(1);
    say(causes
        .fold(format!("error: {error}"), |text, cause| format!("{text}\n  caused by: {cause}")));
}

/// Whether the reader of our output has seen enough.
fn is_broken_pipe(error: &(dyn StdError + 'static)) -> bool {
    error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe)
}
