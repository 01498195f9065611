//! Rounding to bfloat16, and packing.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]
#![expect(unsafe_code, reason = "kernels need their instruction set")]

use crate::tier::{Compile, Work};

/// Rounds to bfloat16 and widens again.
///
/// # Safety
/// The machine has the tier.
pub(super) unsafe fn round<C: Compile>(x: &[f32], out: &mut [f32]) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(Round { x, out });
}

struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Work for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            *out = rounded(x);
        }
    }
}

/// Rounds to bfloat16, two to an element.
///
/// # Safety
/// The machine has the tier.
pub(super) unsafe fn pack_pairs<C: Compile>(x: &[f32], out: &mut [u32]) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(Pack::<false> { x, out });
}

/// Packs numbers that are bfloat16 already.
///
/// # Safety
/// The machine has the tier.
pub(super) unsafe fn pack_rounded<C: Compile>(x: &[f32], out: &mut [u32]) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(Pack::<true> { x, out });
}

struct Pack<'a, const ROUNDED: bool> {
    x: &'a [f32],
    out: &'a mut [u32],
}

impl<const ROUNDED: bool> Work for Pack<'_, ROUNDED> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (pairs, _) = self.x.as_chunks::<2>();
        for (out, &[first, second]) in self.out.iter_mut().zip(pairs) {
            *out = if ROUNDED {
                first.to_bits() >> 16 | second.to_bits()
            } else {
                u32::from(round_bits(first)) | u32::from(round_bits(second)) << 16
            };
        }
    }
}

/// Rounds to bfloat16, the lower half of each pair; the upper half becomes 0.
///
/// # Safety
/// The machine has the tier.
pub(super) unsafe fn store_lower<C: Compile>(x: &[f32], pairs: &mut [u32]) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(Store::<false> { x, pairs });
}

/// Rounds to bfloat16, the upper half of each pair; the lower half stays.
///
/// # Safety
/// The machine has the tier.
pub(super) unsafe fn store_upper<C: Compile>(x: &[f32], pairs: &mut [u32]) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(Store::<true> { x, pairs });
}

struct Store<'a, const UPPER: bool> {
    x: &'a [f32],
    pairs: &'a mut [u32],
}

impl<const UPPER: bool> Work for Store<'_, UPPER> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (pair, &x) in self.pairs.iter_mut().zip(self.x) {
            let bits = u32::from(round_bits(x));
            *pair = if UPPER { (*pair & 0xffff) | bits << 16 } else { bits };
        }
    }
}

/// The bfloat16 nearest to `x`.
#[inline(always)]
pub(super) fn rounded(x: f32) -> f32 {
    f32::from_bits(u32::from(round_bits(x)) << 16)
}

/// The bits of the bfloat16 nearest to `x`, ties to even; any NaN stays one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the upper half of 32 bits")]
pub(super) fn round_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { nearest }) as u16
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            let want = bf16::from_f32(x);
            assert_eq!(round_bits(x), want.to_bits(), "{x:e}");
        }
    }
}
