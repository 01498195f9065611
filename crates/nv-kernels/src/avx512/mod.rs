//! AVX-512: 16 lanes of f32, bfloat16 widened in registers, or multiplied in pairs where the machine has instructions for that.
#![expect(unsafe_code, reason = "loads at addresses that callers vouch for")]

mod dot;
mod outer;

use std::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_castsi512_ps, _mm512_set1_epi32, _mm512_slli_epi32,
};

pub(crate) use dot::{bf16_products, f32_products, linear_bf16, linear_bf16_f32, linear_f32};
pub(crate) use outer::{outer_bf16, outer_bf16_f32, outer_f32};

/// The even ones of 32 bfloat16, as the f32 that they are.
#[target_feature(enable = "avx512f")]
#[inline]
fn even(pairs: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))
}

/// The odd ones of 32 bfloat16, as the f32 that they are.
#[target_feature(enable = "avx512f")]
#[inline]
fn odd(pairs: __m512i) -> __m512 {
    let bits = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    _mm512_castsi512_ps(_mm512_and_si512(pairs, bits))
}

/// 64 bytes, loaded again even where the compiler knows them: it would keep them in a register that a tile needs for sums.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn reload(bytes: *const u8) -> __m512i {
    /// Of any alignment.
    #[repr(C, packed)]
    struct Unaligned(__m512i);
    // SAFETY: says the caller.
    unsafe { bytes.cast::<Unaligned>().read_volatile() }.0
}
