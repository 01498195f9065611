//! Durations by the million: how many there are of each length, to a hundredth.

use super::whole;

/// The shortest duration that is told from none, in seconds.
const MIN: f64 = 1e-6;

/// From one bucket to the next.
const GROWTH: f64 = 1.01;

/// Counts of durations in seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    counts: Vec<u64>,
    max: f64,
}

impl Histogram {
    pub(super) fn add(&mut self, seconds: f64) {
        let bucket = (seconds.max(MIN) / MIN).ln() / GROWTH.ln();
        // No run is so long that the bucket's number would not be a small one.
        let bucket = whole(bucket);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.max = self.max.max(seconds);
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The longest duration; 0 if there are none.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// The duration that a share `q` of all is not longer than, to a hundredth; 0 if there are none.
    pub fn quantile(&self, q: f64) -> f64 {
        let wanted = q * self.count() as f64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen as f64 >= wanted {
                return (MIN * GROWTH.powf(bucket as f64 + 1.0)).min(self.max);
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_hundredth() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (0.0, 0.0));
        for i in 1..=1000 {
            histogram.add(f64::from(i) * 1e-3);
        }
        assert_eq!((histogram.count(), histogram.max()), (1000, 1.0));
        for q in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let found = histogram.quantile(q);
            assert!(found >= q && found <= q * GROWTH + 1e-9, "{q}: {found}");
        }
    }
}
