//! RMS norm, alone and with the rotation of a head.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]
#![expect(
    unsafe_code,
    reason = "kernels need their instruction set, and write what holds nothing yet"
)]

use std::mem::MaybeUninit;

use super::{LANES, fold_lanes};
use crate::tier::{Compile, Work};

/// # Safety
/// The machine has the tier.
pub(super) unsafe fn rms_norm<C: Compile>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [MaybeUninit<f32>],
) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(RmsNorm { x, weight, eps, out });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [MaybeUninit<f32>],
}

impl<'a> Work for RmsNorm<'a> {
    type Output = &'a mut [f32];

    #[inline(always)]
    fn run(self) -> &'a mut [f32] {
        let Self { x, weight, eps, out } = self;
        assert!(out.len() == x.len() && out.len() == weight.len());
        let mean = sum(x, |x| x * x) / x.len() as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
            out.write(x * scale * weight);
        }
        // SAFETY: the three have one length, so the loop wrote all of `out`.
        unsafe { out.assume_init_mut() }
    }
}

/// # Safety
/// The machine has the tier.
pub(super) unsafe fn norm_and_rotate<C: Compile>(
    head: &[f32],
    weight: &[f32],
    eps: f32,
    angles: (&[f32], &[f32]),
    out: &mut [MaybeUninit<f32>],
) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(NormAndRotate { norm: RmsNorm { x: head, weight, eps, out }, angles });
}

struct NormAndRotate<'a> {
    norm: RmsNorm<'a>,
    /// Cosines and sines.
    angles: (&'a [f32], &'a [f32]),
}

impl Work for NormAndRotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (cos, sin) = self.angles;
        let out = self.norm.run();
        let (first, second) = out.split_at_mut(out.len() / 2);
        for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
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
