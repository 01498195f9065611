//! The number of CPU threads.
//!
//! candle takes it from the environment alone, each time that it starts a parallel region. A process can't change its own
//! environment safely, so `nv` starts over with another one.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, anyhow};

/// What candle reads: the first for matrix products and reductions, the second for elementwise operations.
const VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// Makes sure that this process computes with `num_threads`; returns only if it already does, or on failure.
pub(crate) fn ensure(num_threads: u16) -> Result<()> {
    let value = num_threads.to_string();
    if VARIABLES.iter().all(|name| env::var(name).as_ref() == Ok(&value)) {
        return Ok(());
    }
    let program = env::current_exe().context("cannot find the program to set its threads")?;
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).envs(VARIABLES.map(|name| (name, &value)));
    replace_process(command)
}

/// Becomes `command`.
#[cfg(unix)]
fn replace_process(mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;

    Err(anyhow!(command.exec()).context("cannot restart the program to set its threads"))
}

/// Runs `command` in this process's place: ends as it ends, and leaves Ctrl-C to it.
#[cfg(not(unix))]
fn replace_process(mut command: Command) -> Result<()> {
    ctrlc::set_handler(|| {}).context("cannot listen for Ctrl-C")?;
    let status = command.status().context("cannot restart the program to set its threads")?;
    std::process::exit(status.code().unwrap_or(1));
}
