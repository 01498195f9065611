//! Products of 8-bit integers, four at a time (VNNI): a vector is a step of a strip.
#![expect(
    unsafe_code,
    reason = "loads and stores of whole arrays, and calls of what needs an instruction set"
)]
#![expect(clippy::inline_always, reason = "methods of a kernel become a part of the loops")]

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_cvtepi32_ps,
    _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_reduce_add_epi32, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_si512, _mm512_storeu_ps,
};
use std::hint::black_box;

use crate::formats::strips::{ROWS, STEP, Scales, Step};
use crate::linear::int8::Int8Kernel;
use crate::tier::Work;

/// The machine has AVX-512 F, BW and VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vnni(());

/// Whether the machine has them.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// `work` with the tier's instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn compiled<W: Work>(work: W) -> W::Output {
    work.run()
}

#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn multiply_add(w: __m512i, x: [i8; STEP], sums: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned))))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(step: &Step) -> __m512i {
    // SAFETY: a step is 64 bytes.
    unsafe { _mm512_loadu_si512(step.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn widened(scales: &Scales) -> __m512 {
    // SAFETY: they are 32 bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add(sums: __m512i, scales: __m512, x_scale: f32, out: &mut [f32; ROWS]) {
    let scales = _mm512_mul_ps(scales, _mm512_set1_ps(x_scale));
    // SAFETY: `out` is 16 f32.
    let before = unsafe { _mm512_loadu_ps(out.as_ptr()) };
    let after = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scales, before);
    // SAFETY: `out` is 16 f32.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), after) };
}

impl Int8Kernel for Vnni {
    type Input = [i8; STEP];
    type Weights = __m512i;
    type Sums = __m512i;
    type Scales = __m512;

    const MR: usize = 4;
    const NR: usize = 6;

    #[inline(always)]
    unsafe fn new() -> Self {
        Self(())
    }

    #[inline(always)]
    fn compile<W: Work>(self, work: W) -> W::Output {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { compiled(work) }
    }

    #[cfg(all(test, not(debug_assertions)))]
    fn address_of<W: Work>() -> usize {
        compiled::<W> as unsafe fn(W) -> W::Output as usize
    }

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: an address that isn't there does no harm.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }

    #[inline(always)]
    fn input(x: [i8; STEP]) -> Self::Input {
        x
    }

    #[inline(always)]
    fn start(self, sum: i32) -> __m512i {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { _mm512_set1_epi32(sum) }
    }

    #[inline(always)]
    fn weights(self, step: &Step) -> __m512i {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { load(step) }
    }

    #[inline(always)]
    fn multiply_add(self, w: __m512i, x: &Self::Input, sums: __m512i) -> __m512i {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { multiply_add(w, *x, sums) }
    }

    #[inline(always)]
    fn scales(self, scales: &Scales) -> __m512 {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { widened(scales) }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, scales: __m512, x_scale: f32, out: &mut [f32; ROWS]) {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { add(sums, scales, x_scale, out) }
    }
}

/// `steps` times 24 independent products of fours.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) fn vnni_products(steps: usize) -> f32 {
    // Numbers that the compiler does not know, as for `f32_products`.
    let w = load(&black_box([1; 64]));
    let x = black_box([1i8; STEP]);
    let mut sums = [_mm512_setzero_si512(); 24];
    for _ in 0..steps {
        for sums in &mut sums {
            *sums = multiply_add(w, x, *sums);
        }
    }
    sums.into_iter().map(|sums| _mm512_reduce_add_epi32(sums) as f32).sum()
}
