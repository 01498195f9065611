//! Products summed as outer products: the shape of attention, where scores and values come out in vectors.
//!
//! `c[r][lane] += Σ_i a[r][i] · b[i][lane]`, i in order, each lane its own chain. `b` is given as halves: vectors
//! of 8 lanes that lie anywhere but advance by one stride, so that a vector may span two blocks of a paged cache.
//! In bfloat16 an element is a pair: `a[r][2i] · b[2i][lane] + a[r][2i + 1] · b[2i + 1][lane]`.
#![expect(clippy::inline_always, reason = "both kinds of products compile their own copy")]

/// Lanes of a half.
pub(crate) const HALF: usize = 8;

/// The most halves that one call takes.
pub(crate) const MAX_HALVES: usize = 16;

/// Halves that one call takes for so many rows: with few rows many halves, so that chains enough run side by side.
pub(crate) fn halves_at_once(num_rows: usize) -> usize {
    if num_rows <= 2 { MAX_HALVES } else { MAX_HALVES / 2 }
}

/// One call's operands.
#[derive(Debug)]
pub(crate) struct Outer<'a, A, B> {
    /// `[num_rows, a_stride]`, of which the first `n` columns are used.
    pub(crate) a: &'a [A],
    pub(crate) a_stride: usize,
    pub(crate) num_rows: usize,
    pub(crate) n: usize,
    /// An even number of halves: `n` steps of `b_stride`, 8 lanes a step.
    pub(crate) b: &'a [&'a [B]],
    pub(crate) b_stride: usize,
    /// `[num_rows, c_stride]`, of which `8 · b.len()` columns are added to.
    pub(crate) c: &'a mut [f32],
    pub(crate) c_stride: usize,
    /// What will be read soon: asked for meanwhile, but by the scalar tier, which has no time to wait for memory.
    pub(crate) ahead: &'a [&'a [B]],
}

impl<A, B> Outer<'_, A, B> {
    /// # Panics
    /// If an operand is shorter than its strides say.
    pub(crate) fn check(&self) {
        assert!(self.num_rows > 0 && self.n > 0);
        assert!(self.a.len() >= (self.num_rows - 1) * self.a_stride + self.n);
        assert!(self.b.len().is_multiple_of(2) && self.b.len() <= MAX_HALVES);
        for half in self.b {
            assert!(half.len() >= (self.n - 1) * self.b_stride + HALF);
        }
        assert!(self.c.len() >= (self.num_rows - 1) * self.c_stride + HALF * self.b.len());
    }
}

/// The scalar tier's loop: `multiply_add(a, b, c)` gives a lane's next sum.
#[inline(always)]
fn run<A: Copy, B: Copy>(mut outer: Outer<'_, A, B>, multiply_add: impl Fn(A, B, f32) -> f32) {
    outer.check();
    for half in 0..outer.b.len() {
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
    for (row, lanes) in lanes.iter_mut().enumerate() {
        lanes.copy_from_slice(&outer.c[c_at(row)..][..HALF]);
    }
    let a: [&[A]; R] = std::array::from_fn(|row| &outer.a[(r + row) * outer.a_stride..][..outer.n]);
    for (step, b) in outer.b[half].chunks(outer.b_stride).take(outer.n).enumerate() {
        for (a, lanes) in a.iter().zip(&mut lanes) {
            for (lane, &b) in lanes.iter_mut().zip(&b[..HALF]) {
                *lane = multiply_add(a[step], b, *lane);
            }
        }
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
fn pair(a: u32, b: u32, c: f32) -> f32 {
    let even = |pair: u32| f32::from_bits(pair << 16);
    let odd = |pair: u32| f32::from_bits(pair & 0xffff_0000);
    two_roundings(odd(a), odd(b), two_roundings(even(a), even(b), c))
}

pub(crate) fn scalar_f32(outer: Outer<'_, f32, f32>) {
    run(outer, two_roundings);
}

pub(crate) fn scalar_pairs(outer: Outer<'_, u32, u32>) {
    run(outer, pair);
}
