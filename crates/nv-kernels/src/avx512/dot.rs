//! Dot products of weight rows and tokens.
//!
//! A step is 32 elements. Where they are not multiplied in pairs: the even ones, then the odd ones, for so it takes the fewest
//! instructions to widen bfloat16. f32 follow that order, so that weights give the same bits however they are stored.
#![expect(unsafe_code, reason = "loads and stores of whole arrays")]

use std::arch::x86_64::{
    __m512, __m512bh, _MM_HINT_T0, _mm_add_ps, _mm_prefetch, _mm_storeu_ps, _mm256_add_ps,
    _mm256_castpd_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm512_add_ps,
    _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps512_ps256, _mm512_dpbf16_ps,
    _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_permutex2var_ps, _mm512_setr_epi32, _mm512_setzero_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};
use std::hint::black_box;

use half::bf16;

use super::{even, odd, reload};
use crate::block::{linear_block, tile};

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
fn reduce([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
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

/// Asks for a line. It goes to the first-level cache, though it is not needed so soon: asking for the second-level cache alone
/// was slower by up to 8 % for the layers of 2 to 64 tokens, on a Zen 5.
#[target_feature(enable = "avx512f")]
#[inline]
fn prefetch(line: *const u8) {
    _mm_prefetch::<_MM_HINT_T0>(line.cast());
}

tile!(
    tile_bf16, "avx512f,avx512bw,avx512bf16", bf16, bf16, __m512, step: 32,
    parts: [load_pairs by load_pairs], dot_pairs
);
tile!(
    tile_bf16_f32, "avx512f", bf16, f32, __m512, step: 32,
    parts: [load_even_widened by load_first, load_odd_widened by load_last], mul_add
);
tile!(
    tile_bf16_f32_reloaded, "avx512f", bf16, f32, __m512, step: 32,
    parts: [load_even_widened by load_first, reload_odd_widened by load_last], mul_add
);
tile!(
    tile_f32, "avx512f", f32, f32, __m512, step: 32,
    parts: [load_even by load_first, load_odd by load_last], mul_add
);

linear_block!(
    linear_bf16_sixes, "avx512f,avx512bw,avx512bf16", half::bf16, half::bf16, __m512, reduce, _mm512_setzero_ps, step: 32,
    few: 1 by [1 2 3 4 5] of tile_bf16 looking every 4,
    many: 4 by [1 2 3 4 5 6] of tile_bf16 in parts of 0 KiB
);
linear_block!(
    linear_bf16_eights, "avx512f,avx512bw,avx512bf16", half::bf16, half::bf16, __m512, reduce, _mm512_setzero_ps, step: 32,
    few: 1 by [1] of tile_bf16 looking every 4,
    many: 3 by [1 2 3 4 5 6 7 8] of tile_bf16 in parts of 0 KiB
);
linear_block!(
    linear_bf16_many, "avx512f,avx512bw,avx512bf16", half::bf16, half::bf16, __m512, reduce, _mm512_setzero_ps, step: 32,
    few: 1 by [1] of tile_bf16 looking every 4,
    many: 8 by [1 2 3] of tile_bf16 in parts of 256 KiB
);

/// Pairs are multiplied so fast that what suits some tokens, to wait little for weights from memory, isn't what suits many, to
/// load little from the caches.
pub(crate) mod linear_bf16 {
    use std::ops::Range;

    use half::bf16;

    use super::{linear_bf16_eights, linear_bf16_many, linear_bf16_sixes};
    use crate::block::{Tokens, TokensShape, Weights};
    use crate::panel::Outputs;

    /// How tokens come in tiles.
    enum Tiles {
        /// Of up to six, a part each.
        Sixes,
        /// Of up to eight, a part each.
        Eights,
        /// Small ones, of which many are a part.
        Many,
    }

    /// The tiles of so many tokens. Where a tile is a part, each reads all rows again: the fewer the better, and those of six,
    /// which take more rows at once, if they are as few as those of eight.
    fn tiles(num_tokens: usize) -> Tiles {
        /// The most tokens that are some. Their speed against that of many, on a Zen 5: 1.13 at 16, 0.9 at 20, 1.1 at 24, 1.0 at 32,
        /// 0.94 at 64.
        const SOME: usize = 24;
        if num_tokens > SOME {
            Tiles::Many
        } else if num_tokens.div_ceil(8) < num_tokens.div_ceil(6) {
            Tiles::Eights
        } else {
            Tiles::Sixes
        }
    }

    /// How so many tokens of `k` elements are laid out.
    pub(crate) fn shape(num_tokens: usize, k: usize) -> TokensShape {
        match tiles(num_tokens) {
            Tiles::Sixes => linear_bf16_sixes::shape(num_tokens, k),
            Tiles::Eights => linear_bf16_eights::shape(num_tokens, k),
            Tiles::Many => linear_bf16_many::shape(num_tokens, k),
        }
    }

    /// `x @ wᵀ` for a part of `x`, `[num_tokens, num_rows]`. Rows are whole steps.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(crate) fn block(
        w: Weights<'_, bf16>,
        x: Tokens<'_, bf16>,
        part: Range<usize>,
        out: Outputs<'_>,
    ) {
        match tiles(x.shape().num_tokens) {
            Tiles::Sixes => linear_bf16_sixes::block(w, x, part, out),
            Tiles::Eights => linear_bf16_eights::block(w, x, part, out),
            Tiles::Many => linear_bf16_many::block(w, x, part, out),
        }
    }
}

linear_block!(
    linear_bf16_f32, "avx512f", half::bf16, f32, __m512, reduce, _mm512_setzero_ps, step: 32,
    few: 2 by [1 2 3 4 5] of tile_bf16_f32 looking every 2,
    many: 4 by [1 2 3 4 5 6] of tile_bf16_f32_reloaded in parts of 0 KiB
);
linear_block!(
    linear_f32, "avx512f", f32, f32, __m512, reduce, _mm512_setzero_ps, step: 32,
    few: 2 by [1 2 3 4 5] of tile_f32 looking every 2,
    many: 4 by [1 2 3 4 5 6] of tile_f32 in parts of 0 KiB
);

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
