//! Dot products of weight rows and tokens.
//!
//! A step is 16 elements: the even ones, then the odd ones, for so it takes the fewest instructions to widen bfloat16. f32
//! follow that order, so that weights give the same bits however they are stored.
#![expect(
    unsafe_code,
    reason = "loads and stores of whole arrays, and calls of what needs an instruction set"
)]
#![expect(clippy::inline_always, reason = "methods of a micro-kernel become a part of the loops")]

use std::arch::x86_64::{
    __m256, _mm_add_ps, _mm_storeu_ps, _mm256_add_ps, _mm256_castpd_ps, _mm256_castps_pd,
    _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_permute4x64_pd, _mm256_setzero_ps, _mm256_shuffle_ps,
    _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpacklo_ps,
};
use std::hint::black_box;
use std::marker::PhantomData;

use half::bf16;

use super::{Avx2, even, odd, reload};
use crate::linear::gemm::gemm;
use crate::linear::gemv::gemv;
use crate::linear::kernel::KernelScratch;
use crate::linear::micro_kernel::{Blocking, MicroKernel, Operands};
use crate::results::Outputs;
use crate::tier::Tier;

/// 8 f32.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_f32(x: &[f32; 8]) -> __m256 {
    // SAFETY: `x` is 8 f32.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

/// The first 8 of a step: of inputs, those of the even weights.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_first(x: &[f32; 16]) -> __m256 {
    load_f32(&x.as_chunks().0[0])
}

/// The last 8 of a step: of inputs, those of the odd weights.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_last(x: &[f32; 16]) -> __m256 {
    load_f32(&x.as_chunks().0[1])
}

/// The even ones of 16 bfloat16.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_even_widened(w: &[bf16; 16]) -> __m256 {
    // SAFETY: `w` is 32 bytes.
    even(unsafe { _mm256_loadu_si256(w.as_ptr().cast()) })
}

/// The odd ones of 16 bfloat16.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_odd_widened(w: &[bf16; 16]) -> __m256 {
    // SAFETY: `w` is 32 bytes.
    odd(unsafe { _mm256_loadu_si256(w.as_ptr().cast()) })
}

/// The same for a tile whose sums leave no register to keep all 16 in.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn reload_odd_widened(w: &[bf16; 16]) -> __m256 {
    // SAFETY: a reference is to what is there.
    odd(unsafe { reload(w.as_ptr().cast()) })
}

/// The even ones of 16 f32, in the order of [`Paired`](crate::elementwise::arrange::Paired).
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_even(w: &[f32; 16]) -> __m256 {
    _mm256_shuffle_ps::<0b10_00_10_00>(load_first(w), load_last(w))
}

/// The odd ones of 16 f32, likewise.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_odd(w: &[f32; 16]) -> __m256 {
    _mm256_shuffle_ps::<0b11_01_11_01>(load_first(w), load_last(w))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn mul_add(w: __m256, x: __m256, acc: __m256) -> __m256 {
    _mm256_fmadd_ps(w, x, acc)
}

/// The sums of the lanes of four accumulators, all by the same tree:
/// `((l0 + l2) + (l1 + l3))` in each half, then both.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn reduce([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    let low = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    let high = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    let halves = _mm256_add_ps(low, high);
    let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
    let mut out = [0.0; 4];
    // SAFETY: `out` is four f32.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
    out
}

/// The same where lanes are in the order of [`Paired`](crate::elementwise::arrange::Paired): with the bits that they have in order.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn reduce_paired(acc: [__m256; 4]) -> [f32; 4] {
    reduce(acc.map(|acc| {
        let pairs = _mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(acc));
        _mm256_castpd_ps(pairs)
    }))
}

/// bfloat16 weights, widened, by f32 inputs.
#[derive(Debug)]
pub(crate) struct Bf16Widened;

impl MicroKernel for Bf16Widened {
    type Tier = Avx2;
    type Weight = bf16;
    type Input = f32;
    type WeightStep = [bf16; 16];
    type InputStep = [f32; 16];
    type WeightVector = __m256;
    type InputVector = __m256;

    const STEP: usize = 16;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn weights<const V: usize, const RELOAD: bool>(_: Self::Tier, step: &[bf16; 16]) -> __m256 {
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
    fn inputs<const V: usize>(_: Self::Tier, step: &[f32; 16]) -> __m256 {
        if V == 0 {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_first(step) }
        } else {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_last(step) }
        }
    }

    #[inline(always)]
    fn multiply_add(tier: Self::Tier, w: __m256, x: __m256, sums: __m256) -> __m256 {
        tier.multiply_add(w, x, sums)
    }

    fn blocking(num_tokens: usize) -> Blocking {
        if num_tokens <= 3 {
            Blocking::Gemv
        } else {
            Blocking::Gemm { mr: 3, nr: 4, panel_bytes: 0 }
        }
    }

    fn multiply(
        tier: Self::Tier,
        operands: Operands<'_, Self>,
        scratch: &mut KernelScratch,
        out: Outputs<'_>,
    ) {
        match Self::blocking(operands.x.layout().num_tokens) {
            Blocking::Gemv => gemv::<Self, 4, 3, 2>(tier, operands, out),
            Blocking::Gemm { .. } => gemm::<Self, 3, 4>(tier, operands, scratch, out),
        }
    }
}

/// f32 weights by f32 inputs.
#[derive(Debug)]
pub(crate) struct F32;

impl MicroKernel for F32 {
    type Tier = Avx2;
    type Weight = f32;
    type Input = f32;
    type WeightStep = [f32; 16];
    type InputStep = [f32; 16];
    type WeightVector = __m256;
    type InputVector = __m256;

    const STEP: usize = 16;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn weights<const V: usize, const RELOAD: bool>(_: Self::Tier, step: &[f32; 16]) -> __m256 {
        if V == 0 {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_even(step) }
        } else {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_odd(step) }
        }
    }

    #[inline(always)]
    fn inputs<const V: usize>(_: Self::Tier, step: &[f32; 16]) -> __m256 {
        if V == 0 {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_first(step) }
        } else {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { load_last(step) }
        }
    }

    #[inline(always)]
    fn multiply_add(tier: Self::Tier, w: __m256, x: __m256, sums: __m256) -> __m256 {
        tier.multiply_add(w, x, sums)
    }

    #[inline(always)]
    fn reduce(_: Self::Tier, sums: [__m256; 4]) -> [f32; 4] {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { reduce_paired(sums) }
    }

    fn blocking(num_tokens: usize) -> Blocking {
        if num_tokens <= 3 {
            Blocking::Gemv
        } else {
            Blocking::Gemm { mr: 2, nr: 4, panel_bytes: 0 }
        }
    }

    fn multiply(
        tier: Self::Tier,
        operands: Operands<'_, Self>,
        scratch: &mut KernelScratch,
        out: Outputs<'_>,
    ) {
        match Self::blocking(operands.x.layout().num_tokens) {
            Blocking::Gemv => gemv::<Self, 4, 3, 2>(tier, operands, out),
            Blocking::Gemm { .. } => gemm::<Self, 2, 4>(tier, operands, scratch, out),
        }
    }
}

/// Weights that are unpacked, as vectors of `K` are, by f32 inputs.
#[derive(Debug)]
pub(crate) struct Unpacked<K>(PhantomData<K>);

impl<K: MicroKernel<Tier = Avx2>> MicroKernel for Unpacked<K> {
    type Tier = Avx2;
    type Weight = f32;
    type Input = f32;
    type WeightStep = [f32; 16];
    type InputStep = [f32; 16];
    type WeightVector = __m256;
    type InputVector = __m256;

    const STEP: usize = 16;
    const VECTORS: usize = 2;

    #[inline(always)]
    fn weights<const V: usize, const RELOAD: bool>(tier: Self::Tier, step: &[f32; 16]) -> __m256 {
        Self::inputs::<V>(tier, step)
    }

    #[inline(always)]
    fn inputs<const V: usize>(tier: Self::Tier, step: &[f32; 16]) -> __m256 {
        F32::inputs::<V>(tier, step)
    }

    #[inline(always)]
    fn multiply_add(tier: Self::Tier, w: __m256, x: __m256, sums: __m256) -> __m256 {
        tier.multiply_add(w, x, sums)
    }

    #[inline(always)]
    fn reduce(tier: Self::Tier, sums: [__m256; 4]) -> [f32; 4] {
        K::reduce(tier, sums)
    }

    fn blocking(_: usize) -> Blocking {
        Blocking::Gemm { mr: 3, nr: 4, panel_bytes: 0 }
    }

    fn multiply(
        tier: Self::Tier,
        operands: Operands<'_, Self>,
        scratch: &mut KernelScratch,
        out: Outputs<'_>,
    ) {
        gemm::<Self, 3, 4>(tier, operands, scratch, out);
    }
}

/// `steps` times 12 independent products.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn f32_products(steps: usize) -> f32 {
    // Of numbers that the compiler knows it would make sums.
    let [a, b] = black_box([[1.0; 8]; 2]).map(|numbers| load_f32(&numbers));
    let mut acc = [_mm256_setzero_ps(); 12];
    for _ in 0..steps {
        for acc in &mut acc {
            *acc = mul_add(a, b, *acc);
        }
    }
    acc.into_iter().map(|acc| reduce([acc; 4])[0]).sum()
}
