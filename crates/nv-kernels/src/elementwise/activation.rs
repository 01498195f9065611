//! The exponential, and the activation that is made of it.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]
#![expect(unsafe_code, reason = "kernels need their instruction set")]

use std::marker::PhantomData;

use crate::tier::{Compile, Work};

/// `gate = silu(gate) * up`
///
/// # Safety
/// The machine has the tier.
pub(super) unsafe fn silu_mul<C: Compile>(gate: &mut [f32], up: &[f32]) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(SiluMul::<C> { gate, up, tier: PhantomData });
}

struct SiluMul<'a, C> {
    gate: &'a mut [f32],
    up: &'a [f32],
    tier: PhantomData<C>,
}

impl<C: Compile> Work for SiluMul<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate * sigmoid::<C>(*gate) * up;
        }
    }
}

/// `1 / (1 + e^-x)`, through the exponential of a non-positive number on either side.
#[inline(always)]
fn sigmoid<C: Compile>(x: f32) -> f32 {
    let e = exp_non_positive::<C>(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// `e^x` for `x <= 0`, within 2 units in the last place of f32; below -87 it is 0.
///
/// `2^n · e^r` with `n` the integer nearest to `x / ln 2`; a polynomial for `e^r`, exponent bits for `2^n`.
#[inline(always)]
pub(super) fn exp_non_positive<C: Compile>(x: f32) -> f32 {
    /// Adding and subtracting it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with zeros at the end, so that `n · LN_2_HIGH` is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x };
    // The low bits of `shifted` are n.
    let shifted = C::mul_add(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = C::mul_add(n, -LN_2_LOW, C::mul_add(n, -LN_2_HIGH, clamped));
    let mut e_r = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0]
    {
        e_r = C::mul_add(e_r, r, coefficient);
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { e_r * power }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar::Scalar;

    fn ulps(got: f32, want: f64) -> f64 {
        let ulp = 2f64.powf(want.log2().floor() - 23.0);
        (f64::from(got) - want).abs() / ulp
    }

    fn check_exponential<C: Compile>() {
        let mut x = 0.0f32;
        while x > -87.0 {
            let error = ulps(exp_non_positive::<C>(x), f64::from(x).exp());
            assert!(error <= 2.0, "e^{x}: {error} ulp");
            x -= 0.001_37;
        }
        for (x, want) in [(0.0, 1.0f32), (-88.0, 0.0), (f32::NEG_INFINITY, 0.0)] {
            assert_eq!(exp_non_positive::<C>(x).to_bits(), want.to_bits(), "e^{x}");
        }
        assert!(exp_non_positive::<C>(f32::NAN).is_nan());
    }

    #[test]
    fn the_exponential_is_within_two_units_in_the_last_place() {
        check_exponential::<Scalar>();
        check_exponential::<Scalar<true>>();
    }
}
