//! Ctrl-C as a flag.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// What a shell reports of a process that SIGINT ended.
pub(crate) const EXIT_CODE: u8 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C raises the flag, the second ends the process on the spot.
pub(crate) fn flag() -> Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            process::exit(EXIT_CODE.into());
        }
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(&INTERRUPTED)
}
