//! Repeated measurements, each between two measurements of the machine's limits.

use std::time::Duration;

use anyhow::Result;

use super::limits::{Limits, Machine};

/// How often a measurement is repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Repetitions end after this time, but not before `MIN_REPETITIONS`.
    enough: Duration,
    /// They end after this time in any case.
    most: Duration,
}

/// The medians of a repeated measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) seconds: f64,
    pub(crate) limits: Limits,
    pub(crate) repetitions: usize,
}

impl Budget {
    const MIN_REPETITIONS: usize = 3;
    pub(crate) const MAX_REPETITIONS: usize = 16;

    pub(crate) const FULL: Self =
        Self { enough: Duration::from_millis(2500), most: Duration::from_secs(8) };
    pub(crate) const QUICK: Self =
        Self { enough: Duration::from_millis(250), most: Duration::from_secs(2) };

    fn is_spent(self, repetitions: usize, spent: Duration) -> bool {
        repetitions >= Self::MAX_REPETITIONS
            || spent >= self.most
            || (repetitions >= Self::MIN_REPETITIONS && spent >= self.enough)
    }

    /// Runs `once`, which returns the time that counts, as often as the budget allows.
    pub(crate) fn repeat(
        self,
        machine: &Machine,
        mut once: impl FnMut() -> Result<Duration>,
    ) -> Result<Timing> {
        let mut times = Vec::new();
        let mut limits = vec![machine.limits()];
        while !self.is_spent(times.len(), times.iter().sum()) {
            times.push(once()?);
            limits.push(machine.limits());
        }
        Ok(Timing {
            seconds: median(times.iter().map(Duration::as_secs_f64)),
            limits: Limits {
                read_bandwidth: median(limits.iter().map(|limits| limits.read_bandwidth)),
                product_peak: median(limits.iter().map(|limits| limits.product_peak)),
            },
            repetitions: times.len(),
        })
    }
}

/// The middle one of `values`, or the mean of the middle two.
///
/// # Panics
/// If there are none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let check = |values: &[f64], expected: f64| {
            assert!((median(values.iter().copied()) - expected).abs() < 1e-12, "{values:?}");
        };
        check(&[3.0], 3.0);
        check(&[9.0, 1.0, 2.0], 2.0);
        check(&[4.0, 1.0, 9.0, 2.0], 3.0);
    }

    #[test]
    fn short_measurements_are_repeated_and_long_ones_are_not() {
        let check = |seconds, expected| {
            let spent = |repetitions| Duration::from_secs(seconds * repetitions as u64);
            let repetitions =
                (1..=Budget::MAX_REPETITIONS).find(|&n| Budget::FULL.is_spent(n, spent(n)));
            assert_eq!(repetitions, Some(expected), "of {seconds} s");
        };
        check(0, Budget::MAX_REPETITIONS);
        check(1, 3);
        check(4, 2);
        check(30, 1);
    }
}
