//! Outer products of bfloat16 pairs.
#![expect(unsafe_code, reason = "loads and stores at addresses that `Outer::check` vouches for")]
#![expect(clippy::needless_range_loop, reason = "arrays of registers are unrolled by index")]

use std::arch::x86_64::{
    __m512bh, __m512i, _mm256_loadu_si256, _mm512_castsi256_si512, _mm512_dpbf16_ps,
    _mm512_inserti64x4, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_ps,
};

use crate::outer::{HALF, Outer};

/// See [`crate::outer`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn outer_pairs(outer: Outer<'_, u32, u32>) {
    outer.check();
    // Halves side by side are one vector in memory.
    let whole = outer
        .b
        .chunks_exact(2)
        .all(|halves| halves[0].as_ptr().wrapping_add(HALF) == halves[1].as_ptr());
    if whole { by_rows::<true>(outer) } else { by_rows::<false>(outer) }
}

/// `WHOLE` says that every two halves are one vector in memory.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn by_rows<const WHOLE: bool>(mut outer: Outer<'_, u32, u32>) {
    let mut r = 0;
    while r < outer.num_rows {
        r += match (outer.num_rows - r, outer.b.len()) {
            (1, 4) => some_rows::<WHOLE, 1, 2>(&mut outer, r),
            (2 | 3, 4) => some_rows::<WHOLE, 2, 2>(&mut outer, r),
            (4..8, 4) => some_rows::<WHOLE, 4, 2>(&mut outer, r),
            (_, 4) => some_rows::<WHOLE, 8, 2>(&mut outer, r),
            (1, _) => some_rows::<WHOLE, 1, 1>(&mut outer, r),
            (2 | 3, _) => some_rows::<WHOLE, 2, 1>(&mut outer, r),
            (4..8, _) => some_rows::<WHOLE, 4, 1>(&mut outer, r),
            (_, _) => some_rows::<WHOLE, 8, 1>(&mut outer, r),
        };
    }
}

/// Rows `r..r + R` by `V` vectors of two halves. Returns `R`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn some_rows<const WHOLE: bool, const R: usize, const V: usize>(
    outer: &mut Outer<'_, u32, u32>,
    r: usize,
) -> usize {
    assert!(r + R <= outer.num_rows && 2 * V <= outer.b.len());
    let a = outer.a[r * outer.a_stride..].as_ptr();
    let c = outer.c[r * outer.c_stride..].as_mut_ptr();
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    for i in 0..R {
        for v in 0..V {
            // SAFETY: row `r + i` has `8 · b.len() >= 16 V` columns of `c`, says `check`.
            acc[i][v] =
                unsafe { _mm512_loadu_ps(c.wrapping_add(i * outer.c_stride + v * 2 * HALF)) };
        }
    }
    for step in 0..outer.n {
        let mut b = [_mm512_setzero_si512(); V];
        for v in 0..V {
            let at = step * outer.b_stride;
            let low = outer.b[2 * v].as_ptr().wrapping_add(at);
            if WHOLE {
                // SAFETY: each half has 8 lanes at each of `n` steps, says `check`, and they are side by side.
                b[v] = unsafe { _mm512_loadu_si512(low.cast()) };
                continue;
            }
            let high = outer.b[2 * v + 1].as_ptr().wrapping_add(at);
            // SAFETY: each half has 8 lanes at each of `n` steps, says `check`.
            let low = unsafe { _mm256_loadu_si256(low.cast()) };
            // SAFETY: as above.
            let high = unsafe { _mm256_loadu_si256(high.cast()) };
            b[v] = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
        }
        for i in 0..R {
            // SAFETY: row `r + i` has `n` columns of `a`, says `check`.
            let pair = unsafe { a.wrapping_add(i * outer.a_stride + step).read() };
            let pair = as_pairs(_mm512_set1_epi32(pair.cast_signed()));
            for v in 0..V {
                acc[i][v] = _mm512_dpbf16_ps(acc[i][v], pair, as_pairs(b[v]));
            }
        }
    }
    for i in 0..R {
        for v in 0..V {
            // SAFETY: as for the loads of `c`.
            unsafe {
                _mm512_storeu_ps(c.wrapping_add(i * outer.c_stride + v * 2 * HALF), acc[i][v]);
            };
        }
    }
    R
}

/// The same bits, seen as bfloat16 pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn as_pairs(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, and every bit pattern is valid.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
}
