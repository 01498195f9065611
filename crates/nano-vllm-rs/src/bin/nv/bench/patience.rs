//! How long `nv bench` waits for one prompt, and why it stops.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// The longest that a prompt may take, whether it is timed or comes before what is.
pub(super) const LONGEST_PROMPT: Duration = Duration::from_mins(5);

/// How often the clock is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Runs `work`, and raises `stop` meanwhile if `interrupted` is raised or `longest` has passed.
pub(super) fn within<T>(
    longest: Duration,
    interrupted: &AtomicBool,
    stop: &AtomicBool,
    work: impl FnOnce() -> T,
) -> T {
    thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        scope.spawn(move || {
            let start = Instant::now();
            while wait.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if interrupted.load(Relaxed) || start.elapsed() >= longest {
                    return stop.store(true, Relaxed);
                }
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// The user has pressed Ctrl-C.
#[derive(Debug)]
pub(super) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl Error for Interrupted {}

/// # Errors
/// [`Interrupted`], if Ctrl-C has been pressed.
pub(super) fn check(interrupted: &AtomicBool) -> Result<()> {
    if interrupted.load(Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
}

/// A prompt that took longer than [`LONGEST_PROMPT`].
#[derive(Debug)]
pub(super) struct TooSlow;

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its prompt takes more than {} minutes", LONGEST_PROMPT.as_secs() / 60)
    }
}

impl Error for TooSlow {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until `stop` is raised, or as long as a test may take.
    fn wait_for(stop: &AtomicBool) {
        let start = Instant::now();
        while !stop.load(Relaxed) && start.elapsed() < Duration::from_mins(1) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn work_is_stopped_when_its_time_is_over_or_the_user_says_so() {
        let check = |longest, is_interrupted| {
            let (interrupted, stop) = (AtomicBool::new(is_interrupted), AtomicBool::new(false));
            within(longest, &interrupted, &stop, || wait_for(&stop));
            assert!(stop.into_inner());
        };
        check(Duration::ZERO, false);
        check(LONGEST_PROMPT, true);
    }

    #[test]
    fn work_that_is_done_in_time_is_not_stopped() {
        let (interrupted, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        assert_eq!(within(LONGEST_PROMPT, &interrupted, &stop, || 7), 7);
        assert!(!stop.into_inner());
    }
}
