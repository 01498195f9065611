//! The kernels that are plain loops in every tier: norms, rotation, activations, softmax weights, rounding.
//!
//! Each loop is written once, as [`Work`](crate::tier::Work) that a tier compiles, so that the compiler vectorises it with
//! what the tier has. The loops fix the order of every sum and what is fused themselves: tiers that add products alike
//! ([`Compile::mul_add`]) give the same bits.

mod activation;
pub(crate) mod arrange;
mod bf16;
mod norm;
mod softmax;

use std::mem::MaybeUninit;

pub(crate) use self::softmax::Softmax;
use crate::tier::Compile;

/// Partial sums that run side by side; the lanes of the widest vector.
const LANES: usize = 16;

/// One tier's compilation of the loops. Slices that go together have the same length.
pub(crate) struct Elementwise {
    /// `(x, weight, eps, out)`; writes all of `out`.
    pub(crate) rms_norm: Norm,
    /// `(head, weight, eps, (cos, sin), out)`; writes all of `out`.
    pub(crate) norm_and_rotate: NormAndRotate,
    /// `gate = silu(gate) * up`
    pub(crate) silu_mul: unsafe fn(&mut [f32], &[f32]),
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

/// `(scores, scale, softmax)`
pub(crate) type SoftmaxStep = unsafe fn(&mut [f32], f32, &mut Softmax);

type Norm = unsafe fn(&[f32], &[f32], f32, &mut [MaybeUninit<f32>]);

type NormAndRotate = unsafe fn(&[f32], &[f32], f32, (&[f32], &[f32]), &mut [MaybeUninit<f32>]);

impl Elementwise {
    /// The loops as `C` compiles them: to be called only where the machine has the tier.
    pub(crate) const fn of<C: Compile>() -> Self {
        Self {
            rms_norm: norm::rms_norm::<C>,
            norm_and_rotate: norm::norm_and_rotate::<C>,
            silu_mul: activation::silu_mul::<C>,
            round: bf16::round::<C>,
            pack_pairs: bf16::pack_pairs::<C>,
            pack_rounded: bf16::pack_rounded::<C>,
            store_lower: bf16::store_lower::<C>,
            store_upper: bf16::store_upper::<C>,
            softmax_step: softmax::step::<C, false>,
            softmax_step_rounded: softmax::step::<C, true>,
        }
    }
}

/// Folds the lanes in halves: 16 to 8, to 4, to 2, to 1.
#[inline(always)]
#[expect(clippy::inline_always, reason = "each tier compiles its own copy")]
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

#[expect(unsafe_code, reason = "kernels need their instruction set")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::table::Kernels;

    /// The loops of the portable kernels of this machine's tiers, the scalar ones first.
    fn portable_loops() -> impl Iterator<Item = (Isa, &'static Elementwise)> {
        let kernels = Isa::ALL.into_iter().filter_map(Kernels::for_isa);
        kernels.map(|kernels| (kernels.isa(), kernels.portable().elementwise))
    }

    /// Numbers of all kinds: NaN, infinities, denormals and zeros among them.
    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        const SPECIAL: [f32; 5] = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        (0..)
            .take(len)
            .map(|i: u32| {
                let bits = (i + 1).wrapping_mul(0x9e37_79b9).wrapping_mul(seed | 1) ^ i;
                // Every third is of a size that exponentials tell apart.
                match bits % 3 {
                    0 => f32::from_bits(bits),
                    1 => (bits >> 8) as f32 / 65_536.0 - 128.0,
                    _ if bits.is_multiple_of(7) => SPECIAL[bits as usize % 5],
                    _ => -((bits >> 8) as f32 / 131_072.0),
                }
            })
            .collect()
    }

    /// Holds what `run` makes of numbers to the same bits in every tier, where it is a number.
    fn check(what: &str, run: impl Fn(&Elementwise) -> Vec<f32>) {
        let bits = |x: f32| if x.is_nan() { f32::NAN } else { x }.to_bits();
        let mut scalar = None;
        for (isa, loops) in portable_loops() {
            let got = run(loops).into_iter().map(bits).collect::<Vec<_>>();
            let want = scalar.get_or_insert_with(|| got.clone());
            assert_eq!(got.len(), want.len());
            if let Some(i) = (0..got.len()).find(|&i| got[i] != want[i]) {
                panic!("{isa}, {what}: {:x} at {i}, {:x} in plain Rust", got[i], want[i]);
            }
        }
    }

    #[test]
    fn activations_are_the_same_in_all_tiers() {
        for len in (0..=130).chain([100_003]) {
            let (gate, up) = (numbers(len, 3), numbers(len, 5));
            check(&format!("{len} activations"), |loops| {
                let mut out = gate.clone();
                // SAFETY: the kernels are of a tier that the machine has.
                unsafe { (loops.silu_mul)(&mut out, &up) };
                out
            });
        }
    }

    #[test]
    fn softmax_weights_are_the_same_in_all_tiers() {
        for (num_rows, row_len) in [(1, 16), (3, 128), (7, 128), (126, 128)] {
            for (scale, rounded) in [(0.088_388_35, true), (0.088_388_35, false), (3.7, false)] {
                check(&format!("{num_rows} rows of {row_len}"), |loops| {
                    let step =
                        if rounded { loops.softmax_step_rounded } else { loops.softmax_step };
                    let mut softmax = Softmax::new(num_rows);
                    let mut out = Vec::new();
                    for tile in 0..3 {
                        let mut scores = numbers(num_rows * row_len, 7 + 2 * tile);
                        // The last ones of every other row are hidden.
                        for row in scores.chunks_mut(row_len).step_by(2) {
                            row[row_len / 3..].fill(f32::NEG_INFINITY);
                        }
                        // SAFETY: the kernels are of a tier that the machine has.
                        unsafe { step(&mut scores, scale, &mut softmax) };
                        out.extend(scores);
                        out.extend(&softmax.corrections);
                        out.extend((0..num_rows).map(|row| softmax.total(row)));
                    }
                    out
                });
            }
        }
    }

    /// What a norm makes of `x`, with rotation by `angles` if there are any.
    fn norm(
        loops: &Elementwise,
        x: &[f32],
        weight: &[f32],
        angles: Option<(&[f32], &[f32])>,
    ) -> Vec<f32> {
        let mut out = vec![MaybeUninit::new(0.0); x.len()];
        match angles {
            // SAFETY: the kernels are of a tier that the machine has.
            Some(angles) => unsafe { (loops.norm_and_rotate)(x, weight, 1e-6, angles, &mut out) },
            // SAFETY: the kernels are of a tier that the machine has.
            None => unsafe { (loops.rms_norm)(x, weight, 1e-6, &mut out) },
        }
        // SAFETY: they were numbers from the start.
        out.into_iter().map(|x| unsafe { x.assume_init() }).collect()
    }

    #[test]
    fn norms_are_the_same_in_all_tiers() {
        for len in 1..=130 {
            // Of a size whose squares stay in range; one row in four has what doesn't.
            let mut x = numbers(len, 9);
            if !len.is_multiple_of(4) {
                for x in &mut x {
                    *x = if x.is_nan() { 0.5 } else { x.clamp(-1e3, 1e3) };
                }
            }
            let weight = numbers(len, 11);
            let (cos, sin) = (numbers(len / 2, 13), numbers(len / 2, 15));
            check(&format!("norm of {len}"), |loops| norm(loops, &x, &weight, None));
            if len.is_multiple_of(2) {
                let angles = Some((&*cos, &*sin));
                check(&format!("rotation of {len}"), |loops| norm(loops, &x, &weight, angles));
            }
        }
    }

    #[test]
    fn roundings_are_the_same_in_all_tiers() {
        for len in (0..=130).chain([100_003]) {
            let x = numbers(len, 17);
            for (isa, loops) in portable_loops() {
                let mut rounded = vec![0.0; len];
                let mut pairs = [(); 4].map(|()| vec![0xabcd_1234; len]);
                let [packed, again, lower, upper] = &mut pairs;
                // SAFETY: the kernels are of a tier that the machine has.
                unsafe { (loops.round)(&x, &mut rounded) };
                // SAFETY: as above.
                unsafe { (loops.pack_pairs)(&x, packed) };
                // SAFETY: as above.
                unsafe { (loops.pack_rounded)(&rounded, again) };
                // SAFETY: as above.
                unsafe { (loops.store_lower)(&x, lower) };
                // SAFETY: as above.
                unsafe { (loops.store_upper)(&x, upper) };
                let want: Vec<u32> =
                    x.iter().map(|&x| half::bf16::from_f32(x).to_bits().into()).collect();
                let is = |got: &[u32], want: &dyn Fn(usize) -> u32| {
                    let wrong = (0..got.len()).find(|&i| got[i] != want(i));
                    assert_eq!(wrong, None, "{isa}, {len} numbers");
                };
                is(&rounded.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), &|i| want[i] << 16);
                for packed in [&packed[..len / 2], &again[..len / 2]] {
                    is(packed, &|i| want[2 * i] | want[2 * i + 1] << 16);
                }
                is(lower, &|i| want[i]);
                is(upper, &|i| 0x1234 | want[i] << 16);
            }
        }
    }
}
