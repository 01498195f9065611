//! Products that are added with one rounding, on machines that have no instruction for it.
#![expect(clippy::inline_always, reason = "a part of the loops, which the compiler vectorises")]

/// `a · b + c`, rounded once: the bits of `f32::mul_add`, in plain arithmetic.
///
/// Without an instruction for it `f32::mul_add` is a call for each number, and of a system's own making. This is some twenty
/// operations, but vectors of them.
#[cfg(not(target_arch = "aarch64"))]
#[inline(always)]
pub(super) fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    // Exact: 24 bits by 24 bits are 48.
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    // What the sum's own rounding lost, exactly (Knuth's TwoSum). NaN where the sum is no number.
    let part_of_c = sum - product;
    let lost = (product - (sum - part_of_c)) + (c - part_of_c);
    to_nearest(sum, lost)
}

/// Where there is an instruction for it.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(super) fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// `sum + lost` rounded to f32, where `lost` is less than the last place of `sum`.
///
/// A sum that lost something and whose last bit is 0 goes to the neighbour on the other side of what is exact, whose last bit is
/// 1. So it is never halfway between two f32, nor an f32: a second rounding cannot undo which side of these it is on.
#[cfg(any(test, not(target_arch = "aarch64")))]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the one rounding")]
fn to_nearest(sum: f64, lost: f64) -> f32 {
    let bits = sum.to_bits();
    let is_inexact = lost.abs() > 0.0;
    let is_larger = (lost < 0.0) == (sum < 0.0);
    // The neighbour is away from 0 if what is exact is.
    let step = if is_larger { 1 } else { u64::MAX };
    let step = if is_inexact { step } else { 0 };
    let step = if bits & 1 == 0 { step } else { 0 };
    f64::from_bits(bits.wrapping_add(step)) as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Holds it to what the platform has, whatever that takes.
    fn check(a: f32, b: f32, c: f32) {
        let (got, want) = (mul_add(a, b, c), a.mul_add(b, c));
        let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
        assert!(same, "{a:e} · {b:e} + {c:e}: {got:e} against {want:e}");
    }

    const SPECIAL: [f32; 18] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1.5,
        1.000_000_1,
        -0.999_999_94,
        f32::MIN_POSITIVE,
        -f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(0x007f_ffff),
        f32::EPSILON,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        16_777_217.0,
    ];

    #[test]
    fn it_is_fused_for_special_numbers() {
        for a in SPECIAL {
            for b in SPECIAL {
                for c in SPECIAL {
                    check(a, b, c);
                }
            }
        }
    }

    #[test]
    fn a_sum_just_beside_halfway_goes_to_the_nearer_side() {
        // 1 + 2^-24 is halfway between two f32; what is added to it is lost in f64.
        let (a, b) = (1.0 + f32::EPSILON, 1.0 - f32::EPSILON / 2.0);
        for (c, shift) in [(1.0f32, 24), (3.0, 25), (-1.0, 24), (1.0, 60), (1.0, 120)] {
            let tiny = f32::from_bits((127 - shift) << 23);
            for a in [a, b, 1.0, -1.0, -a] {
                for b in [a, b, tiny, -tiny, tiny * b] {
                    check(a, b, c);
                    check(a, b * tiny, c);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn it_is_fused_for_all_bits(a in any::<u32>(), b in any::<u32>(), c in any::<u32>()) {
            check(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
        }

        #[test]
        fn it_is_fused_where_the_product_and_the_sum_are_of_all_distances(
            a in 0u32..1 << 23,
            b in 0u32..1 << 23,
            c in 0u32..1 << 23,
            // Few digits, so that a sum is often near halfway.
            digits in 0u32..24,
            exponent in 0u32..120,
            signs in 0u32..8,
        ) {
            let number = |fraction: u32, exponent: u32, sign: u32| {
                let fraction = fraction >> digits << digits;
                f32::from_bits(sign << 31 | exponent << 23 | fraction)
            };
            let a = number(a, 127, signs & 1);
            let b = number(b, 127, signs >> 1 & 1);
            let c = number(c, 67 + exponent, signs >> 2);
            check(a, b, c);
            check(a, b * 1e-38, c * 1e-38);
        }
    }
}
