//! The loops around a tile: all tokens against some weight rows, in whichever form suits their number.
//!
//! Every form computes an output in the same way: one vector accumulator, K in order from 0 in steps of one
//! vector, a zero-padded last step, one fixed tree of additions across the lanes. So an output's bits depend on
//! its weight row and its token alone.

use std::ops::Range;

use crate::panel::Panel;

/// Bytes of tokens that stay in the second-level cache while the rows of a piece pass by.
const TOKEN_BYTES: usize = 256 * 1024;

/// The inputs of a linear layer as tiles read them, in order: tiles of tokens; in a tile, one step of K after
/// another; in a step, the tile's tokens side by side. The last step is padded with zeros.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens<'a, E> {
    data: &'a [E],
    shape: TokensShape,
}

/// How tokens are laid out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokensShape {
    pub(crate) num_tokens: usize,
    /// Tokens a tile; the last tile may have fewer.
    pub(crate) tile: usize,
    /// Elements of K a step.
    pub(crate) step: usize,
    /// Elements of a token, the last step's padding included.
    pub(crate) padded_k: usize,
}

impl TokensShape {
    pub(crate) fn new(num_tokens: usize, tile: usize, step: usize, k: usize) -> Self {
        Self { num_tokens, tile, step, padded_k: k.next_multiple_of(step) }
    }

    pub(crate) fn num_tiles(&self) -> usize {
        self.num_tokens.div_ceil(self.tile)
    }

    /// The tokens of a tile.
    pub(crate) fn tokens(&self, tile: usize) -> Range<usize> {
        tile * self.tile..self.num_tokens.min((tile + 1) * self.tile)
    }

    /// Where a tile's elements are.
    pub(crate) fn elements(&self, tile: usize) -> Range<usize> {
        let tokens = self.tokens(tile);
        tokens.start * self.padded_k..tokens.end * self.padded_k
    }

    /// How many tiles to take at once, their elements being of type `E`.
    fn tiles_at_once<E>(&self) -> usize {
        (TOKEN_BYTES / (self.padded_k * self.tile * size_of::<E>())).max(1)
    }
}

impl<'a, E: Copy> Tokens<'a, E> {
    /// # Panics
    /// If there are not that many elements.
    pub(crate) fn new(data: &'a [E], shape: TokensShape) -> Self {
        assert_eq!(data.len(), shape.num_tokens * shape.padded_k);
        Self { data, shape }
    }

    pub(crate) fn shape(&self) -> &TokensShape {
        &self.shape
    }

    pub(crate) fn tile(&self, tile: usize) -> &'a [E] {
        &self.data[self.shape.elements(tile)]
    }

    /// The tokens in parts that stay in the second-level cache while weights pass by, each with its first token.
    pub(crate) fn parts(self) -> impl Iterator<Item = (usize, Self)> {
        let shape = self.shape;
        let at_once = shape.tiles_at_once::<E>() * shape.tile;
        (0..shape.num_tokens).step_by(at_once).map(move |first| {
            let num_tokens = at_once.min(shape.num_tokens - first);
            let elements = first * shape.padded_k..(first + num_tokens) * shape.padded_k;
            let shape = TokensShape { num_tokens, ..shape };
            (first, Self { data: &self.data[elements], shape })
        })
    }
}

/// The weight rows of a piece.
#[derive(Debug)]
pub(crate) struct Weights<'a, W, X> {
    pub(crate) rows: Panel<'a, W>,
    /// Rows that the thread is likely to want next; the kernel asks for them in advance.
    pub(crate) next: Panel<'a, W>,
    /// Room for as many rows as `packing` wants, side by side.
    pub(crate) packed: &'a mut [X],
    pub(crate) packing: Packing,
}

/// What becomes of rows that are laid side by side for a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// They are needed once: the next ones take their place.
    Once,
    /// They stay for the next part of the tokens.
    First,
    /// They are there from a part before.
    Again,
}

impl Packing {
    /// Elements of room that `num_rows` rows need, `rows` at a time.
    pub(crate) fn room(self, num_rows: usize, rows: usize, padded_k: usize) -> usize {
        match self {
            Self::Once => rows * padded_k,
            Self::First | Self::Again => num_rows.next_multiple_of(rows) * padded_k,
        }
    }
}

impl<'a, W: Copy, X> Weights<'a, W, X> {
    /// The rows to ask for while `len` from `r` on are multiplied.
    pub(crate) fn coming(&self, r: usize, len: usize) -> &'a [W] {
        let (from, first) = match r + len {
            _ if self.packing == Packing::Again => (self.next, r),
            next if next < self.rows.num_rows() => (self.rows, next),
            _ => (self.next, 0),
        };
        let end = from.num_rows().min(first + len);
        from.rows(first.min(end)..end).elements()
    }
}

/// `len` elements of `buffer`, which grows as needed, from the start of a cache line.
pub(crate) fn aligned<E: Copy + Default>(buffer: &mut Vec<E>, len: usize) -> &mut [E] {
    const LINE: usize = 64;
    if buffer.len() < len + LINE / size_of::<E>() {
        buffer.resize(len + LINE / size_of::<E>(), E::default());
    }
    let start = buffer.as_ptr().align_offset(LINE);
    &mut buffer[start..start + len]
}

/// Bytes of a few tokens that stay in the first-level cache while weights pass by.
pub(crate) const FEW_BYTES: usize = 32 * 1024;

/// Elements of K that `rows` packed rows of `k` elements span at once, so that they stay in the first-level cache while
/// tokens pass by: all, or equal parts of whole steps.
pub(crate) fn segment<P>(rows: usize, step: usize, k: usize, packing: Packing) -> usize {
    let bytes = match packing {
        // The rows pass through the cache themselves while they are packed.
        Packing::Once => 16 * 1024,
        // 32 KiB of AVX-512's vectors, whose machines mostly have 48 KiB of that cache, and 16 of AVX2's, with 32.
        Packing::First | Packing::Again => 512 * step * size_of::<P>(),
    };
    let segments = (rows * k * size_of::<P>()).div_ceil(bytes);
    k.div_ceil(segments).next_multiple_of(step)
}

/// Bytes that a single token's weights are asked for in advance: some pages, so that the wait at the start of a page
/// is over when its weights are needed.
const AHEAD_BYTES: usize = 8 * 1024;

/// The rows to ask for while `len` rows from `r` of `w` are multiplied; the rows of `next` come after those of `w`.
pub(crate) fn rows_ahead<'a, E: Copy>(
    w: Panel<'a, E>,
    next: Panel<'a, E>,
    r: usize,
    len: usize,
) -> &'a [E] {
    let first = r + (AHEAD_BYTES / (w.k() * size_of::<E>())).max(len);
    let (from, first) = match first.checked_sub(w.num_rows()) {
        None => (w, first),
        Some(first) => (next, first),
    };
    let end = from.num_rows().min(first + len);
    from.rows(first.min(end)..end).elements()
}

/// Elements of a cache line.
pub(crate) const fn line<E>() -> usize {
    64 / size_of::<E>()
}

/// How many of `items` to take at each of `times`, if there are any times.
#[inline]
pub(crate) fn share(items: usize, times: usize) -> usize {
    if items <= times { 1 } else { items.div_ceil(times.max(1)) }
}

/// Where the steps of some rows are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strides {
    /// Elements from a row to the next.
    pub(crate) row: usize,
    /// Elements from a step of K to the next.
    pub(crate) step: usize,
}

/// Adds a step of `R` rows by `T` tokens to `acc`: `x` are the tokens' vectors, `w` is where the first row's is.
macro_rules! step {
    ($w:ident, $strides:ident, $x:ident, $acc:ident, $load_w:ident, $load_x:ident, $mul_add:ident) => {
        let mut xs = [$load_x(&$x[0]); T];
        for t in 1..T {
            xs[t] = $load_x(&$x[t]);
        }
        for r in 0..R {
            // SAFETY: `w` is at one of the tile's steps, so this step of row `r` ends where the last step of the last row
            // does or before, and that is inside the slice, says the tile's assertion.
            let step = unsafe { &*$w.wrapping_add(r * $strides.row).cast() };
            let w_r = $load_w(step);
            for t in 0..T {
                $acc[r][t] = $mul_add(w_r, xs[t], $acc[r][t]);
            }
        }
        $w = $w.wrapping_add($strides.step);
    };
}

/// Defines `$name::<L, R, T, AT_ONCE>(w, strides, x, ahead, acc)`: the accumulators of `R` rows by `T` tokens, brought forward.
///
/// `w` starts with the first step of the first row. `x` are steps of `T` tokens side by side. `$load_w` and `$load_x` make
/// vectors of `$step` elements, `$mul_add(w, x, acc)` returns `acc + w · x`. `ahead` is fetched into the cache meanwhile, a
/// part of it every `AT_ONCE` steps.
macro_rules! tile {
    (
        $name:ident, $features:literal, $weight:ty, $input:ty, $acc:ty, step: $step:literal,
        $load_w:ident, $load_x:ident, $mul_add:ident
    ) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn $name<L, const R: usize, const T: usize, const AT_ONCE: usize>(
            w: &[$weight],
            strides: $crate::block::Strides,
            x: &[$input],
            ahead: &[L],
            mut acc: [[$acc; T]; R],
        ) -> [[$acc; T]; R] {
            let (x, _) = x.as_chunks::<$step>();
            let (x, _) = x.as_chunks::<T>();
            if x.is_empty() {
                return acc;
            }
            assert!(w.len() >= (R - 1) * strides.row + (x.len() - 1) * strides.step + $step);
            let mut w = w.as_ptr();
            let (groups, rest) = x.as_chunks::<AT_ONCE>();
            let lines_at_once = $crate::block::share(ahead.len(), groups.len());
            let mut ahead = ahead.iter();
            for group in groups {
                for line in ahead.by_ref().take(lines_at_once) {
                    prefetch(line);
                }
                for x in group {
                    $crate::block::step!(w, strides, x, acc, $load_w, $load_x, $mul_add);
                }
            }
            for x in rest {
                $crate::block::step!(w, strides, x, acc, $load_w, $load_x, $mul_add);
            }
            acc
        }
    };
}

/// Defines `$name`, a module with the layer `block` and what it wants of its inputs.
///
/// A few tokens are multiplied by `$direct`, straight on `$streams` rows at a time: as few as keep up with the memory,
/// which likes a single stream best. More are multiplied by `$tile` of `$rows` rows by up to `$tokens` tokens, which fills
/// the registers; the rows are packed for that, each step through `$pack`. `$reduce` adds the lanes of four accumulators.
macro_rules! linear_block {
    (
        $name:ident, $features:literal, $weight:ty, $input:ty, $acc:ident, $direct:ident, $tile:ident, $pack:ident,
        $reduce:ident, $zero:ident, step: $step:literal, rows: $rows:literal, tokens: $tokens:literal, streams: $streams:literal
    ) => {
        pub(crate) mod $name {
            use super::{
                prefetch, $acc, $direct as direct_tile, $pack as packed_step, $reduce,
                $tile as matrix_tile, $zero,
            };
            use crate::block::{
                FEW_BYTES, Packing, Strides, Tokens, Weights, line, rows_ahead, segment, share,
            };
            use crate::panel::Panel;

            /// Elements of K a step.
            pub(crate) const STEP: usize = $step;

            /// Weight rows that are multiplied together.
            pub(crate) const ROWS: usize = $rows;

            /// Tokens a tile, of so many.
            pub(crate) fn tokens_a_tile(num_tokens: usize, k: usize) -> usize {
                let fit = num_tokens * k * size_of::<$input>() <= FEW_BYTES;
                let most = if fit && num_tokens <= FEW { FEW } else { $tokens };
                num_tokens.div_ceil(num_tokens.div_ceil(most))
            }

            /// The most tokens that are multiplied by the weights as they come.
            const FEW: usize = 5;

            /// Steps between two looks at what is ahead. A single token, which waits for memory alone, looks in every step;
            /// several are spared the instructions.
            const LOOK_EVERY: usize = 4;

            /// Rows that are read where they lie at the same time.
            const STREAMS: usize = $streams;

            /// Rows that were packed.
            const SIDE_BY_SIDE: Strides = Strides { row: STEP, step: ROWS * STEP };

            /// One step of each row, side by side.
            const ALONE: Strides = Strides { row: STEP, step: 0 };

            type Inputs<'a> = Tokens<'a, $input>;

            const LINE: usize = line::<$weight>();
            type Line = [$weight; LINE];
            type Rows<'a> = Weights<'a, $weight, $input>;

            /// `x @ wᵀ`: `out` is `[num_tokens, num_rows]`.
            #[target_feature(enable = $features)]
            pub(crate) fn block(w: Rows<'_>, x: Inputs<'_>, out: &mut [f32]) {
                if x.shape().num_tiles() > 1 {
                    return matrix(w, x, out);
                }
                match x.shape().num_tokens {
                    1 => by_row::<1, 1>(w.rows, w.next, x.tile(0), out),
                    2 => by_row::<2, LOOK_EVERY>(w.rows, w.next, x.tile(0), out),
                    3 => by_row::<3, LOOK_EVERY>(w.rows, w.next, x.tile(0), out),
                    4 => by_row::<4, LOOK_EVERY>(w.rows, w.next, x.tile(0), out),
                    _ => by_row::<FEW, LOOK_EVERY>(w.rows, w.next, x.tile(0), out),
                }
            }

            /// A few tokens: weights as they come, four rows' sums reduced together.
            #[target_feature(enable = $features)]
            fn by_row<const T: usize, const AT_ONCE: usize>(
                w: Panel<'_, $weight>,
                next: Panel<'_, $weight>,
                x: &[$input],
                out: &mut [f32],
            ) {
                let num_rows = w.num_rows();
                for first in (0..num_rows).step_by(4) {
                    let len = 4.min(num_rows - first);
                    let mut sums = [[$zero(); T]; 4];
                    let (at_once, _) = sums.as_chunks_mut::<STREAMS>();
                    for (sums, r) in at_once.iter_mut().zip((first..first + len).step_by(STREAMS)) {
                        let rows = w.rows(r..num_rows.min(r + STREAMS));
                        let (ahead, _) = rows_ahead(w, next, r, STREAMS).as_chunks();
                        *sums = if rows.num_rows() == STREAMS {
                            rows_as_they_lie::<STREAMS, T, AT_ONCE>(rows, x, ahead)
                        } else {
                            let mut sums = [[$zero(); T]; STREAMS];
                            for r in 0..rows.num_rows() {
                                let row = rows.rows(r..r + 1);
                                [sums[r]] = rows_as_they_lie::<1, T, AT_ONCE>(row, x, &[]);
                            }
                            sums
                        };
                    }
                    for t in 0..T {
                        let four = $reduce(sums.each_ref().map(|sums| sums[t]));
                        out[t * num_rows + first..][..len].copy_from_slice(&four[..len]);
                    }
                }
            }

            /// The accumulators of `R` rows and `T` tokens.
            #[target_feature(enable = $features)]
            #[inline]
            fn rows_as_they_lie<const R: usize, const T: usize, const AT_ONCE: usize>(
                rows: Panel<'_, $weight>,
                x: &[$input],
                ahead: &[Line],
            ) -> [[$acc; T]; R] {
                let k = rows.k();
                let whole = k / STEP * STEP;
                let (x, rest) = x.split_at(whole * T);
                let strides = Strides { row: k, step: STEP };
                let acc = [[$zero(); T]; R];
                let acc = direct_tile::<_, R, T, AT_ONCE>(rows.elements(), strides, x, ahead, acc);
                if rest.is_empty() {
                    return acc;
                }
                let mut padded = [[<$weight>::default(); STEP]; R];
                for (r, padded) in padded.iter_mut().enumerate() {
                    padded[..k - whole].copy_from_slice(&rows.row(r)[whole..]);
                }
                direct_tile::<Line, R, T, 1>(padded.as_flattened(), ALONE, rest, &[], acc)
            }

            /// Several tokens: some rows at a time, packed side by side in the first-level cache, against all tokens.
            #[target_feature(enable = $features)]
            fn matrix(w: Rows<'_>, x: Inputs<'_>, out: &mut [f32]) {
                let (num_rows, padded_k) = (w.rows.num_rows(), x.shape().padded_k);
                let segment = segment::<$input>(ROWS, STEP, padded_k, w.packing);
                let num_segments = padded_k.div_ceil(segment);
                let num_tiles = x.shape().num_tiles();
                // Each tile's accumulators between segments.
                let kept = if num_segments > 1 { num_tiles } else { 1 };
                let mut sums = vec![[[$zero(); $tokens]; ROWS]; kept];
                for r in (0..num_rows).step_by(ROWS) {
                    let rows = w.rows.rows(r..num_rows.min(r + ROWS));
                    // A part is asked for with each segment's packing and with each of its tiles.
                    let (coming, _) = w.coming(r, ROWS).as_chunks::<LINE>();
                    let turns = (num_tiles + 1) * num_segments;
                    let mut ahead = coming.chunks(coming.len().div_ceil(turns).max(1));
                    for start in (0..padded_k).step_by(segment) {
                        let end = padded_k.min(start + segment);
                        let place = if w.packing == Packing::Once {
                            0
                        } else {
                            r * padded_k + start * ROWS
                        };
                        let packed = &mut w.packed[place..][..(end - start) * ROWS];
                        if w.packing != Packing::Again {
                            pack_rows(rows, start, packed, ahead.next().unwrap_or_default());
                        }
                        for tile in 0..num_tiles {
                            let tokens = x.shape().tokens(tile);
                            let x = &x.tile(tile)[start * tokens.len()..end * tokens.len()];
                            let ahead = ahead.next().unwrap_or_default();
                            let sums = &mut sums[tile.min(kept - 1)];
                            let ends = (start == 0, end == padded_k);
                            let out = &mut out[tokens.start * num_rows + r..];
                            let out = (out, num_rows, rows.num_rows());
                            match tokens.len() {
                                $tokens => rows_by::<$tokens>(packed, x, ahead, sums, ends, out),
                                2 => rows_by::<2>(packed, x, ahead, sums, ends, out),
                                _ => rows_by::<1>(packed, x, ahead, sums, ends, out),
                            }
                        }
                    }
                }
            }

            /// Lays steps of up to [`ROWS`] rows side by side, from element `start` on, and asks for `ahead` meanwhile.
            #[target_feature(enable = $features)]
            #[inline]
            fn pack_rows(
                rows: Panel<'_, $weight>,
                start: usize,
                packed: &mut [$input],
                ahead: &[Line],
            ) {
                /// Steps between two looks at what is to be asked for.
                const AT_ONCE: usize = 8;
                let (packed, _) = packed.as_chunks_mut::<STEP>();
                let lines_at_once = share(ahead.len(), packed.len().div_ceil(AT_ONCE));
                let mut ahead = ahead.iter();
                let (packed, _) = packed.as_chunks_mut::<ROWS>();
                for r in 0..ROWS {
                    let row = if r < rows.num_rows() { rows.row(r) } else { &[] };
                    let (steps, rest) = row[start.min(row.len())..].as_chunks::<STEP>();
                    let steps = &steps[..steps.len().min(packed.len())];
                    let (whole, padded) = packed.split_at_mut(steps.len());
                    let (places, last_places) = whole.as_chunks_mut::<AT_ONCE>();
                    let (steps, last_steps) = steps.as_chunks::<AT_ONCE>();
                    for (places, steps) in places.iter_mut().zip(steps) {
                        for line in ahead.by_ref().take(lines_at_once) {
                            prefetch(line);
                        }
                        for (place, step) in places.iter_mut().zip(steps) {
                            place[r] = packed_step(step);
                        }
                    }
                    for (place, step) in last_places.iter_mut().zip(last_steps) {
                        place[r] = packed_step(step);
                    }
                    for (i, place) in padded.iter_mut().enumerate() {
                        let mut step = [<$weight>::default(); STEP];
                        if i == 0 {
                            step[..rest.len()].copy_from_slice(rest);
                        }
                        place[r] = packed_step(&step);
                    }
                }
            }

            /// `ROWS` packed rows by `T` tokens along a segment of K, whose sums are kept, or reduced at the end. Tokens
            /// are `stride` apart in `out`, which has room for `num_rows` of the rows.
            #[target_feature(enable = $features)]
            #[inline]
            fn rows_by<const T: usize>(
                packed: &[$input],
                x: &[$input],
                ahead: &[Line],
                sums: &mut [[$acc; $tokens]; ROWS],
                (is_first, is_last): (bool, bool),
                (out, stride, num_rows): (&mut [f32], usize, usize),
            ) {
                let mut acc = [[$zero(); T]; ROWS];
                if !is_first {
                    for (acc, sums) in acc.iter_mut().zip(&*sums) {
                        acc.copy_from_slice(&sums[..T]);
                    }
                }
                let acc =
                    matrix_tile::<_, ROWS, T, LOOK_EVERY>(packed, SIDE_BY_SIDE, x, ahead, acc);
                if !is_last {
                    for (acc, sums) in acc.iter().zip(sums) {
                        sums[..T].copy_from_slice(acc);
                    }
                    return;
                }
                for t in 0..T {
                    let out = &mut out[t * stride..][..num_rows];
                    let four = |i: usize| $reduce(std::array::from_fn(|j| acc[4 * i + j][t]));
                    if let Some(out) = out.first_chunk_mut::<ROWS>() {
                        for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                            *out = four(i);
                        }
                        continue;
                    }
                    for (i, out) in out.chunks_mut(4).enumerate() {
                        out.copy_from_slice(&four(i)[..out.len()]);
                    }
                }
            }
        }
    };
}

pub(crate) use {linear_block, step, tile};
