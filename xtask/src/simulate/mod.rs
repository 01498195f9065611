//! `cargo xtask simulate`: a fleet of engines under a hundred thousand requests, in imagined time.
//!
//! The schedulers are real; the model is a formula for the time that a step takes. Everything but the real time that
//! scheduling took is the same in every run.

mod fleet;
mod histogram;
mod report;
mod workload;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use fleet::Fleet;
use workload::Workload;

pub use fleet::Outcome;
pub use histogram::Histogram;

/// The arguments of `cargo xtask simulate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Requests to serve
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    requests: usize,
    /// Engines to serve them
    #[arg(long, value_name = "N", default_value_t = 8)]
    engines: usize,
    /// Requests a second that arrive, in the mean
    #[arg(long, value_name = "X", default_value_t = 22.0)]
    rate: f64,
    /// Seed of arrivals and lengths
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// File to write the report to, beside standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Simulates and prints the report, as Markdown.
///
/// # Errors
/// If an argument is out of range, a sequence never ends, or the report can't be written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let (outcome, scheduling) = simulate(args)?;
    let report = report::markdown(args, &outcome, scheduling);
    write!(out, "{report}")?;
    if let Some(path) = &args.out {
        fs::write(path, report).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What happens, and the real time that scheduling takes.
fn simulate(args: &Args) -> Result<(Outcome, Duration)> {
    let Args { requests, engines, rate, seed, .. } = *args;
    ensure!(engines > 0, "--engines: expected at least 1, found 0");
    ensure!(rate > 0.0 && rate.is_finite(), "--rate: expected a number above 0, found {rate}");
    let (outcome, scheduling) =
        Fleet::new(engines)?.serve(&mut Workload::new(seed, rate), requests)?;
    ensure!(
        outcome.num_requests == requests,
        "{} of {requests} requests ended",
        outcome.num_requests
    );
    ensure!(outcome.num_lost_blocks == 0, "{} blocks were never freed", outcome.num_lost_blocks);
    Ok((outcome, scheduling))
}

/// A length or number in whole.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "neither lengths of sequences nor logarithms of durations are negative or large"
)]
fn whole(number: f64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(requests: usize, rate: f64) -> Args {
        Args { requests, engines: 2, rate, seed: 7, out: None }
    }

    #[test]
    fn a_simulation_repeats_itself() {
        let run = || simulate(&args(300, 12.0)).unwrap().0;
        assert_eq!(run(), run());
    }

    #[test]
    fn too_much_work_is_done_in_the_end_and_nothing_is_left_waiting() {
        let (outcome, _) = simulate(&args(1_500, 40.0)).unwrap();
        assert!(outcome.num_preemptions > 0 && outcome.max_usage > 0.95);
        assert!(outcome.num_computed_tokens + outcome.num_prefix_hits >= outcome.num_prompt_tokens);
        for (kind, waits) in &outcome.waits {
            assert!(waits.count() > 0 && waits.max() < outcome.seconds, "{kind}");
        }
    }

    #[test]
    fn with_little_to_do_nobody_waits_longer_than_the_longest_prompt_takes() {
        let (outcome, _) = simulate(&args(300, 1.0)).unwrap();
        assert_eq!(outcome.num_preemptions, 0);
        for (kind, waits) in &outcome.waits {
            assert!(waits.max() < 2.0, "{kind}: {}", waits.max());
        }
    }
}
