//! What the machine could do at best, as the benchmarks use it: on as many threads, in each tier.

use std::iter::repeat_with;

use anyhow::Result;
use nv_kernels::{Isa, Kernels, Pool, Precision, product_peak, read_bandwidth};

/// What is read to measure bandwidth: more than any cache holds.
const READ_BYTES: usize = 1 << 30;

/// How often each limit is measured; the best counts.
const NUM_MEASUREMENTS: usize = 5;

/// The limits that kernels run into.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// Bytes that are read from memory in a second.
    pub read_bandwidth: f64,
    /// Floating-point operations a second of each tier that the machine has, in products of bfloat16, which the linear
    /// layers are measured in: a multiplication and an addition are two.
    pub product_peaks: Vec<(Isa, f64)>,
}

impl Limits {
    /// Measures them.
    ///
    /// # Errors
    /// If the system refuses threads.
    pub fn measure() -> Result<Self> {
        let pool = Pool::new(Pool::default_threads())?;
        // Pages of zeros might be one and the same.
        let bytes = vec![1; READ_BYTES];
        let best = |measure: &dyn Fn() -> f64| {
            repeat_with(measure).take(NUM_MEASUREMENTS).fold(0.0, f64::max)
        };
        let peak = |kernels: &Kernels| best(&|| product_peak(kernels, &pool, Precision::Bf16));
        let tiers = Isa::ALL.into_iter().filter_map(Kernels::for_isa);
        Ok(Self {
            read_bandwidth: best(&|| read_bandwidth(&pool, &bytes)),
            product_peaks: tiers.map(|kernels| (kernels.isa(), peak(kernels))).collect(),
        })
    }

    /// The better of two measurements on one machine.
    #[must_use]
    pub fn max(mut self, other: Self) -> Self {
        self.read_bandwidth = self.read_bandwidth.max(other.read_bandwidth);
        for ((_, peak), (_, others)) in self.product_peaks.iter_mut().zip(other.product_peaks) {
            *peak = peak.max(others);
        }
        self
    }

    /// Operations a second that a kernel can do at best, in a tier and at so many operations a byte of memory.
    ///
    /// `None` if the tier wasn't measured.
    pub fn roof(&self, isa: Isa, intensity: f64) -> Option<f64> {
        Some(self.peak(isa)?.min(self.read_bandwidth * intensity))
    }

    /// Operations a second of a tier.
    pub fn peak(&self, isa: Isa) -> Option<f64> {
        self.product_peaks.iter().find(|(tier, _)| *tier == isa).map(|(_, peak)| *peak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_measurement_counts() {
        let limits = |read_bandwidth, scalar, avx2| Limits {
            read_bandwidth,
            product_peaks: vec![(Isa::Scalar, scalar), (Isa::Avx2, avx2)],
        };
        assert_eq!(limits(3.0, 2.0, 8.0).max(limits(4.0, 1.0, 9.0)), limits(4.0, 2.0, 9.0));
    }

    #[test]
    fn the_roof_is_memory_up_to_the_ridge_and_arithmetic_from_there() {
        let limits = Limits { read_bandwidth: 10.0, product_peaks: vec![(Isa::Avx2, 40.0)] };
        for (intensity, roof) in [(0.5, 5.0), (4.0, 40.0), (100.0, 40.0)] {
            assert_eq!(limits.roof(Isa::Avx2, intensity), Some(roof));
        }
        assert_eq!(limits.roof(Isa::Scalar, 1.0), None);
    }
}
