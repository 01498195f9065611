//! Ctrl-C as a flag.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// What a shell reports of a process that SIGINT ended.
pub(crate) const EXIT_CODE: u8 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether there is something that Ctrl-C stops, and the process goes on.
static IS_STOPPABLE: AtomicBool = AtomicBool::new(false);

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

/// Has Ctrl-C stop some work, as often as there is any, and not the process.
pub(crate) struct Stop {
    is_stopped: &'static AtomicBool,
    is_stoppable: &'static AtomicBool,
}

impl Stop {
    /// From now on Ctrl-C stops what runs [`during`](Self::during) it. If nothing does, it ends the process, or goes
    /// unheard if `is_ignored_between`.
    pub(crate) fn listen(is_ignored_between: bool) -> Result<Self> {
        ctrlc::set_handler(move || {
            if IS_STOPPABLE.load(Ordering::SeqCst) {
                INTERRUPTED.store(true, Ordering::SeqCst);
            } else if !is_ignored_between {
                process::exit(EXIT_CODE.into());
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Self { is_stopped: &INTERRUPTED, is_stoppable: &IS_STOPPABLE })
    }

    /// Does some work, which is to end soon after Ctrl-C has raised the flag that it is given.
    pub(crate) fn during<T>(&mut self, work: impl FnOnce(&AtomicBool) -> T) -> T {
        self.is_stopped.store(false, Ordering::SeqCst);
        self.is_stoppable.store(true, Ordering::SeqCst);
        let done = work(self.is_stopped);
        self.is_stoppable.store(false, Ordering::SeqCst);
        done
    }
}
