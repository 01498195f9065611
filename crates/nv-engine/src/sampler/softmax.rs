//! Probabilities as integers, whose sums are exact: no order of summation changes a choice.

use std::f64::consts::{LN_2, LOG2_E};

/// Gives each token a weight in proportion to its probability, `exp((logit - max_logit) / temperature)`.
///
/// The arithmetic is additions and multiplications alone, which are the same on every platform and which compilers
/// vectorise; a weight is off by less than 1e-8 of itself and a half.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax {
    max_logit: f32,
    /// From logits to powers of two.
    scale: f64,
    /// The likeliest token's weight, as a power of two.
    unit_log2: u32,
}

impl Softmax {
    /// A softmax over `num_logits` logits, at least one, of which the largest is `max_logit`.
    pub(crate) fn new(num_logits: usize, max_logit: f32, temperature: f64) -> Self {
        Self {
            max_logit,
            // Finite, so that 0 times it is 0.
            scale: (LOG2_E / temperature).min(f64::MAX),
            // Below the 52 bits of a fraction, and small enough that the sum of all stays below 2^63.
            unit_log2: (62 - num_logits.ilog2()).min(48),
        }
    }

    /// The largest logit.
    pub(crate) fn max_logit(&self) -> f32 {
        self.max_logit
    }

    /// How far below the largest the logits are that have a weight.
    #[expect(clippy::cast_possible_truncation, reason = "may well be infinite")]
    pub(crate) fn reach(&self) -> f32 {
        (f64::from(self.unit_log2 + 1) / self.scale) as f32
    }

    /// The weight of a token: an integer, 0 for -inf.
    #[inline]
    pub(crate) fn weight(&self, logit: f32) -> u64 {
        /// Adding it rounds a number of less than 51 bits to an integer, in the lowest bits of the sum.
        const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
        /// The same for positive numbers below it, with nothing but the integer in the fraction.
        const ROUND_POSITIVE: f64 = 4_503_599_627_370_496.0; // 2^52
        const FRACTION_BITS: u32 = 52;
        /// A power of two that is 0 in every unit; also what -inf becomes.
        const LEAST: f64 = -100.0;

        let power = (f64::from(logit) - f64::from(self.max_logit)) * self.scale;
        let power = if power > LEAST { power } else { LEAST };
        let rounded = power + ROUND;
        let exponent = rounded.to_bits().wrapping_add(u64::from(self.unit_log2));
        let bits = exp2(power - (rounded - ROUND)).to_bits();
        let weight = f64::from_bits(bits.wrapping_add(exponent << FRACTION_BITS));
        (weight + ROUND_POSITIVE).to_bits() & ((1 << FRACTION_BITS) - 1)
    }

    /// Writes the weights of `logits`; returns their sum, which is at least the likeliest token's.
    pub(crate) fn weigh(&self, logits: &[f32], weights: &mut Vec<u64>) -> u64 {
        weights.resize(logits.len(), 0);
        let mut total = 0;
        for (weight, &logit) in weights.iter_mut().zip(logits) {
            *weight = self.weight(logit);
            total += *weight;
        }
        total
    }

    /// The natural logarithm of the sum of `exp(logit / temperature)`, the same on every platform.
    pub(crate) fn log_sum_exp(&self, logits: &[f32]) -> f64 {
        let total: u64 = logits.iter().map(|&logit| self.weight(logit)).sum();
        (f64::from(self.max_logit) * self.scale - f64::from(self.unit_log2)) * LN_2
            + libm::log(total as f64)
    }
}

/// 2 to the power of `x`, from -0.5 to 0.5: the Taylor series, whose rest is below 1e-8 of it there. The rounding of
/// logits to f32 makes a larger difference.
#[inline]
fn exp2(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 8] = taylor();
    let [lower @ .., last] = COEFFICIENTS;
    lower.iter().rev().fold(last, |sum, coefficient| sum * x + coefficient)
}

/// `ln(2)^n / n!`
const fn taylor<const LEN: usize>() -> [f64; LEN] {
    let mut coefficients = [1.0; LEN];
    let mut n = 1;
    while n < LEN {
        coefficients[n] = coefficients[n - 1] * LN_2 / n as f64;
        n += 1;
    }
    coefficients
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_likeliest_weighs_a_unit_and_what_is_ruled_out_nothing() {
        for num_logits in [1, 2, 100, 151_936, 1 << 32] {
            for temperature in [f64::MIN_POSITIVE, 1e-3, 1.0, 1e9, f64::MAX] {
                for max_logit in [f32::MIN, -3.5, 0.0, 17.25, f32::MAX] {
                    let softmax = Softmax::new(num_logits, max_logit, temperature);
                    let unit = softmax.weight(max_logit);
                    assert_eq!(unit, 1 << softmax.unit_log2);
                    assert!(u128::from(unit) * (num_logits as u128) < 1 << 63);
                    assert_eq!(softmax.weight(f32::NEG_INFINITY), 0);
                }
            }
        }
    }

    #[test]
    fn the_logarithm_is_the_same_on_every_platform() {
        let logits: Vec<f32> = (0u16..500).map(|i| f32::from(i * 97 % 501) / 32.0).collect();
        let log =
            |temperature| Softmax::new(logits.len(), 15.625, temperature).log_sum_exp(&logits);
        let bits = [1.0, 0.3, 7.0].map(|temperature| log(temperature).to_bits());
        assert_eq!(bits, [0x4033_1ad3_53ad_4479, 0x404b_32c7_d36d_1ca3, 0x401e_1e83_8a95_7578]);
    }

    proptest! {
        #[test]
        fn weights_follow_the_exponential(logit in -60.0..0.0f32, temperature in 0.05..20.0f64) {
            let softmax = Softmax::new(1, 0.0, temperature);
            let expected = (f64::from(logit) / temperature).exp() * 48f64.exp2();
            let found = softmax.weight(logit) as f64;
            prop_assert!((found - expected).abs() <= 0.5 + expected * 1e-8, "{found} {expected}");
        }

        #[test]
        fn the_logarithm_is_that_of_the_sum(
            logits in prop::collection::vec(-30.0..30.0f32, 1..50),
        ) {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let expected = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
            let found = Softmax::new(logits.len(), max, 1.0).log_sum_exp(&logits);
            prop_assert!((found - expected).abs() < 1e-8, "{found} {expected}");
        }
    }
}
