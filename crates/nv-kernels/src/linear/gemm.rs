//! Many tokens: tiles of MR weight rows by up to NR tokens, along segments of K that stay in the first-level cache.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]

use std::ops::Range;

use super::gemv::rows_to_prefetch;
use super::inputs::aligned;
use super::kernel::KernelScratch;
use super::micro_kernel::{MicroKernel, Operands, Sums, multiply_tile, write};
use super::rows::RowMajor;
use crate::caches::Caches;
use crate::prefetch::Prefetch;
use crate::results::Outputs;
use crate::tier::{Compile, Tier, Work};

/// The most tokens of any tier's tile.
pub(crate) const MAX_NR: usize = 8;

/// Steps between two prefetches: fewer instructions beside the products.
const PREFETCH_EVERY: usize = 4;

/// `x @ rowsᵀ` for a panel of tokens: a segment of K after the other, in each of them `MR` rows after the others, and for
/// these rows a tile of up to `NR` tokens after the other.
pub(crate) fn gemm<K: MicroKernel, const MR: usize, const NR: usize>(
    tier: K::Tier,
    operands: Operands<'_, K>,
    scratch: &mut KernelScratch,
    out: Outputs<'_>,
) {
    const { assert!(NR <= MAX_NR) };
    tier.compile(Gemm::<K, MR, NR> { tier, operands, scratch, out });
}

/// See [`gemm`].
pub(crate) struct Gemm<'a, K: MicroKernel, const MR: usize, const NR: usize> {
    tier: K::Tier,
    operands: Operands<'a, K>,
    scratch: &'a mut KernelScratch,
    out: Outputs<'a>,
}

impl<K: MicroKernel, const MR: usize, const NR: usize> Work for Gemm<'_, K, MR, NR> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { tier, operands: Operands { rows: w, next, x, panel }, scratch, mut out } = self;
        let layout = x.layout();
        let (k, num_rows, num_tiles) = (layout.padded_k, w.num_rows(), panel.len());
        let num_panels = layout.panels().len();
        let segment = segment::<K, MR, NR>(k, layout.tiles_a_panel);
        let num_segments = k.div_ceil(segment);
        let mut kept = Kept::<K, NR>::new(&mut scratch.sums, num_segments, num_tiles * num_rows);
        // Weights pass by once if there is a single panel: several tiles read a copy, and all the while the rows after
        // it are prefetched.
        let copies = num_panels == 1 && num_tiles > 1;
        // Else each panel prefetches its share of the next task, and a single tile the next one if that is far:
        // several are in order, which the machine foresees.
        let mut next_tile =
            Prefetch::of(if num_tiles == 1 { x.tile_to_prefetch(panel.start) } else { &[] });
        let mut next_task =
            Prefetch::of(next.elements()).run(panel.start / layout.tiles_a_panel, num_panels);
        let lines_at_once = if copies {
            Prefetch::num_lines_of::<K::Weight>(MR * segment).div_ceil(num_tiles + 1)
        } else {
            let times = num_segments * num_rows.div_ceil(MR) * num_tiles;
            (next_tile.num_lines() + next_task.num_lines()).div_ceil(times)
        };
        let first_token = layout.tokens(panel.clone()).start;
        for (i, start) in (0..k).step_by(segment).enumerate() {
            let segment = start..k.min(start + segment);
            for r in (0..num_rows).step_by(MR) {
                let mut rows = w.rows(r..num_rows.min(r + MR));
                let mut next_rows = Prefetch::of::<u8>(&[]);
                if copies {
                    next_rows = Prefetch::of(rows_to_prefetch(w, next, r, MR)).run(i, num_segments);
                    let prefetch = next_rows.split_to(lines_at_once);
                    rows = copied::<K>(tier, rows, segment.clone(), prefetch, &mut scratch.rows);
                }
                for tile in panel.clone() {
                    let prefetch = if copies {
                        &mut next_rows
                    } else if next_tile.num_lines() > 0 {
                        &mut next_tile
                    } else {
                        &mut next_task
                    };
                    let prefetch = prefetch.split_to(lines_at_once);
                    let tokens = layout.tokens(tile..tile + 1);
                    let x: &[K::InputStep] = bytemuck::cast_slice(x.tiles(tile..tile + 1));
                    let place = (tokens.start - first_token, r);
                    let kept = kept.of((tile - panel.start) * num_rows + r, rows.num_rows());
                    let is_last = segment.end == k;
                    let tile = Tile::<K> {
                        tier,
                        rows,
                        segment: segment.clone(),
                        is_last,
                        x,
                        prefetch,
                        place,
                    };
                    tile.multiply::<MR, NR>(tokens.len(), kept, &mut out);
                }
            }
        }
    }
}

/// Elements of K that are multiplied at once, so that what passes by least stays in the first-level cache: all, or equal
/// segments. Between segments all sums are kept, so few large ones are best.
///
/// A whole tile takes up to three quarters of the cache: rows pass by it in several streams. Whole rows take up to all of it: tiles
/// come in one. Segments are smaller by a quarter, which the kept sums take.
#[inline(always)]
fn segment<K: MicroKernel, const MR: usize, const NR: usize>(
    k: usize,
    tiles_a_panel: usize,
) -> usize {
    let Caches { l1, .. } = Caches::get();
    // Bytes of all steps if they fit, else of a segment beside kept sums.
    let (step, whole, segment) = if tiles_a_panel == 1 {
        // Rows pass by a tile.
        (NR * K::STEP * size_of::<K::Input>(), l1 / 4 * 3, l1 / 2)
    } else {
        // Tiles pass by rows, and come in order.
        (MR * K::STEP * size_of::<K::Weight>(), l1, l1 / 4 * 3)
    };
    let num_steps = k / K::STEP;
    let bytes = num_steps * step;
    K::STEP * num_steps.div_ceil(if bytes <= whole { 1 } else { bytes.div_ceil(segment) })
}

/// The sums of a panel's tiles between segments of K: `NR` for each row and tile, if there are several segments.
struct Kept<'a, K: MicroKernel, const NR: usize>(&'a mut [[Sums<K>; NR]]);

impl<'a, K: MicroKernel, const NR: usize> Kept<'a, K, NR> {
    #[inline(always)]
    fn new(buffer: &'a mut Vec<u8>, num_segments: usize, num_rows: usize) -> Self {
        if num_segments == 1 {
            return Self(&mut []);
        }
        let bytes = aligned(buffer, num_rows * size_of::<[Sums<K>; NR]>());
        Self(bytemuck::cast_slice_mut(bytes))
    }

    /// Those of `len` rows from `first` on.
    #[inline(always)]
    fn of(&mut self, first: usize, len: usize) -> &mut [[Sums<K>; NR]] {
        if self.0.is_empty() { &mut [] } else { &mut self.0[first..first + len] }
    }
}

/// `rows` as a copy that starts with a cache line, of a segment of K alone. Most checkpoints' rows don't, and
/// nearly every load of theirs takes two.
#[inline(always)]
fn copied<'a, K: MicroKernel>(
    tier: K::Tier,
    rows: RowMajor<'_, K::Weight>,
    segment: Range<usize>,
    mut prefetch: Prefetch,
    copy: &'a mut Vec<u8>,
) -> RowMajor<'a, K::Weight> {
    /// Steps between two prefetches.
    const EVERY: usize = 8;
    let (k, at_once) = (rows.k(), EVERY * K::STEP);
    let copy = aligned(copy, rows.num_rows() * k * size_of::<K::Weight>());
    let copy: &mut [K::Weight] = bytemuck::cast_slice_mut(copy);
    let times = rows.num_rows() * segment.len().div_ceil(at_once);
    let lines_at_once = prefetch.num_lines().div_ceil(times);
    for (r, copy) in copy.chunks_exact_mut(k).enumerate() {
        let row = rows.row(r)[segment.clone()].chunks(at_once);
        for (row, copy) in row.zip(copy[segment.clone()].chunks_mut(at_once)) {
            for line in prefetch.split_to(lines_at_once) {
                tier.prefetch(line);
            }
            copy.copy_from_slice(row);
        }
    }
    RowMajor::new(copy, k)
}

/// Some rows by a tile of tokens along a segment of K.
struct Tile<'a, K: MicroKernel> {
    tier: K::Tier,
    rows: RowMajor<'a, K::Weight>,
    segment: Range<usize>,
    is_last: bool,
    /// All steps of the tile.
    x: &'a [K::InputStep],
    prefetch: Prefetch,
    /// The place of the results: a token and a row.
    place: (usize, usize),
}

impl<K: MicroKernel> Tile<'_, K> {
    /// Up to `MR` rows by `num_tokens`, at most `NR`. Their sums go to `kept`, if there are several segments, or in the last one
    /// to their place in `out`.
    #[inline(always)]
    fn multiply<const MR: usize, const NR: usize>(
        self,
        num_tokens: usize,
        kept: &mut [[Sums<K>; NR]],
        out: &mut Outputs<'_>,
    ) {
        match num_tokens {
            1 => self.multiply_by::<MR, NR, 1>(kept, out),
            2 if const { NR >= 2 } => self.multiply_by::<MR, NR, 2>(kept, out),
            3 if const { NR >= 3 } => self.multiply_by::<MR, NR, 3>(kept, out),
            4 if const { NR >= 4 } => self.multiply_by::<MR, NR, 4>(kept, out),
            5 if const { NR >= 5 } => self.multiply_by::<MR, NR, 5>(kept, out),
            6 if const { NR >= 6 } => self.multiply_by::<MR, NR, 6>(kept, out),
            7 if const { NR >= 7 } => self.multiply_by::<MR, NR, 7>(kept, out),
            8 if const { NR >= 8 } => self.multiply_by::<MR, NR, 8>(kept, out),
            _ => unreachable!("a tile has {num_tokens} tokens"),
        }
    }

    /// Up to `MR` rows by `T` tokens.
    #[inline(always)]
    fn multiply_by<const MR: usize, const NR: usize, const T: usize>(
        mut self,
        kept: &mut [[Sums<K>; NR]],
        out: &mut Outputs<'_>,
    ) {
        self.x = &self.x[self.segment.start / K::STEP * T..self.segment.end / K::STEP * T];
        if self.rows.num_rows() == MR {
            return self.multiply_rows::<MR, NR, T>(kept.first_chunk_mut(), out);
        }
        let (token, first) = self.place;
        for r in 0..self.rows.num_rows() {
            let row = Tile {
                rows: self.rows.rows(r..r + 1),
                segment: self.segment.clone(),
                prefetch: Prefetch::of::<u8>(&[]),
                place: (token, first + r),
                ..self
            };
            row.multiply_rows::<1, NR, T>(kept.get_mut(r).map(std::array::from_mut), out);
        }
    }

    /// `R` rows by `T` tokens.
    #[inline(always)]
    fn multiply_rows<const R: usize, const NR: usize, const T: usize>(
        self,
        kept: Option<&mut [[Sums<K>; NR]; R]>,
        out: &mut Outputs<'_>,
    ) {
        let Self { tier, rows, segment, is_last, x, prefetch, place } = self;
        let mut sums = [[tier.zero(); T]; R];
        if let Some(kept) = &kept
            && segment.start > 0
        {
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = kept[r][t];
                }
            }
        }
        let w = &rows.elements()[segment.start..];
        let sums =
            multiply_tile::<K, R, T, PREFETCH_EVERY, true>(tier, w, rows.k(), x, prefetch, sums);
        match kept {
            Some(kept) if !is_last => {
                for r in 0..R {
                    for t in 0..T {
                        kept[r][t] = sums[r][t];
                    }
                }
            }
            _ => write::<K, R, T>(tier, &sums, R, place, out),
        }
    }
}
