//! What `nv bench --requests` asks of the engine.

use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};

/// Many requests at once instead of single steps.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Requests")]
pub(crate) struct RequestArgs {
    /// Serve N requests through the engine and measure throughput and latencies [default: 16].
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "16")]
    #[arg(value_parser = at_least_one)]
    pub(crate) requests: Option<usize>,

    /// Keep C requests under way [default: all].
    #[arg(long, value_name = "C", requires = "requests", value_parser = at_least_one)]
    pub(crate) concurrency: Option<usize>,

    /// Let requests arrive at random, R a second on average, whatever is under way.
    #[arg(long, value_name = "R", requires = "requests", conflicts_with = "concurrency")]
    #[arg(value_parser = rate, allow_negative_numbers = true)]
    pub(crate) rate: Option<f64>,

    /// Tokens of a prompt, the shared ones included: N, or MIN-MAX for lengths at random.
    #[arg(long, value_name = "N|MIN-MAX", requires = "requests", default_value = "128")]
    #[arg(value_parser = length)]
    pub(crate) input_len: RangeInclusive<usize>,

    /// Tokens that a request asks for: N, or MIN-MAX.
    #[arg(long, value_name = "N|MIN-MAX", requires = "requests", default_value = "64")]
    #[arg(value_parser = length)]
    pub(crate) output_len: RangeInclusive<usize>,

    /// Let all prompts begin with the same N tokens.
    #[arg(long, value_name = "N", requires = "requests", default_value = "0")]
    pub(crate) shared_prefix: usize,

    /// Choose tokens, lengths and arrivals: the same seed, the same requests.
    #[arg(long, value_name = "SEED", requires = "requests", default_value = "0")]
    pub(crate) seed: u64,
}

fn at_least_one(text: &str) -> Result<usize> {
    let number = text.parse()?;
    ensure!(number > 0, "expected at least 1");
    Ok(number)
}

fn rate(text: &str) -> Result<f64> {
    // One in eleven days: with fewer, times of arrival would be beyond any clock.
    const MIN: f64 = 1e-6;
    let rate: f64 = text.parse()?;
    ensure!(rate.is_finite() && rate >= MIN, "expected a finite number from {MIN}");
    Ok(rate)
}

fn length(text: &str) -> Result<RangeInclusive<usize>> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<usize>().context("expected N or MIN-MAX");
    let (min, max) = (number(min)?, number(max)?);
    ensure!(1 <= min && min <= max, "expected at least 1, and MIN up to MAX");
    Ok(min..=max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_one_that_requests_can_have() {
        for (text, expected) in [("0.000001", 1e-6), ("2.5", 2.5), ("1e9", 1e9)] {
            assert_eq!(rate(text).ok(), Some(expected), "{text}");
        }
        for wrong in ["", "0", "-1", "1e-300", "9e-7", "inf", "nan"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_length_is_a_number_or_a_range() {
        assert_eq!(length("128").unwrap(), 128..=128);
        assert_eq!(length("1-2048").unwrap(), 1..=2048);
        for wrong in ["", "0", "0-3", "5-4", "5-", "-5", "a-b"] {
            assert!(length(wrong).is_err(), "{wrong}");
        }
    }
}
