//! Outer products, of f32 and of bfloat16 pairs.
#![expect(unsafe_code, reason = "loads and stores at addresses that `Outer::check` vouches for")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm256_loadu_si256, _mm512_castsi256_si512, _mm512_castsi512_ps,
    _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_inserti64x4, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{even, odd};
use crate::outer::outer;

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

/// Two halves of 32 bytes each.
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

// 24 sums, 4 vectors and a number: 29 of 32 registers.
outer!(
    outer_f32, "avx512f", [f32; 1], f32,
    sums: [_mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps] of 2,
    rows: [1 2 3 4 5 6] by [8, 8, 4],
    parts: [splat by load_f32], _mm512_fmadd_ps
);
outer!(
    outer_bf16_f32, "avx512f", [f32; 2], u32,
    sums: [_mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps] of 2,
    rows: [1 2 3 4 5 6] by [8, 8, 4],
    parts: [splat_first by load_first, splat_second by load_second], _mm512_fmadd_ps
);
outer!(
    outer_bf16, "avx512f,avx512bw,avx512bf16", u32, u32,
    sums: [_mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps] of 2,
    rows: [1 2 3 4 5 6] by [8, 8, 4],
    parts: [splat_pair by load_pairs], mul_add_pairs
);
