//! Products of 8-bit integers: strips of 16 weight rows by some tokens, a lane an output.
//!
//! An output is computed group by group in the order of K. A group's sum of products is an integer, so it is exact in whatever
//! order and by whatever instructions. It is then added as the scalar tier says (`crate::scalar`), with one rounding after each
//! operation: the same in every tier, so an output has the same bits everywhere.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]
#![expect(clippy::needless_range_loop, reason = "sums are found by strip and token")]

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use super::inputs::{InputLayout, Inputs, aligned};
use super::kernel::{InputForm, KernelScratch, LinearKernel, Task};
use super::rows::Rows;
use crate::formats::strips::{self, ROWS, STEP, Scales, Step, Strip, ZERO_POINT};
use crate::prefetch::LINE_BYTES;
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

/// Strips that are read at once: several streams draw more from memory than one does.
pub(crate) const BLOCK: usize = 4;

/// Tokens of a panel, about. Its sums, its inputs of a group and a group of a block's weights stay in the first-level cache
/// together.
const PANEL_TOKENS: usize = 48;

/// Bytes of a strip between what is multiplied and what is prefetched.
const PREFETCH_DISTANCE: usize = 4096;

/// A group of inputs of a token, quantised.
pub(crate) struct QuantizedGroup<const STEPS: usize> {
    pub(crate) values: [[i8; STEP]; STEPS],
    pub(crate) scale: f32,
    pub(crate) sum: i32,
}

impl<const STEPS: usize> QuantizedGroup<STEPS> {
    /// `x`, each value to the nearest of 255 multiples of a scale: the greatest magnitude over 127.
    ///
    /// If a value is not finite the scale is NaN, which makes all the token's outputs NaN. If all are less than 2^-100, and a
    /// scale would lose its digits, all are taken as zero.
    ///
    /// Every operation is rounded by itself, so the result is the same however the compiler arranges it.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low byte of an integer from -127 to 127"
    )]
    pub(crate) fn new(x: &[[f32; STEP]; STEPS]) -> Self {
        /// Adding it to a small number leaves the nearest integer, ties to even, in the low bits.
        const ROUND: f32 = 12_582_912.0;
        const TINY: f32 = f32::from_bits(27 << 23);
        // The bits of magnitudes are in the order of their values; infinities and NaN come last.
        let mut largest = 0;
        for x in x.as_flattened() {
            largest = largest.max(x.to_bits() & 0x7fff_ffff);
        }
        let largest = f32::from_bits(largest);
        let mut group = Self { values: [[0; STEP]; STEPS], scale: 0.0, sum: 0 };
        if !largest.is_finite() {
            group.scale = f32::NAN;
        } else if largest >= TINY {
            group.scale = largest / 127.0;
            let inverse = 127.0 / largest;
            // One thing at a time, which the compiler makes vectors of.
            let mut bits = [[0; STEP]; STEPS];
            for (bits, x) in bits.as_flattened_mut().iter_mut().zip(x.as_flattened()) {
                *bits = (x * inverse + ROUND).to_bits();
            }
            for (value, bits) in group.values.as_flattened_mut().iter_mut().zip(bits.as_flattened())
            {
                *value = *bits as i8;
            }
            for bits in bits.as_flattened() {
                group.sum += bits.wrapping_sub(ROUND.to_bits()).cast_signed();
            }
        }
        group
    }
}

/// Bytes of a token's prepared inputs of a group: its steps, its scale, and where sums of products start.
const fn group_bytes<I>(steps: usize) -> usize {
    steps * size_of::<I>() + size_of::<f32>() + size_of::<i32>()
}

/// The prepared inputs of `T` tokens of a tile, of one group.
#[derive(Clone, Copy)]
pub(crate) struct GroupInputs<'a, I, const STEPS: usize, const T: usize> {
    pub(crate) steps: &'a [[I; T]; STEPS],
    pub(crate) scales: &'a [f32; T],
    /// Minus the zero point times the sum of the inputs: as weights are stored with it.
    pub(crate) starts: &'a [i32; T],
}

impl<'a, I: Pod, const STEPS: usize, const T: usize> GroupInputs<'a, I, STEPS, T> {
    /// Those of `group`; `tile` are the prepared inputs of the tile.
    #[inline(always)]
    pub(crate) fn new(tile: &'a [u8], group: usize) -> Self {
        let len = T * group_bytes::<I>(STEPS);
        let (steps, rest) = tile[group * len..][..len].split_at(STEPS * T * size_of::<I>());
        let (scales, starts) = rest.split_at(size_of::<[f32; T]>());
        let steps: &[[I; T]] = bytemuck::cast_slice(steps);
        Self {
            steps: steps.as_array().expect("as many steps"),
            scales: bytemuck::from_bytes(scales),
            starts: bytemuck::from_bytes(starts),
        }
    }
}

/// Prepares the tokens of a tile, rows of `k`, with steps of inputs as `arrange` puts them.
#[inline(always)]
pub(crate) fn prepare<I: Pod, const STEPS: usize>(
    tile: &[f32],
    k: usize,
    arrange: impl Fn([i8; STEP]) -> I,
    out: &mut [u8],
) {
    let num_tokens = tile.len() / k;
    let len = num_tokens * group_bytes::<I>(STEPS);
    for (token, x) in tile.chunks_exact(k).enumerate() {
        for (x, out) in x.chunks(STEPS * STEP).zip(out.chunks_exact_mut(len)) {
            let mut padded;
            let x = if let Some(x) = x.as_chunks().0.as_array() {
                x
            } else {
                padded = [[0.0; STEP]; STEPS];
                padded.as_flattened_mut()[..x.len()].copy_from_slice(x);
                &padded
            };
            let group = QuantizedGroup::<STEPS>::new(x);
            let (steps, rest) = out.split_at_mut(STEPS * num_tokens * size_of::<I>());
            let steps: &mut [I] = bytemuck::cast_slice_mut(steps);
            for (x, place) in group.values.into_iter().zip(steps.chunks_exact_mut(num_tokens)) {
                place[token] = arrange(x);
            }
            let (scales, starts) = rest.split_at_mut(num_tokens * size_of::<f32>());
            bytemuck::cast_slice_mut::<u8, f32>(scales)[token] = group.scale;
            bytemuck::cast_slice_mut::<u8, i32>(starts)[token] = -i32::from(ZERO_POINT) * group.sum;
        }
    }
}

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

/// How so many tokens of `k` elements are laid out in groups of `steps`, for tiles of up to `nr` tokens and panels of about
/// `panel_tokens`.
pub(crate) fn layout<I>(
    (num_tokens, k): (usize, usize),
    steps: usize,
    nr: usize,
    panel_tokens: usize,
) -> InputLayout {
    let group_bytes = group_bytes::<I>(steps);
    let token_bytes = strips::num_groups(k, steps) * group_bytes;
    let num_tiles = num_tokens.div_ceil(nr);
    InputLayout::new(
        (num_tokens, token_bytes),
        num_tiles,
        group_bytes,
        (panel_tokens * token_bytes, 1),
    )
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

    fn stage<'a>(&self, rows: Rows<'a>, _: &InputLayout, _: &'a mut Vec<u8>) -> Rows<'a> {
        rows
    }

    unsafe fn multiply(&self, task: Task<'_>, scratch: &mut KernelScratch, out: Outputs<'_>) {
        let Task { rows, next, x, panel } = task;
        // SAFETY: the caller vouches for the tier.
        let kernel = unsafe { K::new() };
        let (rows, next) = (StripRows::new(rows), next.map(StripRows::new));
        kernel.compile(Multiply::<K, STEPS> { kernel, rows, next, x, panel, scratch, out });
    }
}

/// Rows in strips.
#[derive(Clone, Copy)]
pub(crate) struct StripRows<'a> {
    bytes: &'a [u8],
    num_rows: usize,
    in_features: usize,
}

impl<'a> StripRows<'a> {
    pub(crate) fn new(rows: Rows<'a>) -> Self {
        let in_features = rows.matrix.in_features();
        Self { bytes: rows.bytes(), num_rows: rows.len, in_features }
    }

    fn num_strips(self) -> usize {
        self.num_rows.div_ceil(ROWS)
    }

    pub(crate) fn strips<const STEPS: usize>(self) -> impl Iterator<Item = Strip<'a, STEPS>> {
        (0..self.num_strips()).map(move |strip| self.strip(strip))
    }

    #[inline(always)]
    fn strip<const STEPS: usize>(self, strip: usize) -> Strip<'a, STEPS> {
        let strip_bytes = self.bytes.len() / self.num_strips();
        Strip::new(&self.bytes[strip * strip_bytes..][..strip_bytes], self.in_features)
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
        for first in (0..num_strips).step_by(BLOCK) {
            let block = Block::<STEPS>::new(rows, next, first);
            sums.fill([[0.0; ROWS]; BLOCK]);
            let num_groups = block.strips[0].num_groups();
            for group in 0..num_groups {
                let ahead = block.lines_to_prefetch(group);
                for line in block.scales_to_prefetch(group) {
                    kernel.prefetch(line);
                }
                let mut at = 0;
                for (i, tile) in panel.clone().enumerate() {
                    let num_tokens = x.layout().tokens(tile..tile + 1).len();
                    let tile = Tile::<K, STEPS> {
                        kernel,
                        block: &block,
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

/// Strips that are read at once.
struct Block<'a, const STEPS: usize> {
    /// For those that are missing the first is repeated: a tile of several strips multiplies them, and nobody takes the results.
    strips: [Strip<'a, STEPS>; BLOCK],
    len: usize,
    /// Those that come next in the place of each.
    next: [Strip<'a, STEPS>; BLOCK],
}

impl<'a, const STEPS: usize> Block<'a, STEPS> {
    /// The strips of `rows` from `first` on; the strips of `next` come after those of `rows`.
    #[inline(always)]
    fn new(rows: StripRows<'a>, next: Option<StripRows<'a>>, first: usize) -> Self {
        let num_strips = rows.num_strips();
        let len = BLOCK.min(num_strips - first);
        let strips = std::array::from_fn(|i| rows.strip(first + if i < len { i } else { 0 }));
        let next = std::array::from_fn(|i| {
            let strip = first + BLOCK + i;
            if strip < num_strips {
                return rows.strip(strip);
            }
            // What isn't there is in the cache.
            match next {
                Some(next) if first + BLOCK >= num_strips && i < next.num_strips() => next.strip(i),
                _ => strips[i],
            }
        });
        Self { strips, len, next }
    }

    /// For each strip the first line to prefetch while `group` is multiplied, as many lines as it has steps.
    #[inline(always)]
    fn lines_to_prefetch(&self, group: usize) -> [*const u8; BLOCK] {
        let num_groups = self.strips[0].num_groups();
        let distance = (PREFETCH_DISTANCE / (STEPS * LINE_BYTES)).clamp(1, num_groups);
        let group = group + distance;
        std::array::from_fn(|i| {
            let steps = if group < num_groups {
                self.strips[i].steps(group)
            } else {
                // Next rows may be shorter.
                let next = self.next[i];
                next.steps((group - num_groups).min(next.num_groups() - 1))
            };
            steps.as_ptr().cast()
        })
    }

    /// The lines of the next strips' scales to prefetch while `group` is multiplied: a group's scales are half a line.
    #[inline(always)]
    fn scales_to_prefetch(&self, group: usize) -> impl Iterator<Item = *const u8> {
        let is_due = group.is_multiple_of(2);
        let next = self.next.iter().filter(move |_| is_due);
        next.map(move |strip| strip.all_scales().as_ptr().wrapping_add(group).cast())
    }
}

/// A group of a block by a tile of tokens.
#[derive(Clone, Copy)]
struct Tile<'a, K, const STEPS: usize> {
    kernel: K,
    block: &'a Block<'a, STEPS>,
    group: usize,
    /// The tile's prepared inputs.
    x: &'a [u8],
    /// What to prefetch of each strip.
    ahead: [*const u8; BLOCK],
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
        let sums: &mut [_; T] = sums.as_mut_array().expect("a sum a token");
        let (tile, num_tiles) = self.place;
        if const { K::MR == BLOCK } {
            // The more tiles there are, the more tokens has each, and the less does it prefetch.
            if const { T >= 4 } && num_tiles >= BLOCK {
                self.multiply_strips::<BLOCK, T, 1>(0, [self.ahead[tile % BLOCK]], sums);
            } else if const { T >= 3 } && num_tiles > 1 {
                let lines = std::array::from_fn(|i| self.ahead[(2 * tile + i) % BLOCK]);
                self.multiply_strips::<BLOCK, T, 2>(0, lines, sums);
            } else {
                self.multiply_strips::<BLOCK, T, BLOCK>(0, self.ahead, sums);
            }
        } else {
            for strip in 0..self.block.len {
                self.multiply_strips::<1, T, 1>(strip, [self.ahead[strip]], sums);
            }
        }
    }

    /// Adds a group of `MR` strips from `first` on, by `T` tokens; prefetches a line of each of `lines` a step.
    #[inline(always)]
    fn multiply_strips<const MR: usize, const T: usize, const L: usize>(
        self,
        first: usize,
        lines: [*const u8; L],
        out: &mut [[[f32; ROWS]; BLOCK]; T],
    ) {
        let Self { kernel, block, group, x, .. } = self;
        let x = GroupInputs::<K::Input, STEPS, T>::new(x, group);
        let strips: [_; MR] = std::array::from_fn(|m| block.strips[first + m]);
        let w = strips.map(|strip| strip.steps(group));
        let mut sums = [x.starts.map(|start| kernel.start(start)); MR];
        for step in 0..STEPS {
            let mut weights = [kernel.weights(&w[0][step]); MR];
            for m in 1..MR {
                weights[m] = kernel.weights(&w[m][step]);
            }
            for line in lines {
                kernel.prefetch(line.wrapping_add(step * LINE_BYTES));
            }
            for t in 0..T {
                for m in 0..MR {
                    sums[m][t] = kernel.multiply_add(weights[m], &x.steps[step][t], sums[m][t]);
                }
            }
        }
        for m in 0..MR {
            let scales = kernel.scales(strips[m].scales(group));
            for t in 0..T {
                kernel.add(sums[m][t], scales, x.scales[t], &mut out[t][first + m]);
            }
        }
    }
}
