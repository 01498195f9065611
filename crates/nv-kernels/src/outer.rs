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
    /// `[num_rows, c_stride]`, of which `8 · halves.len()` columns are added to.
    pub(crate) c: &'a mut [f32],
    pub(crate) c_stride: usize,
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
}

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
    for (row, lanes) in lanes.iter_mut().enumerate() {
        lanes.copy_from_slice(&outer.c[c_at(row)..][..HALF]);
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
