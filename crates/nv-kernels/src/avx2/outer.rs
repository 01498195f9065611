//! Outer products, of f32 and of bfloat16 pairs.
#![expect(unsafe_code, reason = "loads and stores at addresses that `Outer::check` vouches for")]

use std::arch::x86_64::{
    __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::{even, odd, reload};
use crate::outer::outer;

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

// 12 sums, 2 vectors and a number: 15 of 16 registers.
outer!(
    outer_f32, "avx2,fma", [f32; 1], f32,
    sums: [_mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps] of 1,
    rows: [1 2 3 4 5 6] by [8, 4, 2],
    parts: [splat by load_f32], _mm256_fmadd_ps
);
outer!(
    outer_bf16_f32, "avx2,fma", [f32; 2], u32,
    sums: [_mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps] of 1,
    rows: [1 2 3 4 5 6] by [8, 4, 2],
    parts: [splat_first by load_first, splat_second by load_second], _mm256_fmadd_ps
);
