//! Dot products of weight rows and tokens.
//!
//! A step is 32 elements. Where they are not multiplied in pairs: the even ones, then the odd ones, for so it takes the fewest
//! instructions to widen bfloat16. f32 follow that order, so that weights give the same bits however they are stored.
#![expect(
    unsafe_code,
    reason = "loads and stores of whole arrays, and calls of what needs an instruction set"
)]
#![expect(clippy::inline_always, reason = "methods of a micro-kernel become a part of the loops")]

use std::arch::x86_64::{
    __m512, __m512bh, _mm_add_ps, _mm_storeu_ps, _mm256_add_ps, _mm256_castpd_ps,
    _mm256_castps256_ps128, _mm256_extractf128_ps, _mm512_add_ps, _mm512_castpd_ps,
    _mm512_castps_pd, _mm512_castps512_ps256, _mm512_dpbf16_ps, _mm512_extractf64x4_pd,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutex2var_ps,
    _mm512_setr_epi32, _mm512_setzero_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
    _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};
use std::hint::black_box;

use half::bf16;

use super::{Avx512, even, odd, reload};
use crate::linear::gemm::gemm;
use crate::linear::gemv::gemv;
use crate::linear::inputs::near_bytes;
use crate::linear::kernel::KernelScratch;
use crate::linear::micro_kernel::{Blocking, MicroKernel, Operands};
use crate::results::Outputs;
use crate::tier::Tier;

/// 32 bfloat16 as they lie in memory.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn load_pairs(x: &[bf16; 32]) -> __m512bh {
    // SAFETY: `x` is 64 bytes, and every bit pattern is a `__m512bh`.
    unsafe { std::ptr::from_ref(x).cast::<__m512bh>().read_unaligned() }
}

/// 16 f32.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_f32(x: &[f32; 16]) -> __m512 {
    // SAFETY: `x` is 16 f32.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// The first 16 of a step: of inputs, those of the even weights.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_first(x: &[f32; 32]) -> __m512 {
    load_f32(&x.as_chunks().0[0])
}

/// The last 16 of a step: of inputs, those of the odd weights.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_last(x: &[f32; 32]) -> __m512 {
    load_f32(&x.as_chunks().0[1])
}

/// The even ones of 32 bfloat16.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_even_widened(w: &[bf16; 32]) -> __m512 {
    // SAFETY: `w` is 64 bytes.
    even(unsafe { _mm512_loadu_si512(w.as_ptr().cast()) })
}

/// The odd ones of 32 bfloat16.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_odd_widened(w: &[bf16; 32]) -> __m512 {
    // SAFETY: `w` is 64 bytes.
    odd(unsafe { _mm512_loadu_si512(w.as_ptr().cast()) })
}

/// The same for a tile whose sums leave no register to keep all 32 in.
#[target_feature(enable = "avx512f")]
#[inline]
fn reload_odd_widened(w: &[bf16; 32]) -> __m512 {
    // SAFETY: a reference is to what is there.
    odd(unsafe { reload(w.as_ptr().cast()) })
}

/// The even ones of 32 f32.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_even(w: &[f32; 32]) -> __m512 {
    let places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    _mm512_permutex2var_ps(load_first(w), places, load_last(w))
}

/// The odd ones of 32 f32.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_odd(w: &[f32; 32]) -> __m512 {
    let places = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    _mm512_permutex2var_ps(load_first(w), places, load_last(w))
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn dot_pairs(w: __m512bh, x: __m512bh, acc: __m512) -> __m512 {
    _mm512_dpbf16_ps(acc, w, x)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn mul_add(w: __m512, x: __m512, acc: __m512) -> __m512 {
    _mm512_fmadd_ps(w, x, acc)
}

/// The sums of the lanes of four accumulators, all by the same tree:
/// `((l0 + l2) + (l1 + l3))` in each quarter, then quarters 0 + 2 and 1 + 3, then both.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn reduce([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    let quarters = _mm512_add_ps(low, high);
    let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(quarters)));
    let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), upper);
    let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
    let mut out = [0.0; 4];
    // SAFETY: `out` is four f32.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
    out
}

/// bfloat16 weights by bfloat16 inputs, in pairs.
#[derive(Debug)]
pub(crate) struct Bf16Pairs;

impl MicroKernel for Bf16Pairs {
    type Tier = Avx512<true>;
    type Weight = bf16;
    type Input = bf16;
    type WeightStep = [bf16; 32];
    type InputStep = [bf16; 32];
    type WeightVector = __m512bh;
    type InputVector = __m512bh;

    const STEP: usize = 32;
    const VECTORS: usize = 1;

    #[inline(always)]
    fn weights<const V: usize, const RELOAD: bool>(_: Self::Tier, step: &[bf16; 32]) -> __m512bh {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { load_pairs(step) }
    }

    #[inline(always)]
    fn inputs<const V: usize>(_: Self::Tier, step: &[bf16; 32]) -> __m512bh {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { load_pairs(step) }
    }

    #[inline(always)]
    fn multiply_add(_: Self::Tier, w: __m512bh, x: __m512bh, sums: __m512) -> __m512 {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { dot_pairs(w, x, sums) }
    }

    fn blocking(num_tokens: usize) -> Blocking {
        /// The most tokens that are some. Their speed against that of many, on a Zen 5: 1.13 at 16, 0.9 at 20, 1.1 at 24, 1.0 at 32,
        /// 0.94 at 64.
        const SOME: usize = 24;
        // Pairs are multiplied so fast that what suits some tokens, to wait little for weights from memory, isn't what suits many,
        // to load little from the caches. Where a tile is a panel, each reads all rows again: the fewer the better, and those of
        // six, which take more rows at once, if they are as few as those of eight.
        if num_tokens <= 5 {
            Blocking::Gemv
        } else if num_tokens > SOME {
            Blocking::Gemm { mr: 8, nr: 3, panel_bytes: near_bytes() }
        } else if num_tokens.div_ceil(8) < num_tokens.div_ceil(6) {
            Blocking::Gemm { mr: 3, nr: 8, panel_bytes: 0 }
        } else {
            Blocking::Gemm { mr: 4, nr: 6, panel_bytes: 0 }
        }
    }

    fn multiply(
        tier: Self::Tier,
        operands: Operands<'_, Self>,
        scratch: &mut KernelScratch,
        out: Outputs<'_>,
    ) {
        match Self::blocking(operands.x.layout().num_tokens) {
            Blocking::Gemv => gemv::<Self, 1, 5, 4>(tier, operands, out),
            Blocking::Gemm { mr: 8, .. } => gemm::<Self, 8, 3>(tier, operands, scratch, out),
            Blocking::Gemm { mr: 3, .. } => gemm::<Self, 3, 8>(tier, operands, scratch, out),
            Blocking::Gemm { .. } => gemm::<Self, 4, 6>(tier, operands, scratch, out),
        }
    }
}

/// bfloat16 weights, widened, by f32 inputs.
#[derive(Debug)]
pub(crate) struct Bf16Widened;

impl MicroKernel for Bf16Widened {
    type Tier = Avx512;
    type Weight = bf16;
    type Input = f32;
    type WeightStep = [bf16; 32];
    type InputStep = [f32; 32];
    type WeightVector = __m512;
    type InputVector = __m512;

    const STEP: usize = 32;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn weights<const V: usize, const RELOAD: bool>(_: Self::Tier, step: &[bf16; 32]) -> __m512 {
        match (V, RELOAD) {
            // SAFETY: the tier is a proof that the machine has it.
            (0, _) => unsafe { load_even_widened(step) },
            // SAFETY: the tier is a proof that the machine has it.
            (_, false) => unsafe { load_odd_widened(step) },
            // SAFETY: the tier is a proof that the machine has it.
            (_, true) => unsafe { reload_odd_widened(step) },
        }
    }

    #[inline(always)]
    fn inputs<const V: usize>(_: Self::Tier, step: &[f32; 32]) -> __m512 {
        if V == 0 {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_first(step) }
        } else {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_last(step) }
        }
    }

    #[inline(always)]
    fn multiply_add(tier: Self::Tier, w: __m512, x: __m512, sums: __m512) -> __m512 {
        tier.multiply_add(w, x, sums)
    }

    fn blocking(num_tokens: usize) -> Blocking {
        if num_tokens <= 5 {
            Blocking::Gemv
        } else {
            Blocking::Gemm { mr: 4, nr: 6, panel_bytes: 0 }
        }
    }

    fn multiply(
        tier: Self::Tier,
        operands: Operands<'_, Self>,
        scratch: &mut KernelScratch,
        out: Outputs<'_>,
    ) {
        match Self::blocking(operands.x.layout().num_tokens) {
            Blocking::Gemv => gemv::<Self, 2, 5, 2>(tier, operands, out),
            Blocking::Gemm { .. } => gemm::<Self, 4, 6>(tier, operands, scratch, out),
        }
    }
}

/// f32 weights by f32 inputs.
#[derive(Debug)]
pub(crate) struct F32;

impl MicroKernel for F32 {
    type Tier = Avx512;
    type Weight = f32;
    type Input = f32;
    type WeightStep = [f32; 32];
    type InputStep = [f32; 32];
    type WeightVector = __m512;
    type InputVector = __m512;

    const STEP: usize = 32;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn weights<const V: usize, const RELOAD: bool>(_: Self::Tier, step: &[f32; 32]) -> __m512 {
        if V == 0 {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_even(step) }
        } else {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_odd(step) }
        }
    }

    #[inline(always)]
    fn inputs<const V: usize>(_: Self::Tier, step: &[f32; 32]) -> __m512 {
        if V == 0 {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_first(step) }
        } else {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_last(step) }
        }
    }

    #[inline(always)]
    fn multiply_add(tier: Self::Tier, w: __m512, x: __m512, sums: __m512) -> __m512 {
        tier.multiply_add(w, x, sums)
    }

    fn blocking(num_tokens: usize) -> Blocking {
        if num_tokens <= 5 {
            Blocking::Gemv
        } else {
            Blocking::Gemm { mr: 4, nr: 6, panel_bytes: 0 }
        }
    }

    fn multiply(
        tier: Self::Tier,
        operands: Operands<'_, Self>,
        scratch: &mut KernelScratch,
        out: Outputs<'_>,
    ) {
        match Self::blocking(operands.x.layout().num_tokens) {
            Blocking::Gemv => gemv::<Self, 2, 5, 2>(tier, operands, out),
            Blocking::Gemm { .. } => gemm::<Self, 4, 6>(tier, operands, scratch, out),
        }
    }
}

/// Weights that are unpacked, as vectors of [`Bf16Widened`] or [`F32`] are, by f32 inputs.
#[derive(Debug)]
pub(crate) struct Unpacked;

impl MicroKernel for Unpacked {
    type Tier = Avx512;
    type Weight = f32;
    type Input = f32;
    type WeightStep = [f32; 32];
    type InputStep = [f32; 32];
    type WeightVector = __m512;
    type InputVector = __m512;

    const STEP: usize = 32;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn weights<const V: usize, const RELOAD: bool>(tier: Self::Tier, step: &[f32; 32]) -> __m512 {
        Self::inputs::<V>(tier, step)
    }

    #[inline(always)]
    fn inputs<const V: usize>(tier: Self::Tier, step: &[f32; 32]) -> __m512 {
        F32::inputs::<V>(tier, step)
    }

    #[inline(always)]
    fn multiply_add(tier: Self::Tier, w: __m512, x: __m512, sums: __m512) -> __m512 {
        tier.multiply_add(w, x, sums)
    }

    fn blocking(_: usize) -> Blocking {
        Blocking::Gemm { mr: 4, nr: 6, panel_bytes: 0 }
    }

    fn multiply(
        tier: Self::Tier,
        operands: Operands<'_, Self>,
        scratch: &mut KernelScratch,
        out: Outputs<'_>,
    ) {
        gemm::<Self, 4, 6>(tier, operands, scratch, out);
    }
}

/// `steps` times 24 independent products of pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn bf16_products(steps: usize) -> f32 {
    // Numbers that the compiler does not know, as for `f32_products`.
    let [a, b] = black_box([[bf16::ONE; 32]; 2]).map(|numbers| load_pairs(&numbers));
    let mut acc = [_mm512_setzero_ps(); 24];
    for _ in 0..steps {
        for acc in &mut acc {
            *acc = dot_pairs(a, b, *acc);
        }
    }
    acc.into_iter().map(|acc| reduce([acc; 4])[0]).sum()
}

/// `steps` times 24 independent products.
#[target_feature(enable = "avx512f")]
pub(crate) fn f32_products(steps: usize) -> f32 {
    // Of numbers that the compiler knows it would make sums.
    let [a, b] = black_box([[1.0; 16]; 2]).map(|numbers| load_f32(&numbers));
    let mut acc = [_mm512_setzero_ps(); 24];
    for _ in 0..steps {
        for acc in &mut acc {
            *acc = mul_add(a, b, *acc);
        }
    }
    acc.into_iter().map(|acc| reduce([acc; 4])[0]).sum()
}
