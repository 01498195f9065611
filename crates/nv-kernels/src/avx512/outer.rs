//! Outer products, of f32 and of bfloat16 pairs.
#![expect(clippy::inline_always, reason = "methods of a kernel become a part of the loops")]
#![expect(unsafe_code, reason = "loads and stores at addresses that `Outer::check` vouches for")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm256_loadu_si256, _mm512_castsi256_si512, _mm512_castsi512_ps,
    _mm512_dpbf16_ps, _mm512_inserti64x4, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps,
};

use super::{Avx512, even, odd};
use crate::attention::outer::{self, Outer, OuterKernel};
use crate::tier::{Compile, Tier};

/// The number.
///
/// # Safety
/// It must be there.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn splat(a: *const [f32; 1]) -> __m512 {
    // SAFETY: says the caller.
    _mm512_set1_ps(unsafe { (*a)[0] })
}

/// The first number of two.
///
/// # Safety
/// It must be there.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn splat_first(a: *const [f32; 2]) -> __m512 {
    // SAFETY: says the caller.
    _mm512_set1_ps(unsafe { (*a)[0] })
}

/// The second number of two.
///
/// # Safety
/// It must be there.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn splat_second(a: *const [f32; 2]) -> __m512 {
    // SAFETY: says the caller.
    _mm512_set1_ps(unsafe { (*a)[1] })
}

/// The pair.
///
/// # Safety
/// It must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn splat_pair(a: *const u32) -> __m512bh {
    // SAFETY: says the caller.
    as_pairs(_mm512_set1_epi32(unsafe { *a }.cast_signed()))
}

/// The same bits, seen as bfloat16 pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn as_pairs(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, and every bit pattern is valid.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
}

/// Two vectors of 32 bytes each.
///
/// # Safety
/// They must be there; side by side, if `WHOLE`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load<const WHOLE: bool, B>([low, high]: [*const B; 2]) -> __m512i {
    if WHOLE {
        // SAFETY: says the caller.
        return unsafe { _mm512_loadu_si512(low.cast()) };
    }
    // SAFETY: says the caller.
    let low = unsafe { _mm256_loadu_si256(low.cast()) };
    // SAFETY: says the caller.
    let high = unsafe { _mm256_loadu_si256(high.cast()) };
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// 16 f32.
///
/// # Safety
/// As [`load`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_f32<const WHOLE: bool>(b: [*const f32; 2]) -> __m512 {
    // SAFETY: says the caller.
    _mm512_castsi512_ps(unsafe { load::<WHOLE, _>(b) })
}

/// The first numbers of 16 pairs.
///
/// # Safety
/// As [`load`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_first<const WHOLE: bool>(b: [*const u32; 2]) -> __m512 {
    // SAFETY: says the caller.
    even(unsafe { load::<WHOLE, _>(b) })
}

/// The second numbers of 16 pairs.
///
/// # Safety
/// As [`load`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_second<const WHOLE: bool>(b: [*const u32; 2]) -> __m512 {
    // SAFETY: says the caller.
    odd(unsafe { load::<WHOLE, _>(b) })
}

/// 16 pairs.
///
/// # Safety
/// As [`load`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn load_pairs<const WHOLE: bool>(b: [*const u32; 2]) -> __m512bh {
    // SAFETY: says the caller.
    as_pairs(unsafe { load::<WHOLE, _>(b) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn mul_add_pairs(a: __m512bh, b: __m512bh, c: __m512) -> __m512 {
    _mm512_dpbf16_ps(c, a, b)
}

// 24 sums, 4 registers and a number: 29 of 32 registers.
const REGISTERS: [usize; 3] = [8, 8, 4];

/// f32 by f32.
pub(crate) struct F32;

impl OuterKernel<2> for F32 {
    type Tier = Avx512;
    type A = [f32; 1];
    type B = f32;
    type Splat = __m512;
    type Register = __m512;

    const PRODUCTS: usize = 1;
    const REGISTERS: [usize; 3] = REGISTERS;

    #[inline(always)]
    unsafe fn splat<const P: usize>(_: Avx512, a: *const [f32; 1]) -> __m512 {
        // SAFETY: says the caller, and the tier that the machine has it.
        unsafe { splat(a) }
    }

    #[inline(always)]
    unsafe fn load<const P: usize, const WHOLE: bool>(
        _: Avx512,
        vectors: [*const f32; 2],
    ) -> __m512 {
        // SAFETY: says the caller, and the tier that the machine has it.
        unsafe { load_f32::<WHOLE>(vectors) }
    }

    #[inline(always)]
    fn multiply_add(tier: Avx512, a: __m512, b: __m512, sums: __m512) -> __m512 {
        tier.multiply_add(a, b, sums)
    }
}

/// Pairs of f32 by pairs of bfloat16, widened.
pub(crate) struct Bf16Widened;

impl OuterKernel<2> for Bf16Widened {
    type Tier = Avx512;
    type A = [f32; 2];
    type B = u32;
    type Splat = __m512;
    type Register = __m512;

    const PRODUCTS: usize = 2;
    const REGISTERS: [usize; 3] = REGISTERS;

    #[inline(always)]
    unsafe fn splat<const P: usize>(_: Avx512, a: *const [f32; 2]) -> __m512 {
        if P == 0 {
            // SAFETY: says the caller, and the tier that the machine has it.
            unsafe { splat_first(a) }
        } else {
            // SAFETY: says the caller, and the tier that the machine has it.
            unsafe { splat_second(a) }
        }
    }

    #[inline(always)]
    unsafe fn load<const P: usize, const WHOLE: bool>(
        _: Avx512,
        vectors: [*const u32; 2],
    ) -> __m512 {
        if P == 0 {
            // SAFETY: says the caller, and the tier that the machine has it.
            unsafe { load_first::<WHOLE>(vectors) }
        } else {
            // SAFETY: says the caller, and the tier that the machine has it.
            unsafe { load_second::<WHOLE>(vectors) }
        }
    }

    #[inline(always)]
    fn multiply_add(tier: Avx512, a: __m512, b: __m512, sums: __m512) -> __m512 {
        tier.multiply_add(a, b, sums)
    }
}

/// Pairs of bfloat16 by pairs of bfloat16.
pub(crate) struct Bf16Pairs;

impl OuterKernel<2> for Bf16Pairs {
    type Tier = Avx512<true>;
    type A = u32;
    type B = u32;
    type Splat = __m512bh;
    type Register = __m512bh;

    const PRODUCTS: usize = 1;
    const REGISTERS: [usize; 3] = REGISTERS;

    #[inline(always)]
    unsafe fn splat<const P: usize>(_: Avx512<true>, a: *const u32) -> __m512bh {
        // SAFETY: says the caller, and the tier that the machine has it.
        unsafe { splat_pair(a) }
    }

    #[inline(always)]
    unsafe fn load<const P: usize, const WHOLE: bool>(
        _: Avx512<true>,
        vectors: [*const u32; 2],
    ) -> __m512bh {
        // SAFETY: says the caller, and the tier that the machine has it.
        unsafe { load_pairs::<WHOLE>(vectors) }
    }

    #[inline(always)]
    fn multiply_add(_: Avx512<true>, a: __m512bh, b: __m512bh, sums: __m512) -> __m512 {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { mul_add_pairs(a, b, sums) }
    }
}

/// # Safety
/// The machine has the tier.
pub(crate) unsafe fn outer_f32(outer: Outer<'_, [f32; 1], f32>) {
    // SAFETY: says the caller.
    let tier = unsafe { Avx512::<false>::new() };
    outer::add::<F32, 2>(tier, outer);
}

/// # Safety
/// The machine has the tier.
pub(crate) unsafe fn outer_bf16_f32(outer: Outer<'_, [f32; 2], u32>) {
    // SAFETY: says the caller.
    let tier = unsafe { Avx512::<false>::new() };
    outer::add::<Bf16Widened, 2>(tier, outer);
}

/// # Safety
/// The machine has the tier.
pub(crate) unsafe fn outer_bf16(outer: Outer<'_, u32, u32>) {
    // SAFETY: says the caller.
    let tier = unsafe { Avx512::<true>::new() };
    outer::add::<Bf16Pairs, 2>(tier, outer);
}
