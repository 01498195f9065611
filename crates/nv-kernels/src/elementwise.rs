//! The kernels that are plain loops in every tier: norms, rotation, activations, softmax weights.
//!
//! Written once and compiled once a tier, so that the compiler vectorises them with what the tier has. The loops fix the
//! order of every sum and what is fused themselves, so all tiers give the same bits but for [`MulAdd`], the scalar tier's own.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]

use std::mem::MaybeUninit;

use half::bf16;

/// Partial sums that run side by side; the lanes of the widest vector.
const LANES: usize = 16;

/// Folds the lanes in halves: 16 to 8, to 4, to 2, to 1.
#[inline(always)]
fn fold_lanes(mut lanes: [f32; LANES], fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = fold(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sums `f` over `x`, lane by lane and then the lanes.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for vector in vectors {
        for (lane, &x) in lanes.iter_mut().zip(vector) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    fold_lanes(lanes, |a, b| a + b)
}

/// How a tier adds a product.
trait MulAdd {
    /// `a · b + c`
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// Where there is an instruction for it.
#[cfg(target_arch = "x86_64")]
struct Fused;

#[cfg(target_arch = "x86_64")]
impl MulAdd for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Where fusing would be a call.
struct TwoRoundings;

impl MulAdd for TwoRoundings {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// `e^x` for `x <= 0`, within 2 units in the last place of f32; below -87 it is 0.
///
/// `2^n · e^r` with `n` the integer nearest to `x / ln 2`; a polynomial for `e^r`, exponent bits for `2^n`.
#[inline(always)]
fn exp_non_positive<M: MulAdd>(x: f32) -> f32 {
    /// Adding and subtracting it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with zeros at the end, so that `n · LN_2_HIGH` is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x };
    // The low bits of `shifted` are n.
    let shifted = M::mul_add(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = M::mul_add(n, -LN_2_LOW, M::mul_add(n, -LN_2_HIGH, clamped));
    let mut e_r = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0]
    {
        e_r = M::mul_add(e_r, r, coefficient);
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { e_r * power }
}

/// `1 / (1 + e^-x)`, through the exponential of a non-positive number on either side.
#[inline(always)]
fn sigmoid<M: MulAdd>(x: f32) -> f32 {
    let e = exp_non_positive::<M>(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

#[inline(always)]
fn rms_norm<'a>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &'a mut [MaybeUninit<f32>],
) -> &'a mut [f32] {
    assert!(out.len() == x.len() && out.len() == weight.len());
    let mean = sum(x, |x| x * x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
        out.write(x * scale * weight);
    }
    // SAFETY: the three have one length, so the loop wrote all of `out`.
    #[expect(unsafe_code, reason = "the compiler doesn't see that a loop writes everything")]
    unsafe {
        out.assume_init_mut()
    }
}

#[inline(always)]
fn norm_and_rotate(
    head: &[f32],
    weight: &[f32],
    eps: f32,
    (cos, sin): (&[f32], &[f32]),
    out: &mut [MaybeUninit<f32>],
) {
    let out = rms_norm(head, weight, eps, out);
    let (first, second) = out.split_at_mut(head.len() / 2);
    for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[inline(always)]
fn silu_mul<M: MulAdd>(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate * sigmoid::<M>(*gate) * up;
    }
}

/// Each element in its place.
const IN_ORDER: Option<&[usize; 1]> = None;

/// 16 elements with the even ones before the odd ones.
const SPLIT_16: [usize; 16] = split();

/// The same of 32.
const SPLIT_32: [usize; 32] = split();

/// The order of `N` elements with the even ones before the odd ones.
const fn split<const N: usize>() -> [usize; N] {
    let mut order = [0; N];
    let mut i = 0;
    while i < N {
        order[i] = if i < N / 2 { 2 * i } else { 2 * (i - N / 2) + 1 };
        i += 1;
    }
    order
}

/// 16 elements likewise, but by pairs as one shuffle takes them from two vectors of f32.
pub(crate) const PAIRED: [usize; 16] = [0, 2, 8, 10, 4, 6, 12, 14, 1, 3, 9, 11, 5, 7, 13, 15];

/// Puts `x` into `out` in steps of `step` elements, `stride` apart, each through `convert`; the last is padded. `order` says
/// which element of a step comes where, if not each in its place.
#[inline(always)]
fn arrange<E: Copy + Default, const N: usize>(
    x: &[f32],
    step: usize,
    order: Option<&[usize; N]>,
    out: &mut [E],
    stride: usize,
    convert: impl Fn(f32) -> E,
) {
    let Some(order) = order else {
        for (x, out) in x.chunks(step).zip(out.chunks_mut(stride)) {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = convert(x);
            }
            out[x.len()..step].fill(E::default());
        }
        return;
    };
    assert_eq!(step, N);
    let put = |x: &[f32; N], out: &mut [E]| {
        for (out, &i) in out.iter_mut().zip(order) {
            *out = convert(x[i]);
        }
    };
    let (steps, rest) = x.as_chunks();
    let mut places = out.chunks_mut(stride);
    for (x, out) in steps.iter().zip(&mut places) {
        put(x, out);
    }
    if let (false, Some(out)) = (rest.is_empty(), places.next()) {
        let mut padded = [0.0; N];
        padded[..rest.len()].copy_from_slice(rest);
        put(&padded, out);
    }
}

/// Rounds to bfloat16 and widens again.
#[inline(always)]
fn round(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = rounded(x);
    }
}

#[inline(always)]
fn pack_pairs(x: &[f32], out: &mut [u32]) {
    let (pairs, _) = x.as_chunks::<2>();
    for (out, &[first, second]) in out.iter_mut().zip(pairs) {
        *out = u32::from(round_bits(first)) | u32::from(round_bits(second)) << 16;
    }
}

/// Packs numbers that are bfloat16 already.
#[inline(always)]
fn pack_rounded(x: &[f32], out: &mut [u32]) {
    let (pairs, _) = x.as_chunks::<2>();
    for (out, &[first, second]) in out.iter_mut().zip(pairs) {
        *out = first.to_bits() >> 16 | second.to_bits();
    }
}

/// Rounds to bfloat16, the lower half of each pair; the upper half becomes 0.
#[inline(always)]
fn store_lower(x: &[f32], pairs: &mut [u32]) {
    for (pair, &x) in pairs.iter_mut().zip(x) {
        *pair = u32::from(round_bits(x));
    }
}

/// Rounds to bfloat16, the upper half of each pair; the lower half stays.
#[inline(always)]
fn store_upper(x: &[f32], pairs: &mut [u32]) {
    for (pair, &x) in pairs.iter_mut().zip(x) {
        *pair = (*pair & 0xffff) | u32::from(round_bits(x)) << 16;
    }
}

/// The bfloat16 nearest to `x`.
#[inline(always)]
fn rounded(x: f32) -> f32 {
    f32::from_bits(u32::from(round_bits(x)) << 16)
}

/// The bits of the bfloat16 nearest to `x`, ties to even; any NaN stays one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the upper half of 32 bits")]
fn round_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { nearest }) as u16
}

/// A step of the online softmax for some rows: turns their `scores`, which `scale` multiplies, into weights relative to a
/// row's highest score so far, and adds them to its totals.
///
/// Each row is a long chain of operations, so the rows go through each part of it together.
#[inline(always)]
fn softmax_step<M: MulAdd, const ROUNDED: bool>(
    scores: &mut [f32],
    scale: f32,
    softmax: &mut Softmax,
) {
    let Softmax { highest, totals, corrections } = softmax;
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
        *correction = exp_non_positive::<M>(*correction);
    }
    let rows = scores.chunks_exact_mut(row_len).zip(&*highest);
    for ((scores, &highest), (totals, &correction)) in
        rows.zip(totals.iter_mut().zip(&*corrections))
    {
        let mut sums = [0.0; LANES];
        for vector in scores.as_chunks_mut::<LANES>().0 {
            for (score, sum) in vector.iter_mut().zip(&mut sums) {
                let weight = exp_non_positive::<M>(M::mul_add(*score, scale, -highest));
                *score = if ROUNDED { round_weight(weight) } else { weight };
                *sum += *score;
            }
        }
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = *total * correction + sum;
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

/// One tier's compilation of the loops above. Slices that go together have the same length.
pub(crate) struct Elementwise {
    /// `(x, weight, eps, out)`; writes all of `out`.
    pub(crate) rms_norm: Norm,
    /// `(head, weight, eps, (cos, sin), out)`; writes all of `out`.
    pub(crate) norm_and_rotate: NormAndRotate,
    /// `gate = silu(gate) * up`
    pub(crate) silu_mul: unsafe fn(&mut [f32], &[f32]),
    /// Inputs of `InputForm::Bf16`.
    pub(crate) arrange_bf16: Arrange<bf16>,
    /// Inputs of `InputForm::Rounded`.
    pub(crate) arrange_rounded: Arrange<f32>,
    /// Inputs of `InputForm::Unrounded`.
    pub(crate) arrange_unrounded: Arrange<f32>,
    /// Inputs of `InputForm::F32`.
    pub(crate) arrange_f32: Arrange<f32>,
    /// Rounds to bfloat16 and widens again.
    pub(crate) round: unsafe fn(&[f32], &mut [f32]),
    /// Rounds to bfloat16, two to an element, the first in the lower half.
    pub(crate) pack_pairs: unsafe fn(&[f32], &mut [u32]),
    /// The same of numbers that are bfloat16 already.
    pub(crate) pack_rounded: unsafe fn(&[f32], &mut [u32]),
    /// Rounds to bfloat16, into the lower half of each element; the upper half becomes 0.
    pub(crate) store_lower: unsafe fn(&[f32], &mut [u32]),
    /// Rounds to bfloat16, into the upper half of each element; the lower half stays.
    pub(crate) store_upper: unsafe fn(&[f32], &mut [u32]),
    /// `(scores, scale, state)`
    pub(crate) softmax_step: SoftmaxStep,
    /// The same, with weights rounded to bfloat16 before they are summed.
    pub(crate) softmax_step_rounded: SoftmaxStep,
}

/// `(x, step, out, stride)`
pub(crate) type Arrange<E> = unsafe fn(&[f32], usize, &mut [E], usize);

/// `(scores, scale, softmax)`
pub(crate) type SoftmaxStep = unsafe fn(&mut [f32], f32, &mut Softmax);

type Norm = unsafe fn(&[f32], &[f32], f32, &mut [MaybeUninit<f32>]);

type NormAndRotate = unsafe fn(&[f32], &[f32], f32, (&[f32], &[f32]), &mut [MaybeUninit<f32>]);

/// Compiles the loops with `$features` into the table `$table`. The orders are those that its linear layers want the
/// elements of a step in, for bfloat16 weights that are widened and for f32 ones.
macro_rules! compile {
    ($table:ident, $module:ident, $mul_add:ty, orders: $bf16_order:expr, $f32_order:expr $(, $features:literal)?) => {
        pub(crate) use $module::TABLE as $table;

        mod $module {
            use std::mem::MaybeUninit;

            use half::bf16;

            use super::{Elementwise, Softmax};

            $(#[target_feature(enable = $features)])?
            fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) {
                super::rms_norm(x, weight, eps, out);
            }

            $(#[target_feature(enable = $features)])?
            fn norm_and_rotate(
                head: &[f32],
                weight: &[f32],
                eps: f32,
                angles: (&[f32], &[f32]),
                out: &mut [MaybeUninit<f32>],
            ) {
                super::norm_and_rotate(head, weight, eps, angles, out);
            }

            $(#[target_feature(enable = $features)])?
            fn silu_mul(gate: &mut [f32], up: &[f32]) {
                super::silu_mul::<$mul_add>(gate, up);
            }

            $(#[target_feature(enable = $features)])?
            fn arrange_bf16(x: &[f32], step: usize, out: &mut [bf16], stride: usize) {
                super::arrange(x, step, super::IN_ORDER, out, stride, |x| bf16::from_bits(super::round_bits(x)));
            }

            $(#[target_feature(enable = $features)])?
            fn arrange_rounded(x: &[f32], step: usize, out: &mut [f32], stride: usize) {
                super::arrange(x, step, $bf16_order, out, stride, super::rounded);
            }

            $(#[target_feature(enable = $features)])?
            fn arrange_f32(x: &[f32], step: usize, out: &mut [f32], stride: usize) {
                super::arrange(x, step, $f32_order, out, stride, |x| x);
            }

            $(#[target_feature(enable = $features)])?
            fn arrange_unrounded(x: &[f32], step: usize, out: &mut [f32], stride: usize) {
                super::arrange(x, step, $bf16_order, out, stride, |x| x);
            }

            $(#[target_feature(enable = $features)])?
            fn round(x: &[f32], out: &mut [f32]) {
                super::round(x, out);
            }

            $(#[target_feature(enable = $features)])?
            fn pack_pairs(x: &[f32], out: &mut [u32]) {
                super::pack_pairs(x, out);
            }

            $(#[target_feature(enable = $features)])?
            fn pack_rounded(x: &[f32], out: &mut [u32]) {
                super::pack_rounded(x, out);
            }

            $(#[target_feature(enable = $features)])?
            fn store_lower(x: &[f32], pairs: &mut [u32]) {
                super::store_lower(x, pairs);
            }

            $(#[target_feature(enable = $features)])?
            fn store_upper(x: &[f32], pairs: &mut [u32]) {
                super::store_upper(x, pairs);
            }

            $(#[target_feature(enable = $features)])?
            fn softmax_step(scores: &mut [f32], scale: f32, softmax: &mut Softmax) {
                super::softmax_step::<$mul_add, false>(scores, scale, softmax);
            }

            $(#[target_feature(enable = $features)])?
            fn softmax_step_rounded(scores: &mut [f32], scale: f32, softmax: &mut Softmax) {
                super::softmax_step::<$mul_add, true>(scores, scale, softmax);
            }

            pub(crate) static TABLE: Elementwise = Elementwise {
                rms_norm,
                norm_and_rotate,
                silu_mul,
                arrange_bf16,
                arrange_rounded,
                arrange_unrounded,
                arrange_f32,
                round,
                pack_pairs,
                pack_rounded,
                store_lower,
                store_upper,
                softmax_step,
                softmax_step_rounded,
            };
        }
    };
}

compile!(SCALAR, scalar, super::TwoRoundings, orders: super::IN_ORDER, super::IN_ORDER);
#[cfg(target_arch = "x86_64")]
compile!(AVX2, avx2, super::Fused, orders: Some(&super::SPLIT_16), Some(&super::PAIRED), "avx2,fma");
#[cfg(target_arch = "x86_64")]
compile!(AVX512, avx512, super::Fused, orders: Some(&super::SPLIT_32), Some(&super::SPLIT_32), "avx512f");

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f32, want: f64) -> f64 {
        let ulp = 2f64.powf(want.log2().floor() - 23.0);
        (f64::from(got) - want).abs() / ulp
    }

    fn check_exponential<M: MulAdd>() {
        let mut x = 0.0f32;
        while x > -87.0 {
            let error = ulps(exp_non_positive::<M>(x), f64::from(x).exp());
            assert!(error <= 2.0, "e^{x}: {error} ulp");
            x -= 0.001_37;
        }
        for (x, want) in [(0.0, 1.0f32), (-88.0, 0.0), (f32::NEG_INFINITY, 0.0)] {
            assert_eq!(exp_non_positive::<M>(x).to_bits(), want.to_bits(), "e^{x}");
        }
        assert!(exp_non_positive::<M>(f32::NAN).is_nan());
    }

    #[test]
    fn the_exponential_is_within_two_units_in_the_last_place() {
        check_exponential::<TwoRoundings>();
        #[cfg(target_arch = "x86_64")]
        check_exponential::<Fused>();
    }

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
    fn rounding_is_that_of_half() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            let want = bf16::from_f32(x);
            assert_eq!(round_bits(x), want.to_bits(), "{x:e}");
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
            softmax_step::<TwoRoundings, false>(&mut scores, 0.5, &mut softmax);
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
