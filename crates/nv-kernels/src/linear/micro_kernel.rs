//! Dot products in registers: MR weight rows by some tokens, and how a tier multiplies them.
//!
//! Every output is computed in the same way: one vector of sums, K in order from 0 in steps of one load, a zero-padded last
//! step, one fixed tree of additions across the lanes. So an output's bits depend on its weight row and its token alone.
#![expect(clippy::needless_range_loop, reason = "sums are found by row and column")]
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]

use std::marker::PhantomData;

use bytemuck::Pod;

use super::inputs::{InputLayout, Inputs, aligned, starts_line};
use super::kernel::{InputForm, KernelScratch, LinearKernel, Task};
use super::rows::{RowMajor, Rows};
use crate::elementwise::arrange::Arrange;
use crate::matrix::Matrix;
use crate::prefetch::{Prefetch, share};
use crate::results::Outputs;
use crate::tier::{Compile, Tier};

/// How a tier multiplies weights of one kind by inputs of one kind: loads, products, and the tiles that suit them.
///
/// Methods that take a tier are `#[inline(always)]`.
pub(crate) trait MicroKernel: Sync + 'static {
    type Tier: Tier;
    /// An element of a weight as stored.
    type Weight: Pod + Default;
    /// An element of a prepared input.
    type Input: Pod + Default + Send;
    /// An array of a step's weights, and one of its inputs.
    type WeightStep: Pod;
    type InputStep: Pod;
    /// A vector of weights, and one of inputs.
    type WeightVector: Copy;
    type InputVector: Copy;

    /// Elements of K a step.
    const STEP: usize;
    /// Vectors that a step is multiplied as: one or two.
    const VECTORS: usize;

    /// Vector `V` of a step of weights. With `RELOAD`, the step is loaded anew where the compiler could keep it in a register:
    /// for tiles whose sums leave none.
    fn weights<const V: usize, const RELOAD: bool>(
        tier: Self::Tier,
        step: &Self::WeightStep,
    ) -> Self::WeightVector;

    /// Vector `V` of a step of inputs.
    fn inputs<const V: usize>(tier: Self::Tier, step: &Self::InputStep) -> Self::InputVector;

    /// `sums + w · x`
    fn multiply_add(
        tier: Self::Tier,
        w: Self::WeightVector,
        x: Self::InputVector,
        sums: Sums<Self>,
    ) -> Sums<Self>;

    /// The sums of the lanes of four vectors, all by the same tree.
    #[inline(always)]
    fn reduce(tier: Self::Tier, sums: [Sums<Self>; REDUCED]) -> [f32; REDUCED] {
        tier.reduce(sums)
    }

    /// How so many tokens are multiplied.
    fn blocking(num_tokens: usize) -> Blocking;

    /// Multiplies as [`Self::blocking`] says, by [`gemv`](super::gemv::gemv) or [`gemm`](super::gemm::gemm).
    fn multiply(
        tier: Self::Tier,
        operands: Operands<'_, Self>,
        scratch: &mut KernelScratch,
        out: Outputs<'_>,
    );
}

/// A vector of sums.
pub(crate) type Sums<K> = <<K as MicroKernel>::Tier as Tier>::Vector;

/// How tokens are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// All in one tile, by which weights stream from memory.
    Gemv,
    /// In tiles of up to `nr` tokens by `mr` rows at a time; a panel is of `panel_bytes`, a tile at least.
    Gemm { mr: usize, nr: usize, panel_bytes: usize },
}

/// Some weight rows by a panel of tokens. A row is the whole steps of a token, and may be longer.
pub(crate) struct Operands<'a, K: MicroKernel + ?Sized> {
    pub(crate) rows: RowMajor<'a, K::Weight>,
    /// Rows to prefetch after `rows`, as they are stored.
    pub(crate) next: RowMajor<'a, u8>,
    pub(crate) x: Inputs<'a, K::Input>,
    /// The tiles of the panel.
    pub(crate) panel: std::ops::Range<usize>,
}

impl<'a, K: MicroKernel> Operands<'a, K> {
    /// # Panics
    /// If a row is shorter than a token.
    pub(crate) fn of(task: Task<'a>) -> Self {
        let Task { rows, next, x, panel } = task;
        let stride = rows.matrix.in_features();
        assert!(stride >= x.layout().padded_k, "rows of {stride} elements are no whole steps");
        let rows = RowMajor::new(bytemuck::cast_slice(rows.bytes()), stride);
        let next = next.map_or(RowMajor::new(&[], 1), |next| {
            RowMajor::new(next.bytes(), next.matrix.row_bytes())
        });
        Self { rows, next, x: x.typed(), panel }
    }
}

/// Sums that are reduced at once.
pub(crate) const REDUCED: usize = 4;

/// Brings the sums of `MR` rows by `T` tokens forward.
///
/// `w` starts with the first step of the first row; rows are `stride` elements apart. `x` are steps of `T` tokens side by
/// side. `prefetch` is fetched into the cache meanwhile, a share of it every `EVERY` steps.
///
/// The vectors of the fewer, rows or tokens, are held in registers while those of the others pass by, so that the sums and
/// one vector more are all that the registers need hold.
#[inline(always)]
pub(crate) fn multiply_tile<
    K: MicroKernel,
    const MR: usize,
    const T: usize,
    const EVERY: usize,
    const RELOAD: bool,
>(
    tier: K::Tier,
    w: &[K::Weight],
    stride: usize,
    x: &[K::InputStep],
    mut prefetch: Prefetch,
    mut sums: [[Sums<K>; T]; MR],
) -> [[Sums<K>; T]; MR] {
    let (x, _) = x.as_chunks::<T>();
    assert!(w.len() >= (MR - 1) * stride + x.len() * K::STEP);
    let mut w = w.as_ptr();
    let (groups, rest) = x.as_chunks::<EVERY>();
    let lines_at_once = share(prefetch.num_lines(), groups.len());
    for group in groups {
        for line in prefetch.split_to(lines_at_once) {
            tier.prefetch(line);
        }
        for x in group {
            // SAFETY: this runs once for each of `x`, so row `r`'s step ends where the last row's last step does or before, and
            // that is inside the slice, says the assertion.
            #[expect(unsafe_code, reason = "rows are at a stride")]
            unsafe {
                multiply_step::<K, MR, T, RELOAD>(tier, w, stride, x, &mut sums);
            }
            w = w.wrapping_add(K::STEP);
        }
    }
    for x in rest {
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "rows are at a stride")]
        unsafe {
            multiply_step::<K, MR, T, RELOAD>(tier, w, stride, x, &mut sums);
        }
        w = w.wrapping_add(K::STEP);
    }
    sums
}

/// Adds a step of `MR` rows by `T` tokens.
///
/// # Safety
/// There is a step at `w`, and at each of the `MR - 1` places that are `stride` apart after it.
#[inline(always)]
#[expect(unsafe_code, reason = "rows are at a stride")]
unsafe fn multiply_step<K: MicroKernel, const MR: usize, const T: usize, const RELOAD: bool>(
    tier: K::Tier,
    w: *const K::Weight,
    stride: usize,
    x: &[K::InputStep; T],
    sums: &mut [[Sums<K>; T]; MR],
) {
    // SAFETY: says the caller.
    unsafe { multiply_vector::<K, MR, T, 0, RELOAD>(tier, w, stride, x, sums) };
    if K::VECTORS > 1 {
        // SAFETY: says the caller.
        unsafe { multiply_vector::<K, MR, T, 1, RELOAD>(tier, w, stride, x, sums) };
    }
}

/// Adds vector `V` of a step.
///
/// # Safety
/// As [`multiply_step`].
#[inline(always)]
#[expect(unsafe_code, reason = "rows are at a stride")]
unsafe fn multiply_vector<
    K: MicroKernel,
    const MR: usize,
    const T: usize,
    const V: usize,
    const RELOAD: bool,
>(
    tier: K::Tier,
    w: *const K::Weight,
    stride: usize,
    x: &[K::InputStep; T],
    sums: &mut [[Sums<K>; T]; MR],
) {
    // A step's reference, for row `r < MR`.
    macro_rules! row {
        ($r:expr) => {
            // SAFETY: says the caller.
            K::weights::<V, RELOAD>(tier, unsafe {
                &*w.wrapping_add(stride.wrapping_mul($r)).cast()
            })
        };
    }
    if MR < T {
        let mut rows = [row!(0); MR];
        for r in 1..MR {
            rows[r] = row!(r);
        }
        for t in 0..T {
            let x = K::inputs::<V>(tier, &x[t]);
            for r in 0..MR {
                sums[r][t] = K::multiply_add(tier, rows[r], x, sums[r][t]);
            }
        }
    } else {
        let mut tokens = [K::inputs::<V>(tier, &x[0]); T];
        for t in 1..T {
            tokens[t] = K::inputs::<V>(tier, &x[t]);
        }
        for r in 0..MR {
            let row = row!(r);
            for t in 0..T {
                sums[r][t] = K::multiply_add(tier, row, tokens[t], sums[r][t]);
            }
        }
    }
}

/// Reduces the sums of `R` rows, and writes those of the first `num_rows` to their place: a token and a row.
#[inline(always)]
pub(crate) fn write<K: MicroKernel, const R: usize, const T: usize>(
    tier: K::Tier,
    sums: &[[Sums<K>; T]; R],
    num_rows: usize,
    (token, first): (usize, usize),
    out: &mut Outputs<'_>,
) {
    // By tokens, then rows.
    let place = |sum: usize| (sum % R, sum / R);
    let mut reduced = [[0.0; R]; T];
    for first in (0..R * T).step_by(REDUCED) {
        // The last sum stands in for those past it.
        let mut four = [sums[0][0]; REDUCED];
        for (i, sum) in four.iter_mut().enumerate() {
            let (r, t) = place((first + i).min(R * T - 1));
            *sum = sums[r][t];
        }
        let four = K::reduce(tier, four);
        for (sum, four) in (first..R * T).zip(four) {
            let (r, t) = place(sum);
            reduced[t][r] = four;
        }
    }
    if num_rows == R {
        out.write((token, first), &reduced);
    } else {
        out.write_some((token, first), &reduced, num_rows);
    }
}

/// How `K` wants so many tokens of `k` elements.
pub(crate) fn layout<K: MicroKernel>(num_tokens: usize, k: usize) -> InputLayout {
    let (num_tiles, panel_bytes) = match K::blocking(num_tokens) {
        Blocking::Gemv => (1, 0),
        Blocking::Gemm { nr, panel_bytes, .. } => (num_tokens.div_ceil(nr), panel_bytes),
    };
    let bytes = (panel_bytes, size_of::<K::Input>());
    InputLayout::new((num_tokens, k), num_tiles, K::STEP, bytes)
}

/// Linear layers over row-major weights by dot products.
pub(crate) struct Dot<K: MicroKernel> {
    form: InputForm,
    arrange: Arrange<K::Input>,
    kernel: PhantomData<K>,
}

impl<K: MicroKernel> Dot<K> {
    /// `arrange` puts inputs into `form`, in the order in which `K` multiplies a step.
    pub(crate) const fn new(form: InputForm, arrange: Arrange<K::Input>) -> Self {
        Self { form, arrange, kernel: PhantomData }
    }
}

#[expect(unsafe_code, reason = "kernels need their instruction set")]
impl<K: MicroKernel> LinearKernel for Dot<K> {
    fn input_form(&self) -> InputForm {
        self.form
    }

    fn input_bytes(&self) -> usize {
        size_of::<K::Input>()
    }

    fn layout(&self, num_tokens: usize, k: usize) -> InputLayout {
        layout::<K>(num_tokens, k)
    }

    unsafe fn prepare(&self, tile: &[f32], k: usize, layout: &InputLayout, out: &mut [u8]) {
        let out: &mut [K::Input] = bytemuck::cast_slice_mut(out);
        let stride = tile.len() / k * layout.step;
        for (i, token) in tile.chunks_exact(k).enumerate() {
            // SAFETY: the caller vouches for the tier.
            unsafe { (self.arrange)(token, layout.step, &mut out[i * layout.step..], stride) };
        }
    }

    /// A copy if K is no whole number of steps, or if that saves time.
    ///
    /// Several panels of several tiles save time: all read the rows, and where they don't start with a cache line, as in most
    /// checkpoints, nearly every load takes two. Of a single panel the rows are copied as they come.
    unsafe fn stage<'a>(
        &self,
        rows: Rows<'a>,
        layout: &InputLayout,
        copy: &'a mut Vec<u8>,
    ) -> Rows<'a> {
        let (matrix, padded_k) = (rows.matrix, layout.padded_k);
        let is_read_often = layout.tiles_a_panel > 1 && layout.panels().len() > 1;
        let is_whole = matrix.in_features() == padded_k;
        if is_whole && (starts_line(rows.bytes()) || !is_read_often) {
            return rows;
        }
        let padded_bytes = padded_k * size_of::<K::Weight>();
        let copy = aligned(copy, rows.len * padded_bytes);
        let bytes = rows.bytes().chunks_exact(matrix.row_bytes());
        for (row, copy) in bytes.zip(copy.chunks_exact_mut(padded_bytes)) {
            copy[..row.len()].copy_from_slice(row);
            copy[row.len()..].fill(0);
        }
        let matrix = Matrix::new(matrix.format(), copy, padded_k);
        Rows { matrix, first: 0, len: rows.len }
    }

    unsafe fn multiply(&self, task: Task<'_>, scratch: &mut KernelScratch, out: Outputs<'_>) {
        // SAFETY: the caller vouches for the tier.
        let tier = unsafe { K::Tier::new() };
        K::multiply(tier, Operands::of(task), scratch, out);
    }
}
