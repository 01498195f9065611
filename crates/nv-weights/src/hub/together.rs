//! Several downloads at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::retry::Stop;
use crate::error::{Error, Result};

/// As many as Hugging Face's own tools have.
const MAX_AT_ONCE: usize = 8;

/// Calls `work` for each of `items`, several at once. The first error raises `stop`, starts nothing more, and is returned
/// when what runs has ended.
pub(super) fn for_each<T: Sync>(
    items: &[T],
    stop: &Stop,
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.is_raised() {
                return;
            }
            if let Err(error) = work(item) {
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
                stop.raise();
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..items.len().min(MAX_AT_ONCE) {
            // Where the system starts no more threads, those that there are do it all.
            if thread::Builder::new().spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
