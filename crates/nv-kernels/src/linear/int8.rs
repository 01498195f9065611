//! Products of 8-bit integers: strips of 16 weight rows by some tokens, a lane an output.
//!
//! An output is computed group by group in the order of K. A group's sum of products is an integer, so it is exact in whatever
//! order and by whatever instructions. It is then added as the scalar tier says (`crate::scalar`), with one rounding after each
//! operation: the same in every tier, so an output has the same bits everywhere.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]
#![expect(clippy::needless_range_loop, reason = "sums are found by strip and token")]

pub(crate) mod inputs;
pub(crate) mod strips;

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use self::inputs::{GroupInputs, layout, prepare};
use self::strips::{Ahead, BLOCK, Block, Group, StripRows, Unpack, is_unpacked_first};
use super::inputs::{InputLayout, Inputs, aligned};
use super::kernel::{InputForm, KernelScratch, LinearKernel, Task};
use super::rows::Rows;
use crate::formats::strips::{ROWS, STEP, Scales, Step};
use crate::results::Outputs;
use crate::tier::Work;

/// How a tier multiplies 8-bit integers: loads, products, and the tile that suits them. A value of the type is a proof that the
/// machine has the tier.
///
/// Methods that take `self` are `#[inline(always)]`.
pub(crate) trait Int8Kernel: Copy + Sync + 'static {
    /// A token's inputs of a step.
    type Input: Pod;
    /// A step of weights.
    type Weights: Copy;
    /// Sums of the rows of a strip, integers.
    type Sums: Copy;
    /// A group's scales of the rows of a strip.
    type Scales: Copy;

    /// Strips of a tile: 1, or all of a block.
    const MR: usize;
    /// The most tokens of a tile.
    const NR: usize;

    /// # Safety
    /// The machine has the tier.
    #[expect(unsafe_code, reason = "kernels need their instruction set")]
    unsafe fn new() -> Self;

    /// Calls `work`, compiled with the tier's instructions.
    fn compile<W: Work>(self, work: W) -> W::Output;

    /// Where such work is that the tier compiled.
    #[cfg(all(test, not(debug_assertions)))]
    fn address_of<W: Work>() -> usize;

    /// Prefetches a line of weights.
    fn prefetch(self, line: *const u8);

    /// Inputs as [`Self::multiply_add`] takes them.
    fn input(x: [i8; STEP]) -> Self::Input;

    /// `sum` in every row.
    fn start(self, sum: i32) -> Self::Sums;

    /// A step of weights, [`ZERO_POINT`] included.
    fn weights(self, step: &Step) -> Self::Weights;

    /// `sums + w · x`, for each row.
    fn multiply_add(self, w: Self::Weights, x: &Self::Input, sums: Self::Sums) -> Self::Sums;

    fn scales(self, scales: &Scales) -> Self::Scales;

    /// `out + sums · (scales · x_scale)`, for each row: the product of the scales is rounded, and then the result, once.
    fn add(self, sums: Self::Sums, scales: Self::Scales, x_scale: f32, out: &mut [f32; ROWS]);
}

/// The most tokens of any tier's tile.
pub(crate) const MAX_NR: usize = 6;

/// Tokens of a panel, about. Its sums, its inputs of a group and a group of a block's weights stay in the first-level cache
/// together.
const PANEL_TOKENS: usize = 48;

/// See [`prepare`].
struct Prepare<'a, K, const STEPS: usize> {
    tile: &'a [f32],
    k: usize,
    out: &'a mut [u8],
    kernel: PhantomData<K>,
}

impl<K: Int8Kernel, const STEPS: usize> Work for Prepare<'_, K, STEPS> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        prepare::<K::Input, STEPS>(self.tile, self.k, K::input, self.out);
    }
}

/// Linear layers over strips of groups of `STEPS` steps.
pub(crate) struct Int8<K, const STEPS: usize>(PhantomData<K>);

impl<K: Int8Kernel, const STEPS: usize> Int8<K, STEPS> {
    pub(crate) const KERNEL: Self = Self(PhantomData);
}

#[expect(unsafe_code, reason = "kernels need their instruction set")]
impl<K: Int8Kernel, const STEPS: usize> LinearKernel for Int8<K, STEPS> {
    fn input_form(&self) -> InputForm {
        InputForm::Int8 { steps: STEPS }
    }

    fn input_bytes(&self) -> usize {
        1
    }

    fn layout(&self, num_tokens: usize, k: usize) -> InputLayout {
        layout::<K::Input>((num_tokens, k), STEPS, K::NR, PANEL_TOKENS)
    }

    unsafe fn prepare(&self, tile: &[f32], k: usize, _: &InputLayout, out: &mut [u8]) {
        // SAFETY: the caller vouches for the tier.
        let kernel = unsafe { K::new() };
        kernel.compile(Prepare::<K, STEPS> { tile, k, out, kernel: PhantomData });
    }

    unsafe fn stage<'a>(
        &self,
        rows: Rows<'a>,
        layout: &InputLayout,
        copy: &'a mut Vec<u8>,
    ) -> Rows<'a> {
        if !is_unpacked_first(rows, layout) {
            return rows;
        }
        // SAFETY: the caller vouches for the tier.
        let kernel = unsafe { K::new() };
        kernel.compile(Unpack { rows, copy })
    }

    unsafe fn multiply(&self, task: Task<'_>, scratch: &mut KernelScratch, out: Outputs<'_>) {
        let Task { rows, next, x, panel } = task;
        // SAFETY: the caller vouches for the tier.
        let kernel = unsafe { K::new() };
        let (rows, next) = (StripRows::new(rows), next.map(StripRows::new));
        kernel.compile(Multiply::<K, STEPS> { kernel, rows, next, x, panel, scratch, out });
    }
}

/// `x @ rowsᵀ` for a panel of tokens: a block of strips after the other, in each of them a group after the other, and in that a
/// tile of tokens after the other.
pub(crate) struct Multiply<'a, K, const STEPS: usize> {
    kernel: K,
    rows: StripRows<'a>,
    next: Option<StripRows<'a>>,
    x: Inputs<'a, u8>,
    panel: Range<usize>,
    scratch: &'a mut KernelScratch,
    out: Outputs<'a>,
}

impl<K: Int8Kernel, const STEPS: usize> Work for Multiply<'_, K, STEPS> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        const { assert!(K::NR <= MAX_NR && (K::MR == 1 || K::MR == BLOCK)) };
        let Self { kernel, rows, next, x, panel, scratch, mut out } = self;
        let tokens = x.layout().tokens(panel.clone());
        let num_strips = rows.num_strips();
        let sums = aligned(&mut scratch.sums, tokens.len() * BLOCK * size_of::<[f32; ROWS]>());
        let sums: &mut [[[f32; ROWS]; BLOCK]] = bytemuck::cast_slice_mut(sums);
        let room = aligned(&mut scratch.rows, size_of::<[[Step; STEPS]; BLOCK]>());
        let room = bytemuck::cast_slice_mut(room).as_mut_array().expect("as many bytes");
        for first in (0..num_strips).step_by(BLOCK) {
            let block = Block::<STEPS>::new(rows, next, first);
            sums.fill([[0.0; ROWS]; BLOCK]);
            let num_groups = block.num_groups();
            for group in 0..num_groups {
                let ahead = block.ahead(group);
                for line in block.headers_ahead(group, ahead) {
                    kernel.prefetch(line);
                }
                let weights = block.groups(group, room);
                let mut at = 0;
                for (i, tile) in panel.clone().enumerate() {
                    let num_tokens = x.layout().tokens(tile..tile + 1).len();
                    let tile = Tile::<K, STEPS> {
                        kernel,
                        weights: &weights,
                        len: block.len,
                        group,
                        x: x.tiles(tile..tile + 1),
                        ahead,
                        place: (i, panel.len()),
                    };
                    tile.multiply(num_tokens, &mut sums[at..at + num_tokens]);
                    if group + 1 == num_groups {
                        // Where many rows of results are written, each write would wait for its line.
                        for token in at..at + num_tokens {
                            for strip in first..first + block.len {
                                kernel.prefetch(out.address_of(token, strip * ROWS));
                            }
                        }
                    }
                    at += num_tokens;
                }
            }
            let first_row = first * ROWS;
            if rows.num_rows - first_row >= BLOCK * ROWS {
                let sums: &[[f32; BLOCK * ROWS]] = bytemuck::cast_slice(sums);
                for (token, sums) in sums.iter().enumerate() {
                    out.write((token, first_row), std::array::from_ref(sums));
                }
                continue;
            }
            for (token, sums) in sums.iter().enumerate() {
                for (row, sums) in (first_row..rows.num_rows).step_by(ROWS).zip(sums) {
                    let num_rows = ROWS.min(rows.num_rows - row);
                    out.write_some((token, row), std::array::from_ref(sums), num_rows);
                }
            }
        }
    }
}

/// A group of a block by a tile of tokens.
#[derive(Clone, Copy)]
struct Tile<'a, K, const STEPS: usize> {
    kernel: K,
    weights: &'a [Group<'a, STEPS>; BLOCK],
    /// Strips of the block; the others' results nobody takes.
    len: usize,
    group: usize,
    /// The tile's prepared inputs.
    x: &'a [u8],
    /// What to prefetch.
    ahead: Ahead,
    /// The tile's number, and that of all tiles: each prefetches its share.
    place: (usize, usize),
}

impl<K: Int8Kernel, const STEPS: usize> Tile<'_, K, STEPS> {
    #[inline(always)]
    fn multiply(self, num_tokens: usize, sums: &mut [[[f32; ROWS]; BLOCK]]) {
        match num_tokens {
            1 => self.multiply_tokens::<1>(sums),
            2 if const { K::NR >= 2 } => self.multiply_tokens::<2>(sums),
            3 if const { K::NR >= 3 } => self.multiply_tokens::<3>(sums),
            4 if const { K::NR >= 4 } => self.multiply_tokens::<4>(sums),
            5 if const { K::NR >= 5 } => self.multiply_tokens::<5>(sums),
            6 if const { K::NR >= 6 } => self.multiply_tokens::<6>(sums),
            _ => unreachable!("a tile has {num_tokens} tokens"),
        }
    }

    #[inline(always)]
    fn multiply_tokens<const T: usize>(self, sums: &mut [[[f32; ROWS]; BLOCK]]) {
        let lines = self.ahead.elements;
        let sums: &mut [_; T] = sums.as_mut_array().expect("a sum a token");
        let (tile, num_tiles) = self.place;
        if const { K::MR == BLOCK } {
            // The more tiles there are, the more tokens has each, and the less does it prefetch.
            if const { T >= 4 } && num_tiles >= BLOCK {
                self.multiply_strips::<BLOCK, T, 1>(0, [lines[tile % BLOCK]], sums);
            } else if const { T >= 3 } && num_tiles > 1 {
                let lines = std::array::from_fn(|i| lines[(2 * tile + i) % BLOCK]);
                self.multiply_strips::<BLOCK, T, 2>(0, lines, sums);
            } else {
                self.multiply_strips::<BLOCK, T, BLOCK>(0, lines, sums);
            }
        } else {
            for strip in 0..self.len {
                self.multiply_strips::<1, T, 1>(strip, [lines[strip]], sums);
            }
        }
    }

    /// Adds a group of `MR` strips from `first` on, by `T` tokens; prefetches of each of `lines` a step.
    #[inline(always)]
    fn multiply_strips<const MR: usize, const T: usize, const L: usize>(
        self,
        first: usize,
        lines: [*const u8; L],
        out: &mut [[[f32; ROWS]; BLOCK]; T],
    ) {
        let Self { kernel, group, x, ahead, .. } = self;
        let x = GroupInputs::<K::Input, STEPS, T>::new(x, group);
        let weights: [_; MR] = std::array::from_fn(|m| self.weights[first + m]);
        let w = weights.map(|weights| weights.steps);
        let mut sums = [x.starts.map(|start| kernel.start(start)); MR];
        for step in 0..STEPS {
            let mut loaded = [kernel.weights(&w[0][step]); MR];
            for m in 1..MR {
                loaded[m] = kernel.weights(&w[m][step]);
            }
            for line in lines {
                kernel.prefetch(line.wrapping_add(step * ahead.step_bytes));
            }
            for t in 0..T {
                for m in 0..MR {
                    sums[m][t] = kernel.multiply_add(loaded[m], &x.steps[step][t], sums[m][t]);
                }
            }
        }
        for m in 0..MR {
            let scales = kernel.scales(weights[m].scales);
            for t in 0..T {
                kernel.add(sums[m][t], scales, x.scales[t], &mut out[t][first + m]);
            }
        }
    }
}
