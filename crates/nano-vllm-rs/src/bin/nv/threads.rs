//! The number of CPU threads.
//!
//! candle takes it from the environment alone, each time that it starts a parallel region. A process can't change its own
//! environment safely, so `nv` starts over with another one.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, anyhow};

/// What candle reads: the first for matrix products and reductions, the second for elementwise operations.
const VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// Makes sure that this process computes with `num_threads`, or by default with as many as candle finds right.
pub(crate) fn init(num_threads: Option<u16>) -> Result<()> {
    if let Some(num_threads) = num_threads {
        let value = num_threads.to_string();
        if VARIABLES.iter().any(|name| env::var(name).as_ref() != Ok(&value)) {
            let program = env::current_exe().context("cannot find the program to restart")?;
            let mut command = Command::new(program);
            command.args(env::args_os().skip(1)).envs(VARIABLES.map(|name| (name, &value)));
            return replace_process(command);
        }
    }
    // Rayon by itself would start a thread for each logical processor.
    candle_core::utils::init_global_threadpool();
    Ok(())
}

/// Becomes `command`.
#[cfg(unix)]
fn replace_process(mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;

    Err(anyhow!(command.exec()).context("cannot restart the program"))
}

/// Runs `command` in this process's place: ends as it ends, and leaves Ctrl-C to it.
#[cfg(not(unix))]
fn replace_process(mut command: Command) -> Result<()> {
    ctrlc::set_handler(|| {}).context("cannot listen for Ctrl-C")?;
    let status = command.status().context("cannot restart the program")?;
    std::process::exit(status.code().unwrap_or(1));
}
