//! Products summed as outer products: the shape of attention, where scores and values come out in vectors.
//!
//! `c[r][lane] += Σ_i a[r][i] · b[i][lane]`, i in order, each lane its own chain. `b` has halves: vectors of 8 lanes that lie
//! anywhere but advance by one stride, so that a vector may span two blocks of a paged cache; and its steps come in runs, so
//! that a sum may go on from block to block. In bfloat16 an element is a pair:
//! `a[r][2i] · b[2i][lane] + a[r][2i + 1] · b[2i + 1][lane]`, where `a` is a pair likewise, or two f32.
#![expect(clippy::inline_always, reason = "both kinds of products compile their own copy")]

/// Lanes of a half.
pub(crate) const HALF: usize = 8;

/// Halves that one call had best take for so many rows: with few rows many halves, so that chains enough run side by side.
pub(crate) fn halves_at_once(num_rows: usize) -> usize {
    if num_rows <= 2 { 16 } else { 8 }
}

/// One call's operands.
#[derive(Debug)]
pub(crate) struct Outer<'a, A, B> {
    /// `[num_rows, a_stride]`, of which as many columns are used as there are steps.
    pub(crate) a: &'a [A],
    pub(crate) a_stride: usize,
    pub(crate) num_rows: usize,
    /// Where all of `b` lies.
    pub(crate) b: &'a [B],
    /// The steps, one run after another.
    pub(crate) runs: &'a [Run],
    /// Where the halves start in each run; an even number.
    pub(crate) halves: &'a [usize],
    /// From a step to the next in a run.
    pub(crate) b_stride: usize,
    /// `[num_rows, c_stride]`, of which `8 · halves.len()` columns are added to, or overwritten if `is_new` says so.
    pub(crate) c: &'a mut [f32],
    pub(crate) c_stride: usize,
    pub(crate) is_new: bool,
    /// What will be read soon: asked for meanwhile, but by the scalar tier, which has no time to wait for memory.
    pub(crate) ahead: &'a [&'a [B]],
}

/// Steps at equal distances.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Where the first is.
    pub(crate) start: usize,
    pub(crate) num_steps: usize,
}

impl<A, B> Outer<'_, A, B> {
    /// Of all runs.
    pub(crate) fn num_steps(&self) -> usize {
        self.runs.iter().map(|run| run.num_steps).sum()
    }

    /// # Panics
    /// If an operand is shorter than its strides say.
    pub(crate) fn check(&self) {
        let num_steps = self.num_steps();
        assert!(self.num_rows > 0 && num_steps > 0);
        assert!(self.a.len() >= (self.num_rows - 1) * self.a_stride + num_steps);
        let halves = self.halves;
        assert!(halves.len().is_multiple_of(2));
        let last_half = halves.iter().copied().max().unwrap_or_default();
        for run in self.runs {
            assert!(run.num_steps > 0);
            let last_step = run.start + (run.num_steps - 1) * self.b_stride;
            assert!(self.b.len() >= last_step + last_half + HALF);
        }
        assert!(self.c.len() >= (self.num_rows - 1) * self.c_stride + HALF * halves.len());
    }

    /// Whether each `group` of halves is one piece of memory.
    pub(crate) fn halves_are_side_by_side(&self, group: usize) -> bool {
        let follow = |pair: &[usize]| pair[0] + HALF == pair[1];
        self.halves.chunks(group).all(|halves| halves.windows(2).all(follow))
    }
}

/// Defines `$name`, a module with the sum `add` for elements `$b`, with sums in vectors of `$halves` halves.
///
/// Up to as many rows are taken at once as `$rows` says: one by `$one` vectors, two by `$two`, more by `$more`, so that no sum
/// waits for the one before and the registers hold all sums with their operands. A step adds its `$parts`, each after the one
/// before: `$splat` fills a vector with a number that `a` points to, or with a pair (and reads no other: its neighbours would take
/// registers until they are used); `$load::<WHOLE>` makes a vector of halves, given where they start, which are side by side if
/// `WHOLE` says so, as a single half always is; `$mul_add(a, b, c)` returns `c + a · b`.
#[cfg(target_arch = "x86_64")]
macro_rules! outer {
    (
        $name:ident, $features:literal, $a:ty, $b:ty,
        sums: [$zero:ident, $load_sums:ident, $store_sums:ident] of $halves:literal,
        rows: [$($rows:literal)+] by [$one:literal, $two:literal, $more:literal],
        parts: [$($splat:ident by $load:ident),+], $mul_add:ident
    ) => {
        pub(crate) mod $name {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

            use super::{$load_sums, $mul_add, $store_sums, $zero, $($load, $splat),+};
            use crate::ahead::PartsAhead;
            use crate::outer::{HALF, Outer};

            type Operands<'a> = Outer<'a, $a, $b>;

            /// The most rows that are taken at once.
            const ROWS: usize = [$($rows),+].len();

            /// Lanes of a vector.
            const LANES: usize = $halves * HALF;

            /// See [`crate::outer`].
            #[target_feature(enable = $features)]
            pub(crate) fn add(outer: Operands<'_>) {
                outer.check();
                if outer.halves_are_side_by_side($halves) {
                    all_rows::<true>(outer);
                } else {
                    all_rows::<false>(outer);
                }
            }

            #[target_feature(enable = $features)]
            fn all_rows<const WHOLE: bool>(mut outer: Operands<'_>) {
                // In tiles of sizes that differ by one at most.
                let num_rows = outer.num_rows;
                let num_tiles = num_rows.div_ceil(ROWS);
                for tile in 0..num_tiles {
                    let r = tile * num_rows / num_tiles;
                    match (tile + 1) * num_rows / num_tiles - r {
                        $($rows => some_rows::<WHOLE, $rows>(&mut outer, r),)+
                        len => unreachable!("a tile has {len} rows"),
                    }
                }
            }

            /// Rows `r..r + R` by all vectors.
            #[target_feature(enable = $features)]
            fn some_rows<const WHOLE: bool, const R: usize>(outer: &mut Operands<'_>, r: usize) {
                if r == 0 && !outer.ahead.is_empty() {
                    by_vectors::<WHOLE, true, R>(outer, r);
                } else {
                    by_vectors::<WHOLE, false, R>(outer, r);
                }
            }

            /// Rows `r..r + R` by all vectors. Asks for what is ahead if `ASK` says so.
            #[target_feature(enable = $features)]
            fn by_vectors<const WHOLE: bool, const ASK: bool, const R: usize>(
                outer: &mut Operands<'_>,
                r: usize,
            ) {
                let num_vectors = outer.halves.len() / $halves;
                let at_once = match R {
                    1 => $one,
                    2 => $two,
                    _ => $more,
                };
                let num_shares = num_vectors.div_ceil(at_once) * outer.num_steps();
                let mut ahead = PartsAhead::new(outer.ahead, num_shares);
                let mut v = 0;
                while v < num_vectors {
                    v += match at_once.min(num_vectors - v) {
                        8.. => some_vectors::<WHOLE, ASK, R, 8>(outer, r, v, &mut ahead),
                        4.. => some_vectors::<WHOLE, ASK, R, 4>(outer, r, v, &mut ahead),
                        2.. => some_vectors::<WHOLE, ASK, R, 2>(outer, r, v, &mut ahead),
                        _ => some_vectors::<WHOLE, ASK, R, 1>(outer, r, v, &mut ahead),
                    };
                }
            }

            /// Rows `r..r + R` by `V` vectors from `first` on. Returns `V`.
            #[target_feature(enable = $features)]
            #[inline]
            fn some_vectors<const WHOLE: bool, const ASK: bool, const R: usize, const V: usize>(
                outer: &mut Operands<'_>,
                r: usize,
                first: usize,
                ahead: &mut PartsAhead<'_, $b>,
            ) -> usize {
                assert!(r + R <= outer.num_rows);
                let (halves, _) = outer.halves[$halves * first..].as_chunks::<$halves>();
                let halves = &halves[..V];
                let mut a: [*const $a; R] =
                    std::array::from_fn(|i| outer.a[(r + i) * outer.a_stride..].as_ptr());
                let c = outer.c[r * outer.c_stride + first * LANES..].as_mut_ptr();
                let mut acc = [[$zero(); V]; R];
                for i in 0..if outer.is_new { 0 } else { R } {
                    for v in 0..V {
                        let c = c.wrapping_add(i * outer.c_stride + v * LANES);
                        // SAFETY: row `r + i` has `8 · halves.len()` columns of `c`, says `check`; these are among them.
                        acc[i][v] = unsafe { $load_sums(c) };
                    }
                }
                for run in outer.runs {
                    let mut b: [[*const $b; $halves]; V] = std::array::from_fn(|v| {
                        halves[v].map(|half| outer.b.as_ptr().wrapping_add(run.start + half))
                    });
                    for step in 0..run.num_steps {
                        if ASK {
                            for line in ahead.next_share() {
                                _mm_prefetch::<_MM_HINT_T0>(line.cast());
                            }
                        }
                        $(
                            // SAFETY: each half has 8 lanes at each step, says `check`.
                            let mut vectors = [unsafe { $load::<WHOLE>(b[0]) }; V];
                            for v in 1..V {
                                // SAFETY: as above.
                                vectors[v] = unsafe { $load::<WHOLE>(b[v]) };
                            }
                            for i in 0..R {
                                // SAFETY: row `r + i` has a column of `a` for each step, says `check`.
                                let a = unsafe { $splat(a[i].wrapping_add(step)) };
                                for v in 0..V {
                                    acc[i][v] = $mul_add(a, vectors[v], acc[i][v]);
                                }
                            }
                        )+
                        b = b.map(|halves| halves.map(|half| half.wrapping_add(outer.b_stride)));
                    }
                    a = a.map(|row| row.wrapping_add(run.num_steps));
                }
                for i in 0..R {
                    for v in 0..V {
                        let c = c.wrapping_add(i * outer.c_stride + v * LANES);
                        // SAFETY: as for the loads of `c`.
                        unsafe { $store_sums(c, acc[i][v]) };
                    }
                }
                V
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) use outer;

/// The scalar tier's loop: `multiply_add(a, b, c)` gives a lane's next sum.
#[inline(always)]
fn run<A: Copy, B: Copy>(mut outer: Outer<'_, A, B>, multiply_add: impl Fn(A, B, f32) -> f32) {
    outer.check();
    for half in 0..outer.halves.len() {
        let mut r = 0;
        while r < outer.num_rows {
            r += match outer.num_rows - r {
                1..4 => some_rows::<A, B, 1>(&mut outer, half, r, &multiply_add),
                _ => some_rows::<A, B, 4>(&mut outer, half, r, &multiply_add),
            };
        }
    }
}

/// Rows `r..r + R` by one half, which is read once for all of them. Returns `R`.
#[inline(always)]
fn some_rows<A: Copy, B: Copy, const R: usize>(
    outer: &mut Outer<'_, A, B>,
    half: usize,
    r: usize,
    multiply_add: &impl Fn(A, B, f32) -> f32,
) -> usize {
    let c_at = |row: usize| (r + row) * outer.c_stride + half * HALF;
    let mut lanes = [[0.0f32; HALF]; R];
    if !outer.is_new {
        for (row, lanes) in lanes.iter_mut().enumerate() {
            lanes.copy_from_slice(&outer.c[c_at(row)..][..HALF]);
        }
    }
    let mut column = 0;
    for run in outer.runs {
        let a: [&[A]; R] = std::array::from_fn(|row| {
            &outer.a[(r + row) * outer.a_stride + column..][..run.num_steps]
        });
        let b = &outer.b[run.start + outer.halves[half]..];
        for (step, b) in b.chunks(outer.b_stride).take(run.num_steps).enumerate() {
            for (a, lanes) in a.iter().zip(&mut lanes) {
                for (lane, &b) in lanes.iter_mut().zip(&b[..HALF]) {
                    *lane = multiply_add(a[step], b, *lane);
                }
            }
        }
        column += run.num_steps;
    }
    for (row, lanes) in lanes.iter().enumerate() {
        outer.c[c_at(row)..][..HALF].copy_from_slice(lanes);
    }
    R
}

/// `c + a · b`, rounded twice.
#[inline(always)]
fn two_roundings(a: f32, b: f32, c: f32) -> f32 {
    c + a * b
}

/// The sum of both products of a pair: the even one first.
#[inline(always)]
fn pair([even, odd]: [f32; 2], b: u32, c: f32) -> f32 {
    let c = two_roundings(even, f32::from_bits(b << 16), c);
    two_roundings(odd, f32::from_bits(b & 0xffff_0000), c)
}

pub(crate) fn scalar_f32(outer: Outer<'_, [f32; 1], f32>) {
    run(outer, |[a], b, c| two_roundings(a, b, c));
}

pub(crate) fn scalar_bf16_f32(outer: Outer<'_, [f32; 2], u32>) {
    run(outer, pair);
}
