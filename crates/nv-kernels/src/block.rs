//! The loops around a tile: all tokens against some weight rows, in whichever form suits their number.
//!
//! Every form computes an output in the same way: one vector accumulator, K in order from 0 in steps of one
//! vector, a zero-padded last step, one fixed tree of additions across the lanes. So an output's bits depend on
//! its weight row and its token alone.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use crate::panel::Panel;

/// Weight rows of a tile that fills the registers.
pub(crate) const ROWS: usize = 4;

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

/// A stored element, with a buffer of its type for each thread.
pub(crate) trait Element: Copy + Default + 'static {
    /// Calls `work` with `len` elements that start on a cache line and hold anything.
    fn with_buffer<R>(len: usize, work: impl FnOnce(&mut [Self]) -> R) -> R;
}

macro_rules! element {
    ($type:ty) => {
        impl Element for $type {
            fn with_buffer<R>(len: usize, work: impl FnOnce(&mut [Self]) -> R) -> R {
                thread_local! {
                    static BUFFER: RefCell<Vec<$type>> = const { RefCell::new(Vec::new()) };
                }
                BUFFER.with_borrow_mut(|buffer| work(aligned(buffer, len)))
            }
        }
    };
}

element!(bf16);
element!(f32);

/// `len` elements of `buffer`, which grows as needed, from the start of a cache line.
pub(crate) fn aligned<E: Copy + Default>(buffer: &mut Vec<E>, len: usize) -> &mut [E] {
    const LINE: usize = 64;
    if buffer.len() < len + LINE / size_of::<E>() {
        buffer.resize(len + LINE / size_of::<E>(), E::default());
    }
    let start = buffer.as_ptr().align_offset(LINE);
    &mut buffer[start..start + len]
}

/// Bytes of tokens that stay in the first-level cache beside the weights that pass by.
pub(crate) const FIRST_LEVEL_BYTES: usize = 24 * 1024;

/// Elements of K that a tile of `tokens` and the weight rows walk at once, so that both stay in the first-level cache.
pub(crate) fn segment<W, X>(tokens: usize, step: usize) -> usize {
    let bytes_a_step = step * (tokens * size_of::<X>() + ROWS * size_of::<W>());
    (FIRST_LEVEL_BYTES / bytes_a_step).max(1) * step
}

/// Bytes that weights are asked for in advance when they are streamed: some pages, so that the wait at the start of a
/// page is over when its weights are needed.
const AHEAD_BYTES: usize = 8 * 1024;

/// The row to ask for while row `r` is multiplied.
pub(crate) fn row_ahead<E: Copy>(w: Panel<'_, E>, r: usize) -> &[E] {
    let rows = (AHEAD_BYTES / (w.k() * size_of::<E>())).max(1);
    w.row((r + rows).min(w.num_rows() - 1))
}

/// Elements of a cache line.
pub(crate) const fn line<E>() -> usize {
    64 / size_of::<E>()
}

/// Defines `$name::<R, T>(w, tail, x, ahead, acc)`: the accumulators of `R` rows by `T` tokens, brought forward.
///
/// `w` and then `tail` are steps of `R` rows side by side, `x` steps of `T` tokens side by side. `$load_w` and
/// `$load_x` make vectors of `$step` elements, `$mul_add(w, x, acc)` returns `acc + w · x`. `ahead` is fetched
/// into the cache meanwhile, a line a step.
macro_rules! tile {
    (
        $name:ident, $features:literal, $weight:ty, $input:ty, $acc:ty, step: $step:literal,
        $load_w:ident, $load_x:ident, $mul_add:ident
    ) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn $name<const R: usize, const T: usize>(
            w: &[$weight],
            tail: &[$weight],
            x: &[$input],
            ahead: &[$weight],
            mut acc: [[$acc; T]; R],
        ) -> [[$acc; T]; R] {
            let mut ahead = ahead.chunks($crate::block::line::<$weight>());
            let (x, x_tail) = x.split_at(w.len() / R * T);
            let parts = [(w, x), (tail, x_tail)];
            for (w, x) in parts {
                for (w, x) in w.chunks_exact(R * $step).zip(x.chunks_exact(T * $step)) {
                    let (w, _) = w.as_chunks::<$step>();
                    let (x, _) = x.as_chunks::<$step>();
                    if let Some(line) = ahead.next() {
                        prefetch(line);
                    }
                    let mut xs = [$load_x(&x[0]); T];
                    for t in 1..T {
                        xs[t] = $load_x(&x[t]);
                    }
                    for r in 0..R {
                        let w_r = $load_w(&w[r]);
                        for t in 0..T {
                            acc[r][t] = $mul_add(w_r, xs[t], acc[r][t]);
                        }
                    }
                }
            }
            acc
        }
    };
}

/// Defines `$name`, a module with the layer `block` over `$tile` and what it wants of its inputs.
///
/// `$reduce` adds the lanes of four accumulators. `$tokens` tokens by four rows is the tile that fills the
/// registers; up to `$few` tokens, weights are streamed one row at a time.
macro_rules! linear_block {
    (
        $name:ident, $features:literal, $weight:ty, $input:ty, $acc:ident, $tile:ident, $reduce:ident, $zero:ident,
        step: $step:literal, tokens: $tokens:literal, few: $few:literal
    ) => {
        pub(crate) mod $name {
            use super::{$acc, $reduce, $tile, $zero};
            use crate::block::{
                Element, FIRST_LEVEL_BYTES, ROWS, Tokens, TokensShape, line, row_ahead, segment,
            };
            use crate::panel::Panel;

            /// Elements of K a step.
            pub(crate) const STEP: usize = $step;

            /// Tokens a tile, of so many with `k` elements each.
            pub(crate) fn tokens_a_tile(num_tokens: usize, k: usize) -> usize {
                let even = |most: usize| num_tokens.div_ceil(num_tokens.div_ceil(most));
                let few = even(8);
                if streams_rows(num_tokens, few, k) { few } else { even($tokens) }
            }

            /// Whether weights are streamed a row at a time: for a few tokens that fit the first-level cache.
            fn streams_rows(num_tokens: usize, tile: usize, k: usize) -> bool {
                num_tokens <= $few && tile * k * size_of::<$input>() <= FIRST_LEVEL_BYTES
            }

            type Inputs<'a> = Tokens<'a, $input>;

            /// `x @ wᵀ`: `out` is `[num_tokens, num_rows]`.
            #[target_feature(enable = $features)]
            pub(crate) fn block(w: Panel<'_, $weight>, x: Inputs<'_>, out: &mut [f32]) {
                let TokensShape { num_tokens, tile, .. } = *x.shape();
                if num_tokens == 1 {
                    vector(w, x, out);
                } else if streams_rows(num_tokens, tile, w.k()) {
                    by_row(w, x, 0, out);
                } else {
                    by_four_rows(w, x, out);
                }
            }

            /// The whole steps of a row, and its last one padded.
            fn split_tail(row: &[$weight], padded: &mut [$weight; STEP]) -> (usize, bool) {
                let whole = row.len() / STEP * STEP;
                padded[..row.len() - whole].copy_from_slice(&row[whole..]);
                (whole, whole < row.len())
            }

            /// One token: a single stream of weights, four rows' sums reduced together.
            #[target_feature(enable = $features)]
            fn vector(w: Panel<'_, $weight>, x: Inputs<'_>, out: &mut [f32]) {
                let num_rows = w.num_rows();
                let x = x.tile(0);
                for r in (0..num_rows).step_by(ROWS) {
                    let mut four = [$zero(); ROWS];
                    let len = num_rows.min(r + ROWS) - r;
                    for i in 0..len {
                        let row = w.row(r + i);
                        let mut padded = [<$weight>::default(); STEP];
                        let (whole, has_tail) = split_tail(row, &mut padded);
                        let tail = if has_tail { &padded[..] } else { &[] };
                        let ahead = row_ahead(w, r + i);
                        let [[acc]] = $tile::<1, 1>(&row[..whole], tail, x, ahead, [[$zero()]]);
                        four[i] = acc;
                    }
                    out[r..r + len].copy_from_slice(&$reduce(four)[..len]);
                }
            }

            /// A few tokens: a single stream of weights, each row against all tokens while it is at hand.
            #[target_feature(enable = $features)]
            fn by_row(w: Panel<'_, $weight>, x: Inputs<'_>, first: usize, out: &mut [f32]) {
                let num_rows = w.num_rows();
                for r in first..num_rows {
                    let row = w.row(r);
                    let mut padded = [<$weight>::default(); STEP];
                    let (whole, has_tail) = split_tail(row, &mut padded);
                    let tail = if has_tail { &padded[..] } else { &[] };
                    let mut ahead = row_ahead(w, r);
                    for tile in 0..x.shape().num_tiles() {
                        let (tokens, x) = (x.shape().tokens(tile), x.tile(tile));
                        let out = &mut out[tokens.start * num_rows + r..];
                        let w = (&row[..whole], tail, ahead);
                        ahead = &[];
                        match tokens.len() {
                            1 => one_row::<1>(w, x, num_rows, out),
                            2 => one_row::<2>(w, x, num_rows, out),
                            3 => one_row::<3>(w, x, num_rows, out),
                            4 => one_row::<4>(w, x, num_rows, out),
                            5 => one_row::<5>(w, x, num_rows, out),
                            6 => one_row::<6>(w, x, num_rows, out),
                            7 => one_row::<7>(w, x, num_rows, out),
                            _ => one_row::<8>(w, x, num_rows, out),
                        }
                    }
                }
            }

            /// Many tokens: four rows at a time, copied side by side to the first-level cache.
            #[target_feature(enable = $features)]
            fn by_four_rows(w: Panel<'_, $weight>, x: Inputs<'_>, out: &mut [f32]) {
                let shape = x.shape();
                let whole_rows = w.num_rows() / ROWS * ROWS;
                let segment = segment::<$weight, $input>(shape.tile, STEP);
                // Each tile's accumulators between segments.
                let mut sums = vec![[[$zero(); 6]; ROWS]; shape.num_tiles()];
                <$weight>::with_buffer(ROWS * shape.padded_k, |packed| {
                    for r in (0..whole_rows).step_by(ROWS) {
                        for i in 0..ROWS {
                            let (steps, rest) = w.row(r + i).as_chunks::<STEP>();
                            let (packed, _) = packed.as_chunks_mut::<STEP>();
                            let mut places = packed[i..].iter_mut().step_by(ROWS);
                            for (step, place) in steps.iter().zip(places.by_ref()) {
                                *place = *step;
                            }
                            if let Some(place) = places.next() {
                                place[..rest.len()].copy_from_slice(rest);
                                place[rest.len()..].fill(<$weight>::default());
                            }
                        }
                        // The next rows, a part with each tile of each segment.
                        let next = r + ROWS..(r + 2 * ROWS).min(w.num_rows());
                        let turns = shape.num_tiles() * shape.padded_k.div_ceil(segment);
                        let part =
                            (ROWS * w.k()).div_ceil(turns).next_multiple_of(line::<$weight>());
                        let mut ahead = w.rows(next).elements().chunks(part);
                        for first in (0..shape.padded_k).step_by(segment) {
                            let end = shape.padded_k.min(first + segment);
                            let ends = (first == 0, end == shape.padded_k);
                            let packed = &packed[first * ROWS..end * ROWS];
                            for (tile, sums) in sums.iter_mut().enumerate() {
                                let (tokens, x) = (shape.tokens(tile), x.tile(tile));
                                let x = &x[first * tokens.len()..end * tokens.len()];
                                let w_ahead = (packed, ahead.next().unwrap_or_default());
                                let out = &mut out[tokens.start * w.num_rows() + r..];
                                let out = (out, w.num_rows());
                                match tokens.len() {
                                    1 => four_rows::<1>(w_ahead, x, sums, ends, out),
                                    2 => four_rows::<2>(w_ahead, x, sums, ends, out),
                                    3 => four_rows::<3>(w_ahead, x, sums, ends, out),
                                    4 => four_rows::<4>(w_ahead, x, sums, ends, out),
                                    5 => four_rows::<5>(w_ahead, x, sums, ends, out),
                                    _ => four_rows::<6>(w_ahead, x, sums, ends, out),
                                }
                            }
                        }
                    }
                });
                by_row(w, x, whole_rows, out);
            }

            /// One row by `T` tokens; tokens are `stride` apart in `out`.
            #[target_feature(enable = $features)]
            #[inline]
            fn one_row<const T: usize>(
                (w, tail, ahead): (&[$weight], &[$weight], &[$weight]),
                x: &[$input],
                stride: usize,
                out: &mut [f32],
            ) {
                let [acc] = $tile::<1, T>(w, tail, x, ahead, [[$zero(); T]]);
                for (i, four) in acc.chunks(4).enumerate() {
                    let mut padded = [$zero(); 4];
                    padded[..four.len()].copy_from_slice(four);
                    for (j, sum) in $reduce(padded).into_iter().take(four.len()).enumerate() {
                        out[(4 * i + j) * stride] = sum;
                    }
                }
            }

            /// Four rows by `T` tokens along a segment of K, whose sums are kept, or reduced at the end. Tokens are
            /// `stride` apart in `out`.
            #[target_feature(enable = $features)]
            #[inline]
            fn four_rows<const T: usize>(
                (w, ahead): (&[$weight], &[$weight]),
                x: &[$input],
                sums: &mut [[$acc; 6]; ROWS],
                (is_first, is_last): (bool, bool),
                (out, stride): (&mut [f32], usize),
            ) {
                let mut acc = [[$zero(); T]; ROWS];
                if !is_first {
                    for (acc, sums) in acc.iter_mut().zip(&*sums) {
                        acc.copy_from_slice(&sums[..T]);
                    }
                }
                let acc = $tile::<ROWS, T>(w, &[], x, ahead, acc);
                if is_last {
                    for i in 0..T {
                        let sums = $reduce([acc[0][i], acc[1][i], acc[2][i], acc[3][i]]);
                        out[i * stride..][..ROWS].copy_from_slice(&sums);
                    }
                } else {
                    for (acc, sums) in acc.iter().zip(sums) {
                        sums[..T].copy_from_slice(acc);
                    }
                }
            }
        }
    };
}

pub(crate) use {linear_block, tile};
