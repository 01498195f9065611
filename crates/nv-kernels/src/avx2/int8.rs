//! Products of 8-bit integers: by AVX-VNNI, four at a time, or widened to 16 bits, two at a time. (AVX2's own products of bytes
//! saturate.) A step of a strip is two vectors.
#![expect(
    unsafe_code,
    reason = "loads and stores of whole arrays, and calls of what needs an instruction set"
)]
#![expect(clippy::inline_always, reason = "methods of a kernel become a part of the loops")]

use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_add_epi32,
    _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_dpbusd_avx_epi32,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mul_ps,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_srli_epi16,
    _mm256_storeu_ps, _mm256_storeu_si256,
};
use std::hint::black_box;

use crate::formats::strips::{ROWS, STEP, Scales, Step};
use crate::linear::int8::Int8Kernel;
use crate::tier::Work;

/// The machine has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Widened(());

/// The machine has AVX2, FMA, F16C and AVX-VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vnni(());

/// `work` with the tier's instructions.
#[target_feature(enable = "avx2,fma,f16c")]
fn compiled<W: Work>(work: W) -> W::Output {
    work.run()
}

/// `work` with the instructions of the tier that multiplies fours.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn compiled_vnni<W: Work>(work: W) -> W::Output {
    work.run()
}

/// Half of a step: 8 rows.
#[target_feature(enable = "avx2")]
#[inline]
fn load(half: &[u8; 32]) -> __m256i {
    // SAFETY: it is 32 bytes.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_step(step: &Step) -> [__m256i; 2] {
    let halves = step.as_chunks().0;
    [load(&halves[0]), load(&halves[1])]
}

/// The even bytes of each half, then the odd ones, widened.
#[target_feature(enable = "avx2")]
#[inline]
fn load_widened(step: &Step) -> [[__m256i; 2]; 2] {
    let low = _mm256_set1_epi16(0xff);
    load_step(step).map(|half| [_mm256_and_si256(half, low), _mm256_srli_epi16::<8>(half)])
}

/// Bytes are at most 255 and 127 in magnitude, so no sum of two products overflows.
#[target_feature(enable = "avx2")]
#[inline]
fn multiply_add_widened(w: [[__m256i; 2]; 2], x: [i32; 2], sums: [__m256i; 2]) -> [__m256i; 2] {
    let (even, odd) = (_mm256_set1_epi32(x[0]), _mm256_set1_epi32(x[1]));
    let mut out = sums;
    for (out, w) in out.iter_mut().zip(w) {
        *out = _mm256_add_epi32(*out, _mm256_madd_epi16(w[0], even));
        *out = _mm256_add_epi32(*out, _mm256_madd_epi16(w[1], odd));
    }
    out
}

#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn multiply_add(w: [__m256i; 2], x: [i8; STEP], sums: [__m256i; 2]) -> [__m256i; 2] {
    let x = _mm256_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned)));
    [_mm256_dpbusd_avx_epi32(sums[0], w[0], x), _mm256_dpbusd_avx_epi32(sums[1], w[1], x)]
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn widened(scales: &Scales) -> [__m256; 2] {
    let halves = scales.as_chunks::<8>().0;
    [&halves[0], &halves[1]].map(|half| {
        // SAFETY: it is 16 bytes.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(half.as_ptr().cast()) })
    })
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn add(sums: [__m256i; 2], scales: [__m256; 2], x_scale: f32, out: &mut [f32; ROWS]) {
    let x_scale = _mm256_set1_ps(x_scale);
    for ((out, sums), scales) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums).zip(scales) {
        let scales = _mm256_mul_ps(scales, x_scale);
        // SAFETY: `out` is 8 f32.
        let before = unsafe { _mm256_loadu_ps(out.as_ptr()) };
        let after = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scales, before);
        // SAFETY: `out` is 8 f32.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), after) };
    }
}

impl Int8Kernel for Widened {
    /// The even ones, then the odd ones: pairs of 16 bits, as one number that a load broadcasts.
    type Input = [i32; 2];
    type Weights = [[__m256i; 2]; 2];
    type Sums = [__m256i; 2];
    type Scales = [__m256; 2];

    const MR: usize = 1;
    const NR: usize = 4;

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
        let x = x.map(i32::from);
        [x[0] & 0xffff | x[2] << 16, x[1] & 0xffff | x[3] << 16]
    }

    #[inline(always)]
    fn start(self, sum: i32) -> [__m256i; 2] {
        // SAFETY: the kernel is a proof that the machine has it.
        [unsafe { _mm256_set1_epi32(sum) }; 2]
    }

    #[inline(always)]
    fn weights(self, step: &Step) -> Self::Weights {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { load_widened(step) }
    }

    #[inline(always)]
    fn multiply_add(self, w: Self::Weights, x: &Self::Input, sums: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { multiply_add_widened(w, *x, sums) }
    }

    #[inline(always)]
    fn scales(self, scales: &Scales) -> [__m256; 2] {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { widened(scales) }
    }

    #[inline(always)]
    fn add(self, sums: [__m256i; 2], scales: [__m256; 2], x_scale: f32, out: &mut [f32; ROWS]) {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { add(sums, scales, x_scale, out) }
    }
}

impl Int8Kernel for Vnni {
    type Input = [i8; STEP];
    type Weights = [__m256i; 2];
    type Sums = [__m256i; 2];
    type Scales = [__m256; 2];

    const MR: usize = 1;
    const NR: usize = 6;

    #[inline(always)]
    unsafe fn new() -> Self {
        Self(())
    }

    #[inline(always)]
    fn compile<W: Work>(self, work: W) -> W::Output {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { compiled_vnni(work) }
    }

    #[cfg(all(test, not(debug_assertions)))]
    fn address_of<W: Work>() -> usize {
        compiled_vnni::<W> as unsafe fn(W) -> W::Output as usize
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
    fn start(self, sum: i32) -> [__m256i; 2] {
        // SAFETY: the kernel is a proof that the machine has it.
        [unsafe { _mm256_set1_epi32(sum) }; 2]
    }

    #[inline(always)]
    fn weights(self, step: &Step) -> [__m256i; 2] {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { load_step(step) }
    }

    #[inline(always)]
    fn multiply_add(self, w: [__m256i; 2], x: &Self::Input, sums: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { multiply_add(w, *x, sums) }
    }

    #[inline(always)]
    fn scales(self, scales: &Scales) -> [__m256; 2] {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { widened(scales) }
    }

    #[inline(always)]
    fn add(self, sums: [__m256i; 2], scales: [__m256; 2], x_scale: f32, out: &mut [f32; ROWS]) {
        // SAFETY: the kernel is a proof that the machine has it.
        unsafe { add(sums, scales, x_scale, out) }
    }
}

/// The sum of the lanes.
#[target_feature(enable = "avx2")]
fn sum(sums: __m256i) -> f32 {
    let mut lanes = [0i32; 8];
    // SAFETY: `lanes` are 32 bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
    lanes.into_iter().map(|lane| lane as f32).sum()
}

/// `steps` times 12 independent products of pairs.
#[target_feature(enable = "avx2")]
pub(crate) fn widened_products(steps: usize) -> f32 {
    // Numbers that the compiler does not know, as for `f32_products`. It would multiply them once for all steps, so the sums are
    // multiplied, which are as many as there are cycles until they are known.
    let [a, b] = black_box([[1; 32]; 2]).map(|numbers| load(&numbers));
    let mut sums = [a; 12];
    for _ in 0..steps {
        for sums in &mut sums {
            *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(*sums, b));
        }
    }
    sums.into_iter().map(|sums| sum(sums)).sum()
}

/// `steps` times 12 independent products of fours.
#[target_feature(enable = "avx2,avxvnni")]
pub(crate) fn vnni_products(steps: usize) -> f32 {
    // Numbers that the compiler does not know, as for `f32_products`.
    let [a, b] = black_box([[1; 32]; 2]).map(|numbers| load(&numbers));
    let mut sums = [_mm256_setzero_si256(); 12];
    for _ in 0..steps {
        for sums in &mut sums {
            *sums = _mm256_dpbusd_avx_epi32(*sums, a, b);
        }
    }
    sums.into_iter().map(|sums| sum(sums)).sum()
}
