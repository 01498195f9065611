//! The online softmax of attention.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]
#![expect(unsafe_code, reason = "kernels need their instruction set")]

use std::marker::PhantomData;

use super::activation::exp_non_positive;
use super::{LANES, fold_lanes};
use crate::tier::{Compile, Work};

/// What the online softmax remembers of some rows.
#[derive(Debug)]
pub(crate) struct Softmax {
    /// The highest scaled score of each so far.
    highest: Vec<f32>,
    /// The sums of all weights relative to it, lane by lane.
    totals: Vec<[f32; LANES]>,
    /// What all that was summed before the last step must be multiplied by.
    pub(crate) corrections: Vec<f32>,
}

impl Softmax {
    pub(crate) fn new(num_rows: usize) -> Self {
        Self {
            highest: vec![f32::NEG_INFINITY; num_rows],
            totals: vec![[0.0; LANES]; num_rows],
            corrections: vec![1.0; num_rows],
        }
    }

    /// The sum of all weights of a row.
    pub(crate) fn total(&self, row: usize) -> f32 {
        fold_lanes(self.totals[row], |a, b| a + b)
    }
}

/// A step for some rows: turns their `scores`, which `scale` multiplies, into weights relative to a row's highest score so
/// far, and adds them to its totals; rounded to bfloat16 before that, if `ROUNDED`.
///
/// # Safety
/// The machine has the tier.
pub(super) unsafe fn step<C: Compile, const ROUNDED: bool>(
    scores: &mut [f32],
    scale: f32,
    softmax: &mut Softmax,
) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(Step::<C, ROUNDED> { scores, scale, softmax, tier: PhantomData });
}

struct Step<'a, C, const ROUNDED: bool> {
    scores: &'a mut [f32],
    scale: f32,
    softmax: &'a mut Softmax,
    tier: PhantomData<C>,
}

impl<C: Compile, const ROUNDED: bool> Work for Step<'_, C, ROUNDED> {
    type Output = ();

    /// Each row is a long chain of operations, so the rows go through each part of it together.
    #[inline(always)]
    fn run(self) {
        let Self { scores, scale, softmax: Softmax { highest, totals, corrections }, .. } = self;
        let row_len = scores.len() / highest.len();
        debug_assert!(row_len.is_multiple_of(LANES), "scores come in whole tiles");
        let rows = scores.chunks_exact(row_len).zip(&mut *highest);
        for ((scores, highest), correction) in rows.zip(&mut *corrections) {
            let mut lanes = [f32::NEG_INFINITY; LANES];
            for vector in scores.as_chunks::<LANES>().0 {
                for (lane, &score) in lanes.iter_mut().zip(vector) {
                    *lane = if score > *lane { score } else { *lane };
                }
            }
            let new = max_lane(lanes) * scale;
            // Not the difference of two infinities.
            *correction = if new > *highest { *highest - new } else { 0.0 };
            *highest = if new > *highest { new } else { *highest };
        }
        for correction in &mut *corrections {
            *correction = exp_non_positive::<C>(*correction);
        }
        let rows = scores.chunks_exact_mut(row_len).zip(&*highest);
        for ((scores, &highest), (totals, &correction)) in
            rows.zip(totals.iter_mut().zip(&*corrections))
        {
            let mut sums = [0.0; LANES];
            for vector in scores.as_chunks_mut::<LANES>().0 {
                for (score, sum) in vector.iter_mut().zip(&mut sums) {
                    let weight = exp_non_positive::<C>(C::mul_add(*score, scale, -highest));
                    *score = if ROUNDED { round_weight(weight) } else { weight };
                    *sum += *score;
                }
            }
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = *total * correction + sum;
            }
        }
    }
}

/// The nearest bfloat16 to a number from 0 to 1; a tie may go either way.
#[inline(always)]
fn round_weight(weight: f32) -> f32 {
    let large = weight * 65_537.0;
    large - (large - weight)
}

/// The greatest of the lanes, compared as integers of the same order: that is vectors, where folding numbers is not.
#[inline(always)]
fn max_lane(lanes: [f32; LANES]) -> f32 {
    let ordered = |bits: i32| bits ^ ((bits >> 31) & 0x7fff_ffff);
    let greatest = lanes
        .map(|lane| ordered(lane.to_bits().cast_signed()))
        .into_iter()
        .fold(i32::MIN, i32::max);
    f32::from_bits(ordered(greatest).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::scalar::Scalar;

    #[test]
    fn rounded_weights_are_the_nearest_bfloat16() {
        for bits in (0x0080_0000..=1f32.to_bits()).step_by(997) {
            let weight = f32::from_bits(bits);
            let got = round_weight(weight);
            let nearest = bf16::from_f32(weight).to_f32();
            assert_eq!(got.to_bits() & 0xffff, 0, "{weight:e} is {got:e}");
            let distance = |rounded: f32| (rounded - weight).abs().to_bits();
            assert_eq!(distance(got), distance(nearest), "{weight:e} is {got:e}");
        }
        assert!(round_weight(f32::NAN).is_nan());
        assert_eq!(round_weight(0.0).to_bits(), 0);
    }

    #[test]
    fn the_greatest_lane_is_found_whatever_its_sign() {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        assert_eq!(max_lane(lanes).to_bits(), f32::NEG_INFINITY.to_bits());
        for (i, &greatest) in [-3.5f32, -0.0, 0.0, 1e-40, 7.25, f32::INFINITY].iter().enumerate() {
            lanes[(5 * i + 3) % LANES] = greatest;
            assert_eq!(max_lane(lanes).to_bits(), greatest.to_bits());
        }
    }

    #[test]
    fn softmax_in_steps_is_softmax() {
        const TILE: usize = 16;
        // The highest come early in one row, and late in the other.
        let falling: Vec<f32> = (0..64).map(|i| (32.0 - (i * 37 % 64 + i) as f32) / 5.0).collect();
        let rising: Vec<f32> = falling.iter().rev().copied().collect();
        let mut softmax = Softmax::new(2);
        let mut weights = [Vec::new(), Vec::new()];
        for (a, b) in falling.chunks(TILE).zip(rising.chunks(TILE)) {
            let mut scores = [a, b].concat();
            let step = Step::<Scalar, false> {
                scores: &mut scores,
                scale: 0.5,
                softmax: &mut softmax,
                tier: PhantomData,
            };
            step.run();
            for ((weights, new), correction) in
                weights.iter_mut().zip(scores.chunks(TILE)).zip(&softmax.corrections)
            {
                for weight in &mut *weights {
                    *weight *= correction;
                }
                weights.extend_from_slice(new);
            }
        }
        for (row, (scores, weights)) in [falling, rising].iter().zip(weights).enumerate() {
            let total: f64 = scores.iter().map(|&s| f64::from(s * 0.5).exp()).sum();
            for (&score, weight) in scores.iter().zip(weights) {
                let want = f64::from(score * 0.5).exp() / total;
                assert!((f64::from(weight / softmax.total(row)) - want).abs() < 1e-6);
            }
        }
    }
}
