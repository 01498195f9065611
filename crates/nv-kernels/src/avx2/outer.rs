//! Outer products, of f32 and of bfloat16 pairs.
#![expect(unsafe_code, reason = "loads and stores at addresses that `Outer::check` vouches for")]

use std::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::{even, odd, reload};
use crate::ahead::PartsAhead;
use crate::outer::{HALF, Outer};

/// The most rows that are taken at once: by two halves they are 12 vectors of sums, so that none waits for the one before,
/// and 16 registers hold them with their operands.
const ROWS: usize = 6;

/// 8 f32.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_f32(b: *const f32) -> __m256 {
    // SAFETY: says the caller.
    unsafe { _mm256_loadu_ps(b) }
}

/// The first numbers of 8 pairs.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_first(b: *const u32) -> __m256 {
    // SAFETY: says the caller.
    even(unsafe { _mm256_loadu_si256(b.cast()) })
}

/// The second numbers of 8 pairs.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_second(b: *const u32) -> __m256 {
    // SAFETY: says the caller.
    odd(unsafe { reload(b.cast()) })
}

/// Defines `$name` for elements `$b` of so many numbers, of which `$load` gives one of each 8.
macro_rules! outer {
    ($name:ident, $b:ty, numbers: $numbers:literal [$($number:literal by $load:ident),+]) => {
        /// See [`crate::outer`].
        #[target_feature(enable = "avx2,fma")]
        pub(crate) fn $name(mut outer: Outer<'_, [f32; $numbers], $b>) {
            type Operands<'a> = Outer<'a, [f32; $numbers], $b>;

            /// Rows `r..r + R` by all halves.
            #[target_feature(enable = "avx2,fma")]
            fn rows<const R: usize>(outer: &mut Operands<'_>, r: usize) {
                if r == 0 && !outer.ahead.is_empty() {
                    by_halves::<R, true>(outer, r);
                } else {
                    by_halves::<R, false>(outer, r);
                }
            }

            /// Rows `r..r + R` by all halves. Asks for what is ahead if `ASK` says so.
            #[target_feature(enable = "avx2,fma")]
            fn by_halves<const R: usize, const ASK: bool>(outer: &mut Operands<'_>, r: usize) {
                let num_halves = outer.halves.len();
                let at_once = match R {
                    1 => 8,
                    2 => 4,
                    _ => 2,
                };
                let num_shares = num_halves.div_ceil(at_once) * outer.num_steps();
                let mut ahead = PartsAhead::new(outer.ahead, num_shares);
                let mut half = 0;
                while half < num_halves {
                    half += match num_halves - half {
                        8.. if at_once == 8 => some_halves::<R, 8, ASK>(outer, r, half, &mut ahead),
                        4.. if at_once >= 4 => some_halves::<R, 4, ASK>(outer, r, half, &mut ahead),
                        _ => some_halves::<R, 2, ASK>(outer, r, half, &mut ahead),
                    };
                }
            }

            /// Rows `r..r + R` by `H` halves from `first` on. Returns `H`.
            #[target_feature(enable = "avx2,fma")]
            #[inline]
            fn some_halves<const R: usize, const H: usize, const ASK: bool>(
                outer: &mut Operands<'_>,
                r: usize,
                first: usize,
                ahead: &mut PartsAhead<'_, $b>,
            ) -> usize {
                assert!(r + R <= outer.num_rows);
                let halves = &outer.halves[first..first + H];
                let mut a: [*const [f32; $numbers]; R] =
                    std::array::from_fn(|i| outer.a[(r + i) * outer.a_stride..].as_ptr());
                let c = outer.c[r * outer.c_stride + first * HALF..].as_mut_ptr();
                let mut acc = [[_mm256_setzero_ps(); H]; R];
                for i in 0..R {
                    for h in 0..H {
                        let c = c.wrapping_add(i * outer.c_stride + h * HALF);
                        // SAFETY: row `r + i` has `8 · halves.len()` columns of `c`, says `check`; these are among them.
                        acc[i][h] = unsafe { _mm256_loadu_ps(c) };
                    }
                }
                for run in outer.runs {
                    let mut b: [*const $b; H] = std::array::from_fn(|h| {
                        outer.b.as_ptr().wrapping_add(run.start + halves[h])
                    });
                    for step in 0..run.num_steps {
                        if ASK {
                            for line in ahead.next_share() {
                                _mm_prefetch::<_MM_HINT_T0>(line.cast());
                            }
                        }
                        $(
                            let mut vectors = [_mm256_setzero_ps(); H];
                            for h in 0..H {
                                // SAFETY: each half has 8 lanes at each step, says `check`.
                                vectors[h] = unsafe { $load(b[h]) };
                            }
                            for i in 0..R {
                                // SAFETY: row `r + i` has a column of `a` for each step, says `check`.
                                let a = unsafe { (*a[i].wrapping_add(step))[$number] };
                                let a = _mm256_set1_ps(a);
                                for h in 0..H {
                                    acc[i][h] = _mm256_fmadd_ps(a, vectors[h], acc[i][h]);
                                }
                            }
                        )+
                        b = b.map(|half| half.wrapping_add(outer.b_stride));
                    }
                    a = a.map(|row| row.wrapping_add(run.num_steps));
                }
                for i in 0..R {
                    for h in 0..H {
                        let c = c.wrapping_add(i * outer.c_stride + h * HALF);
                        // SAFETY: as for the loads of `c`.
                        unsafe { _mm256_storeu_ps(c, acc[i][h]) };
                    }
                }
                H
            }

            outer.check();
            // Of sizes that differ by one at most.
            let num_rows = outer.num_rows;
            let num_tiles = num_rows.div_ceil(ROWS);
            for tile in 0..num_tiles {
                let r = tile * num_rows / num_tiles;
                match (tile + 1) * num_rows / num_tiles - r {
                    1 => rows::<1>(&mut outer, r),
                    2 => rows::<2>(&mut outer, r),
                    3 => rows::<3>(&mut outer, r),
                    4 => rows::<4>(&mut outer, r),
                    5 => rows::<5>(&mut outer, r),
                    _ => rows::<ROWS>(&mut outer, r),
                }
            }
        }
    };
}

outer!(outer_f32, f32, numbers: 1 [0 by load_f32]);
outer!(outer_bf16_f32, u32, numbers: 2 [0 by load_first, 1 by load_second]);
