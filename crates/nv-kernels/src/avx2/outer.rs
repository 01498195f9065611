//! Outer products, of f32 and of bfloat16 pairs.
#![expect(clippy::inline_always, reason = "methods of a kernel become a part of the loops")]
#![expect(unsafe_code, reason = "loads and stores at addresses that `Outer::check` vouches for")]

use std::arch::x86_64::{__m256, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_ps};

use super::{Avx2, even, odd, reload};
use crate::attention::outer::{self, Outer, OuterKernel};
use crate::tier::{Compile, Tier};

/// The number.
///
/// # Safety
/// It must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn splat(a: *const [f32; 1]) -> __m256 {
    // SAFETY: says the caller.
    _mm256_set1_ps(unsafe { (*a)[0] })
}

/// The first number of two.
///
/// # Safety
/// It must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn splat_first(a: *const [f32; 2]) -> __m256 {
    // SAFETY: says the caller.
    _mm256_set1_ps(unsafe { (*a)[0] })
}

/// The second number of two.
///
/// # Safety
/// It must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn splat_second(a: *const [f32; 2]) -> __m256 {
    // SAFETY: says the caller.
    _mm256_set1_ps(unsafe { (*a)[1] })
}

/// 8 f32.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_f32<const WHOLE: bool>([b]: [*const f32; 1]) -> __m256 {
    // SAFETY: says the caller.
    unsafe { _mm256_loadu_ps(b) }
}

/// The first numbers of 8 pairs.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_first<const WHOLE: bool>([b]: [*const u32; 1]) -> __m256 {
    // SAFETY: says the caller.
    even(unsafe { _mm256_loadu_si256(b.cast()) })
}

/// The second numbers of 8 pairs.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_second<const WHOLE: bool>([b]: [*const u32; 1]) -> __m256 {
    // SAFETY: says the caller.
    odd(unsafe { reload(b.cast()) })
}

// 12 sums, 2 registers and a number: 15 of 16 registers.
const REGISTERS: [usize; 3] = [8, 4, 2];

/// f32 by f32.
pub(crate) struct F32;

impl OuterKernel<1> for F32 {
    type Tier = Avx2;
    type A = [f32; 1];
    type B = f32;
    type Splat = __m256;
    type Register = __m256;

    const PRODUCTS: usize = 1;
    const REGISTERS: [usize; 3] = REGISTERS;

    #[inline(always)]
    unsafe fn splat<const P: usize>(_: Avx2, a: *const [f32; 1]) -> __m256 {
        // SAFETY: says the caller, and the tier that the machine has it.
        unsafe { splat(a) }
    }

    #[inline(always)]
    unsafe fn load<const P: usize, const WHOLE: bool>(_: Avx2, vectors: [*const f32; 1]) -> __m256 {
        // SAFETY: says the caller, and the tier that the machine has it.
        unsafe { load_f32::<WHOLE>(vectors) }
    }

    #[inline(always)]
    fn multiply_add(tier: Avx2, a: __m256, b: __m256, sums: __m256) -> __m256 {
        tier.multiply_add(a, b, sums)
    }
}

/// Pairs of f32 by pairs of bfloat16, widened.
pub(crate) struct Bf16Widened;

impl OuterKernel<1> for Bf16Widened {
    type Tier = Avx2;
    type A = [f32; 2];
    type B = u32;
    type Splat = __m256;
    type Register = __m256;

    const PRODUCTS: usize = 2;
    const REGISTERS: [usize; 3] = REGISTERS;

    #[inline(always)]
    unsafe fn splat<const P: usize>(_: Avx2, a: *const [f32; 2]) -> __m256 {
        if P == 0 {
            // SAFETY: says the caller, and the tier that the machine has it.
            unsafe { splat_first(a) }
        } else {
            // SAFETY: says the caller, and the tier that the machine has it.
            unsafe { splat_second(a) }
        }
    }

    #[inline(always)]
    unsafe fn load<const P: usize, const WHOLE: bool>(_: Avx2, vectors: [*const u32; 1]) -> __m256 {
        if P == 0 {
            // SAFETY: says the caller, and the tier that the machine has it.
            unsafe { load_first::<WHOLE>(vectors) }
        } else {
            // SAFETY: says the caller, and the tier that the machine has it.
            unsafe { load_second::<WHOLE>(vectors) }
        }
    }

    #[inline(always)]
    fn multiply_add(tier: Avx2, a: __m256, b: __m256, sums: __m256) -> __m256 {
        tier.multiply_add(a, b, sums)
    }
}

/// # Safety
/// The machine has the tier.
pub(crate) unsafe fn outer_f32(outer: Outer<'_, [f32; 1], f32>) {
    // SAFETY: says the caller.
    let tier = unsafe { Avx2::new() };
    outer::add::<F32, 1>(tier, outer);
}

/// # Safety
/// The machine has the tier.
pub(crate) unsafe fn outer_bf16_f32(outer: Outer<'_, [f32; 2], u32>) {
    // SAFETY: says the caller.
    let tier = unsafe { Avx2::new() };
    outer::add::<Bf16Widened, 1>(tier, outer);
}
