//! AVX2 with FMA: 8 lanes of f32, bfloat16 widened in registers.
#![expect(unsafe_code, reason = "loads at addresses that callers vouch for")]

mod dot;
mod outer;

use std::arch::x86_64::{
    __m256, __m256i, _mm256_and_si256, _mm256_castsi256_ps, _mm256_set1_epi32, _mm256_slli_epi32,
};

pub(crate) use dot::{f32_products, linear_bf16_f32, linear_f32};
pub(crate) use outer::{outer_bf16_f32, outer_f32};

/// The even ones of 16 bfloat16, as the f32 that they are.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn even(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))
}

/// The odd ones of 16 bfloat16, as the f32 that they are.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn odd(pairs: __m256i) -> __m256 {
    let bits = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
    _mm256_castsi256_ps(_mm256_and_si256(pairs, bits))
}

/// 32 bytes, loaded again even where the compiler knows them: it would keep them in a register that a tile needs for sums.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn reload(bytes: *const u8) -> __m256i {
    /// Of any alignment.
    #[repr(C, packed)]
    struct Unaligned(__m256i);
    // SAFETY: says the caller.
    unsafe { bytes.cast::<Unaligned>().read_volatile() }.0
}
