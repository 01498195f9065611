//! Outer products of bfloat16 pairs.
#![expect(unsafe_code, reason = "loads and stores at addresses that `Outer::check` vouches for")]
#![expect(clippy::needless_range_loop, reason = "arrays of registers are unrolled by index")]

use std::arch::x86_64::{
    __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_castsi256_si512,
    _mm512_dpbf16_ps, _mm512_inserti64x4, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};

use crate::ahead::PartsAhead;
use crate::outer::{HALF, Outer};

/// See [`crate::outer`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn outer_bf16(outer: Outer<'_, u32, u32>) {
    outer.check();
    // Halves side by side are one vector in memory.
    let whole = outer.halves.chunks_exact(2).all(|halves| halves[0] + HALF == halves[1]);
    if whole { by_vectors::<true>(outer) } else { by_vectors::<false>(outer) }
}

/// `WHOLE` says that every two halves are one vector in memory.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn by_vectors<const WHOLE: bool>(mut outer: Outer<'_, u32, u32>) {
    let num_vectors = outer.halves.len() / 2;
    let mut v = 0;
    while v < num_vectors {
        v += match num_vectors - v {
            8.. if outer.num_rows <= 2 => by_rows::<WHOLE, 8>(&mut outer, v),
            4.. => by_rows::<WHOLE, 4>(&mut outer, v),
            2.. => by_rows::<WHOLE, 2>(&mut outer, v),
            _ => by_rows::<WHOLE, 1>(&mut outer, v),
        };
    }
}

/// All rows by `V` vectors from `v` on. Returns `V`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn by_rows<const WHOLE: bool, const V: usize>(outer: &mut Outer<'_, u32, u32>, v: usize) -> usize {
    let mut r = 0;
    while r < outer.num_rows {
        // 16 accumulators at most.
        r += match outer.num_rows - r {
            2.. if r + v == 0 && !outer.ahead.is_empty() => {
                some_rows::<WHOLE, true, 2, V>(outer, r, v)
            }
            1 if r + v == 0 && !outer.ahead.is_empty() => {
                some_rows::<WHOLE, true, 1, V>(outer, r, v)
            }
            8.. if V <= 2 => some_rows::<WHOLE, false, 8, V>(outer, r, v),
            4.. if V <= 4 => some_rows::<WHOLE, false, 4, V>(outer, r, v),
            2.. => some_rows::<WHOLE, false, 2, V>(outer, r, v),
            _ => some_rows::<WHOLE, false, 1, V>(outer, r, v),
        };
    }
    V
}

/// Rows `r..r + R` by `V` vectors of two halves from `first` on. Asks for what is ahead if `ASK` says so. Returns `R`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn some_rows<const WHOLE: bool, const ASK: bool, const R: usize, const V: usize>(
    outer: &mut Outer<'_, u32, u32>,
    r: usize,
    first: usize,
) -> usize {
    let halves = &outer.halves[2 * first..2 * (first + V)];
    assert!(r + R <= outer.num_rows);
    let mut a = outer.a[r * outer.a_stride..].as_ptr();
    let c = outer.c[r * outer.c_stride + first * 2 * HALF..].as_mut_ptr();
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    for i in 0..R {
        for v in 0..V {
            // SAFETY: row `r + i` has `8 · halves.len()` columns of `c`, says `check`, and this vector is among them.
            acc[i][v] =
                unsafe { _mm512_loadu_ps(c.wrapping_add(i * outer.c_stride + v * 2 * HALF)) };
        }
    }
    let mut ahead = PartsAhead::new(outer.ahead, outer.num_steps());
    for run in outer.runs {
        let mut b: [[*const u32; 2]; V] = std::array::from_fn(|v| {
            [halves[2 * v], halves[2 * v + 1]]
                .map(|half| outer.b.as_ptr().wrapping_add(run.start + half))
        });
        for step in 0..run.num_steps {
            if ASK {
                for line in ahead.next_share() {
                    _mm_prefetch::<_MM_HINT_T0>(line.cast());
                }
            }
            let mut vectors = [_mm512_setzero_si512(); V];
            for v in 0..V {
                let [low, high] = b[v];
                if WHOLE {
                    // SAFETY: each half has 8 lanes at each step, says `check`, and they are side by side.
                    vectors[v] = unsafe { _mm512_loadu_si512(low.cast()) };
                    continue;
                }
                // SAFETY: each half has 8 lanes at each step, says `check`.
                let low = unsafe { _mm256_loadu_si256(low.cast()) };
                // SAFETY: as above.
                let high = unsafe { _mm256_loadu_si256(high.cast()) };
                vectors[v] = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            }
            for i in 0..R {
                // SAFETY: row `r + i` has a column of `a` for each step, says `check`.
                let pair = unsafe { a.wrapping_add(i * outer.a_stride + step).read() };
                let pair = as_pairs(_mm512_set1_epi32(pair.cast_signed()));
                for v in 0..V {
                    acc[i][v] = _mm512_dpbf16_ps(acc[i][v], pair, as_pairs(vectors[v]));
                }
            }
            b = b.map(|halves| halves.map(|half| half.wrapping_add(outer.b_stride)));
        }
        a = a.wrapping_add(run.num_steps);
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
