//! Products summed as outer products: the kernel of attention, both of its scores (q · k) and of its values (p · v).
//!
//! `c[r][lane] += Σ_i a[r][i] · b[i][lane]`, i in order, each lane its own chain. `b` has vectors of 8 lanes that lie
//! anywhere but advance by one stride, so that a register may span two blocks of a paged cache; and its steps come in runs, so
//! that a sum may go on from block to block. In bfloat16 an element is a pair:
//! `a[r][2i] · b[2i][lane] + a[r][2i + 1] · b[2i + 1][lane]`, where `a` is a pair likewise, or two f32.
#![expect(clippy::needless_range_loop, reason = "sums are found by row and column")]
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]

use crate::prefetch::PrefetchParts;
use crate::tier::{Compile, Tier, Work};

/// Lanes of a vector.
pub(crate) const LANES: usize = 8;

/// Vectors that one call had best take for so many rows: with few rows many vectors, so that chains enough run side by side.
pub(crate) fn vectors_at_once(num_rows: usize) -> usize {
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
    /// Where the vectors start in each run; an even number.
    pub(crate) vectors: &'a [usize],
    /// From a step to the next in a run.
    pub(crate) b_stride: usize,
    /// `[num_rows, c_stride]`, of which `8 · vectors.len()` columns are added to, or overwritten if `is_new` says so.
    pub(crate) c: &'a mut [f32],
    pub(crate) c_stride: usize,
    pub(crate) is_new: bool,
    /// What will be read soon: prefetched meanwhile, but by the scalar tier, which has no time to wait for memory.
    pub(crate) prefetch: &'a [&'a [B]],
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
        let vectors = self.vectors;
        assert!(vectors.len().is_multiple_of(2));
        let last_vector = vectors.iter().copied().max().unwrap_or_default();
        for run in self.runs {
            assert!(run.num_steps > 0);
            let last_step = run.start + (run.num_steps - 1) * self.b_stride;
            assert!(self.b.len() >= last_step + last_vector + LANES);
        }
        assert!(self.c.len() >= (self.num_rows - 1) * self.c_stride + LANES * vectors.len());
    }

    /// Whether each `group` of vectors is contiguous.
    fn vectors_are_side_by_side(&self, group: usize) -> bool {
        let follow = |pair: &[usize]| pair[0] + LANES == pair[1];
        self.vectors.chunks(group).all(|vectors| vectors.windows(2).all(follow))
    }
}

/// How a tier multiplies: `R` vectors of `b` are a register.
///
/// Methods are `#[inline(always)]`.
pub(crate) trait OuterKernel<const R: usize>: 'static {
    type Tier: Tier;
    /// An element of `a`, and one of `b`.
    type A: Copy;
    type B: Copy;
    /// A register filled with a number or a pair of `a`, and one of `b`.
    type Splat: Copy;
    type Register: Copy;

    /// Products a step, each after the one before: one or two.
    const PRODUCTS: usize;
    /// Registers of sums a row, where one row, two, or more are multiplied at once: so many that no sum waits for the one before,
    /// and that they fit beside their operands.
    const REGISTERS: [usize; 3];

    /// A register filled with what product `P` takes of `a`. It reads no other: its neighbours would take registers until they
    /// are used.
    ///
    /// # Safety
    /// The element must be there.
    #[expect(unsafe_code, reason = "callers check bounds once for all steps")]
    unsafe fn splat<const P: usize>(tier: Self::Tier, a: *const Self::A) -> Self::Splat;

    /// What product `P` takes of the vectors at these places, which are side by side if `WHOLE` says so.
    ///
    /// # Safety
    /// The vectors must be there.
    #[expect(unsafe_code, reason = "callers check bounds once for all steps")]
    unsafe fn load<const P: usize, const WHOLE: bool>(
        tier: Self::Tier,
        vectors: [*const Self::B; R],
    ) -> Self::Register;

    /// `sums + a · b`
    fn multiply_add(
        tier: Self::Tier,
        a: Self::Splat,
        b: Self::Register,
        sums: Sums<Self, R>,
    ) -> Sums<Self, R>;
}

/// A register of sums.
type Sums<K, const R: usize> = <<K as OuterKernel<R>>::Tier as Tier>::Vector;

/// A kernel's operands.
type Operands<'a, K, const R: usize> =
    Outer<'a, <K as OuterKernel<R>>::A, <K as OuterKernel<R>>::B>;

/// The most rows that are multiplied at once.
const MAX_ROWS: usize = 6;

/// See the module.
pub(crate) fn add<K: OuterKernel<R>, const R: usize>(tier: K::Tier, outer: Operands<'_, K, R>) {
    outer.check();
    if outer.vectors_are_side_by_side(R) {
        tier.compile(Add::<K, R, true> { tier, outer });
    } else {
        tier.compile(Add::<K, R, false> { tier, outer });
    }
}

/// [`add`], over registers of vectors that are side by side if `WHOLE` says so.
pub(crate) struct Add<'a, K: OuterKernel<R>, const R: usize, const WHOLE: bool> {
    tier: K::Tier,
    outer: Operands<'a, K, R>,
}

impl<K: OuterKernel<R>, const R: usize, const WHOLE: bool> Work for Add<'_, K, R, WHOLE> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        // In tiles of sizes that differ by one at most.
        let num_rows = self.outer.num_rows;
        let num_tiles = num_rows.div_ceil(MAX_ROWS);
        for tile in 0..num_tiles {
            let r = tile * num_rows / num_tiles;
            match (tile + 1) * num_rows / num_tiles - r {
                1 => self.some_rows::<1>(r),
                2 => self.some_rows::<2>(r),
                3 => self.some_rows::<3>(r),
                4 => self.some_rows::<4>(r),
                5 => self.some_rows::<5>(r),
                6 => self.some_rows::<6>(r),
                len => unreachable!("a tile has {len} rows"),
            }
        }
    }
}

impl<K: OuterKernel<R>, const R: usize, const WHOLE: bool> Add<'_, K, R, WHOLE> {
    /// Rows `r..r + ROWS` by all vectors.
    #[inline(always)]
    fn some_rows<const ROWS: usize>(&mut self, r: usize) {
        if r == 0 && !self.outer.prefetch.is_empty() {
            self.by_registers::<true, ROWS>(r);
        } else {
            self.by_registers::<false, ROWS>(r);
        }
    }

    /// Rows `r..r + ROWS` by all vectors. Prefetches if `PREFETCH` says so.
    #[inline(always)]
    fn by_registers<const PREFETCH: bool, const ROWS: usize>(&mut self, r: usize) {
        let num_registers = self.outer.vectors.len() / R;
        let at_once = K::REGISTERS[ROWS.min(3) - 1];
        let num_shares = num_registers.div_ceil(at_once) * self.outer.num_steps();
        let mut prefetch = PrefetchParts::new(self.outer.prefetch, num_shares);
        let mut first = 0;
        while first < num_registers {
            first += match at_once.min(num_registers - first) {
                8.. => self.some_registers::<PREFETCH, ROWS, 8>(r, first, &mut prefetch),
                4.. => self.some_registers::<PREFETCH, ROWS, 4>(r, first, &mut prefetch),
                2.. => self.some_registers::<PREFETCH, ROWS, 2>(r, first, &mut prefetch),
                _ => self.some_registers::<PREFETCH, ROWS, 1>(r, first, &mut prefetch),
            };
        }
    }

    /// Rows `r..r + ROWS` by `N` registers from `first` on. Returns `N`.
    #[inline(always)]
    fn some_registers<const PREFETCH: bool, const ROWS: usize, const N: usize>(
        &mut self,
        r: usize,
        first: usize,
        prefetch: &mut PrefetchParts<'_, K::B>,
    ) -> usize {
        let (tier, outer) = (self.tier, &mut self.outer);
        assert!(r + ROWS <= outer.num_rows);
        let (registers, _) = outer.vectors[R * first..].as_chunks::<R>();
        let registers = &registers[..N];
        let mut a: [*const K::A; ROWS] =
            std::array::from_fn(|i| outer.a[(r + i) * outer.a_stride..].as_ptr());
        let c = outer.c[r * outer.c_stride + first * R * LANES..].as_mut_ptr();
        let mut sums = [[tier.zero(); N]; ROWS];
        for i in 0..if outer.is_new { 0 } else { ROWS } {
            for n in 0..N {
                let c = c.wrapping_add(i * outer.c_stride + n * R * LANES);
                // SAFETY: row `r + i` has `8 · vectors.len()` columns of `c`, says `check`; these are among them.
                #[expect(unsafe_code, reason = "bounds are checked once for all rows")]
                unsafe {
                    sums[i][n] = c.cast::<Sums<K, R>>().read_unaligned();
                }
            }
        }
        for run in outer.runs {
            let mut b = [[outer.b.as_ptr(); R]; N];
            for n in 0..N {
                for v in 0..R {
                    b[n][v] = b[n][v].wrapping_add(run.start + registers[n][v]);
                }
            }
            for step in 0..run.num_steps {
                if PREFETCH {
                    for line in prefetch.next_share() {
                        tier.prefetch_near(line);
                    }
                }
                // SAFETY: each vector has 8 lanes at each step, and row `r + i` has a column of `a` for it, says `check`.
                #[expect(unsafe_code, reason = "bounds are checked once for all steps")]
                unsafe {
                    product::<K, R, WHOLE, ROWS, N, 0>(tier, &a, step, &b, &mut sums);
                }
                if K::PRODUCTS > 1 {
                    // SAFETY: as above.
                    #[expect(unsafe_code, reason = "bounds are checked once for all steps")]
                    unsafe {
                        product::<K, R, WHOLE, ROWS, N, 1>(tier, &a, step, &b, &mut sums);
                    }
                }
                for n in 0..N {
                    for v in 0..R {
                        b[n][v] = b[n][v].wrapping_add(outer.b_stride);
                    }
                }
            }
            for row in &mut a {
                *row = row.wrapping_add(run.num_steps);
            }
        }
        for i in 0..ROWS {
            for n in 0..N {
                let c = c.wrapping_add(i * outer.c_stride + n * R * LANES);
                // SAFETY: as for the loads of `c`.
                #[expect(unsafe_code, reason = "bounds are checked once for all rows")]
                unsafe {
                    c.cast::<Sums<K, R>>().write_unaligned(sums[i][n]);
                }
            }
        }
        N
    }
}

/// Adds product `P` of a step.
///
/// # Safety
/// The vectors of `b` and, for each row, element `step` of `a` must be there.
#[inline(always)]
#[expect(unsafe_code, reason = "bounds are checked once for all steps")]
unsafe fn product<
    K: OuterKernel<R>,
    const R: usize,
    const WHOLE: bool,
    const ROWS: usize,
    const N: usize,
    const P: usize,
>(
    tier: K::Tier,
    a: &[*const K::A; ROWS],
    step: usize,
    b: &[[*const K::B; R]; N],
    sums: &mut [[Sums<K, R>; N]; ROWS],
) {
    // SAFETY: says the caller.
    let mut registers = [unsafe { K::load::<P, WHOLE>(tier, b[0]) }; N];
    for n in 1..N {
        // SAFETY: says the caller.
        registers[n] = unsafe { K::load::<P, WHOLE>(tier, b[n]) };
    }
    for i in 0..ROWS {
        // SAFETY: says the caller.
        let a = unsafe { K::splat::<P>(tier, a[i].wrapping_add(step)) };
        for n in 0..N {
            sums[i][n] = K::multiply_add(tier, a, registers[n], sums[i][n]);
        }
    }
}

/// The scalar tier's loop: `multiply_add(a, b, c)` gives a lane's next sum.
#[inline(always)]
fn run<A: Copy, B: Copy>(mut outer: Outer<'_, A, B>, multiply_add: impl Fn(A, B, f32) -> f32) {
    outer.check();
    for vector in 0..outer.vectors.len() {
        let mut r = 0;
        while r < outer.num_rows {
            r += match outer.num_rows - r {
                1..4 => some_rows::<A, B, 1>(&mut outer, vector, r, &multiply_add),
                _ => some_rows::<A, B, 4>(&mut outer, vector, r, &multiply_add),
            };
        }
    }
}

/// Rows `r..r + R` by one vector, which is read once for all of them. Returns `R`.
#[inline(always)]
fn some_rows<A: Copy, B: Copy, const R: usize>(
    outer: &mut Outer<'_, A, B>,
    vector: usize,
    r: usize,
    multiply_add: &impl Fn(A, B, f32) -> f32,
) -> usize {
    let c_at = |row: usize| (r + row) * outer.c_stride + vector * LANES;
    let mut lanes = [[0.0f32; LANES]; R];
    if !outer.is_new {
        for (row, lanes) in lanes.iter_mut().enumerate() {
            lanes.copy_from_slice(&outer.c[c_at(row)..][..LANES]);
        }
    }
    let mut column = 0;
    for run in outer.runs {
        let a: [&[A]; R] = std::array::from_fn(|row| {
            &outer.a[(r + row) * outer.a_stride + column..][..run.num_steps]
        });
        let b = &outer.b[run.start + outer.vectors[vector]..];
        for (step, b) in b.chunks(outer.b_stride).take(run.num_steps).enumerate() {
            for (a, lanes) in a.iter().zip(&mut lanes) {
                for (lane, &b) in lanes.iter_mut().zip(&b[..LANES]) {
                    *lane = multiply_add(a[step], b, *lane);
                }
            }
        }
        column += run.num_steps;
    }
    for (row, lanes) in lanes.iter().enumerate() {
        outer.c[c_at(row)..][..LANES].copy_from_slice(lanes);
    }
    R
}

/// f32 by f32, in plain Rust.
pub(crate) fn scalar_f32<C: Compile>(outer: Outer<'_, [f32; 1], f32>) {
    run(outer, |[a], b, c| C::mul_add(a, b, c));
}

/// Pairs of f32 by pairs of bfloat16, in plain Rust: of a pair the even product first.
pub(crate) fn scalar_bf16_f32<C: Compile>(outer: Outer<'_, [f32; 2], u32>) {
    run(outer, |[even, odd], b, c| {
        let c = C::mul_add(even, f32::from_bits(b << 16), c);
        C::mul_add(odd, f32::from_bits(b & 0xffff_0000), c)
    });
}
