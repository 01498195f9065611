//! Outer products, of f32 and of bfloat16 pairs.
#![expect(unsafe_code, reason = "loads and stores at addresses that `Outer::check` vouches for")]

use std::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_prefetch, _mm256_and_si256, _mm256_castps_si256, _mm256_castsi256_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_storeu_ps,
};

use crate::outer::{HALF, Outer};

/// Steps that are taken with one split of `a`.
const STEPS: usize = 64;

/// Bits of a pair's second number.
const SECOND: u32 = 0xffff_0000;

/// 8 f32.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn split_f32(b: __m256) -> [__m256; 1] {
    [b]
}

/// The first and the second numbers of 8 pairs.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn split_pairs(b: __m256) -> [__m256; 2] {
    let pairs = _mm256_castps_si256(b);
    let first = _mm256_slli_epi32::<16>(pairs);
    let second = _mm256_and_si256(pairs, _mm256_set1_epi32(SECOND.cast_signed()));
    [_mm256_castsi256_ps(first), _mm256_castsi256_ps(second)]
}

/// Defines `$name` over `$element`s of `$parts` numbers, which `$split_a` and `$split_b` take apart, one and 8 at a time.
///
/// As many rows and halves are taken at once as make 8 vectors of sums: enough that none waits for the one before, and
/// room for their operands in 16 registers.
macro_rules! outer {
    ($name:ident, $element:ty, parts: $parts:literal, $split_a:expr, $split_b:ident) => {
        /// See [`crate::outer`].
        #[target_feature(enable = "avx2,fma")]
        pub(crate) fn $name(mut outer: Outer<'_, $element, $element>) {
            /// `R` rows' numbers at some steps.
            type Split<const R: usize> = [[[f32; STEPS]; $parts]; R];

            /// Rows `r..r + R` by all halves. Returns `R`.
            #[target_feature(enable = "avx2,fma")]
            fn rows<const R: usize>(outer: &mut Outer<'_, $element, $element>, r: usize) -> usize {
                let mut a: Split<R> = [[[0.0; STEPS]; $parts]; R];
                for start in (0..outer.n).step_by(STEPS) {
                    let len = STEPS.min(outer.n - start);
                    for i in 0..R {
                        let row = &outer.a[(r + i) * outer.a_stride + start..][..len];
                        for (step, &element) in row.iter().enumerate() {
                            let parts: [f32; $parts] = $split_a(element);
                            for part in 0..$parts {
                                a[i][part][step] = parts[part];
                            }
                        }
                    }
                    let mut half = 0;
                    while half < outer.b.len() {
                        half += match (R, outer.b.len() - half) {
                            (1, 8..) => halves::<R, 8>(outer, (r, &a), (start, len), half),
                            (1 | 2, 4..) => halves::<R, 4>(outer, (r, &a), (start, len), half),
                            _ => halves::<R, 2>(outer, (r, &a), (start, len), half),
                        };
                    }
                }
                R
            }

            /// `R` rows by `H` halves at `len` steps from `start` on. Returns `H`.
            #[target_feature(enable = "avx2,fma")]
            #[inline]
            fn halves<const R: usize, const H: usize>(
                outer: &mut Outer<'_, $element, $element>,
                (r, a): (usize, &Split<R>),
                (start, len): (usize, usize),
                first: usize,
            ) -> usize {
                assert!(r + R <= outer.num_rows && start + len <= outer.n && len <= STEPS);
                let b: [*const f32; H] =
                    std::array::from_fn(|h| outer.b[first + h].as_ptr().cast());
                let c = outer.c[r * outer.c_stride + first * HALF..].as_mut_ptr();
                let mut acc = [[_mm256_setzero_ps(); H]; R];
                for i in 0..R {
                    for h in 0..H {
                        // SAFETY: row `r + i` has `8 · b.len()` columns of `c`, says `check`; these are among them.
                        acc[i][h] = unsafe {
                            _mm256_loadu_ps(c.wrapping_add(i * outer.c_stride + h * HALF))
                        };
                    }
                }
                for step in 0..len {
                    let mut split = [[_mm256_setzero_ps(); $parts]; H];
                    for h in 0..H {
                        let at = b[h].wrapping_add((start + step) * outer.b_stride);
                        // SAFETY: each half has 8 lanes of 4 bytes at each of `n` steps, says `check`.
                        split[h] = $split_b(unsafe { _mm256_loadu_ps(at) });
                    }
                    for part in 0..$parts {
                        for i in 0..R {
                            let a = _mm256_set1_ps(a[i][part][step]);
                            for h in 0..H {
                                acc[i][h] = _mm256_fmadd_ps(a, split[h][part], acc[i][h]);
                            }
                        }
                    }
                }
                for i in 0..R {
                    for h in 0..H {
                        // SAFETY: as for the loads of `c`.
                        unsafe {
                            _mm256_storeu_ps(
                                c.wrapping_add(i * outer.c_stride + h * HALF),
                                acc[i][h],
                            );
                        };
                    }
                }
                H
            }

            outer.check();
            ask_for(outer.ahead);
            let mut r = 0;
            while r < outer.num_rows {
                r += match outer.num_rows - r {
                    1 => rows::<1>(&mut outer, r),
                    2 | 3 => rows::<2>(&mut outer, r),
                    _ => rows::<4>(&mut outer, r),
                };
            }
        }
    };
}

outer!(outer_f32, f32, parts: 1, |number: f32| [number], split_f32);
outer!(
    outer_pairs, u32, parts: 2,
    |pair: u32| [f32::from_bits(pair << 16), f32::from_bits(pair & SECOND)], split_pairs
);

/// Asks for the cache lines of `parts`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn ask_for<B>(parts: &[&[B]]) {
    for part in parts {
        for line in part.chunks(64 / size_of::<B>()) {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
}
