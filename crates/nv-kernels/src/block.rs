//! The loops around a tile: some weight rows against the tokens, in whichever form suits their number.
//!
//! Every form computes an output in the same way: one vector accumulator, K in order from 0 in steps of one
//! vector, a zero-padded last step, one fixed tree of additions across the lanes. So an output's bits depend on
//! its weight row and its token alone.
//!
//! Weights are multiplied where they lie. A tile's tokens stay in the first-level cache while the rows of a piece pass by;
//! the rows stay in the second-level cache while the tiles pass by; what comes next is asked for meanwhile.

use std::ops::Range;

use crate::panel::Panel;

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
    /// Their sizes differ by one at most.
    pub(crate) num_tiles: usize,
    /// Elements of K a step.
    pub(crate) step: usize,
    /// Elements of a token, the last step's padding included.
    pub(crate) padded_k: usize,
}

impl TokensShape {
    pub(crate) fn new(num_tokens: usize, num_tiles: usize, step: usize, k: usize) -> Self {
        Self { num_tokens, num_tiles, step, padded_k: k.next_multiple_of(step) }
    }

    /// The tokens of a tile.
    pub(crate) fn tokens(&self, tile: usize) -> Range<usize> {
        let first = |tile| tile * self.num_tokens / self.num_tiles;
        first(tile)..first(tile + 1)
    }

    /// Where a tile's elements are.
    pub(crate) fn elements(&self, tile: usize) -> Range<usize> {
        let tokens = self.tokens(tile);
        tokens.start * self.padded_k..tokens.end * self.padded_k
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

    /// The tile that is multiplied after `tile`, if the tokens are too many to stay in the second-level cache; the first
    /// comes after the last.
    pub(crate) fn tile_ahead(&self, tile: usize) -> Option<&'a [E]> {
        let is_far = size_of_val(self.data) > NEAR_BYTES;
        is_far.then(|| self.tile((tile + 1) % self.shape.num_tiles))
    }
}

/// The weight rows of a piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a, W> {
    pub(crate) rows: Panel<'a, W>,
    /// Rows that the thread is likely to want next; the kernel asks for them in advance.
    pub(crate) next: Panel<'a, W>,
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

/// Bytes of tokens that stay in the second-level cache beside the weights.
const NEAR_BYTES: usize = 256 * 1024;

/// Elements of K that a tile of `tokens` spans at once, so that they stay in the first-level cache while rows pass by: all,
/// or equal parts of whole steps. Between parts all rows' sums are kept, so few large parts are best.
pub(crate) fn segment<X>(tokens: usize, step: usize, padded_k: usize) -> usize {
    /// What fits into 32 KiB beside the rows.
    const WHOLE_BYTES: usize = 24 * 1024;
    /// The same beside kept sums.
    const PART_BYTES: usize = 16 * 1024;
    let bytes = tokens * padded_k * size_of::<X>();
    let parts = if bytes <= WHOLE_BYTES { 1 } else { bytes.div_ceil(PART_BYTES) };
    padded_k.div_ceil(parts).next_multiple_of(step)
}

/// Bytes that a few tokens' weights are asked for in advance: some pages, so that the wait at the start of a page is over
/// when its weights are needed.
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

/// Defines `$name::<R, T, AT_ONCE>(w, stride, x, ahead, acc)`: the accumulators of `R` rows by `T` tokens, brought forward.
///
/// `w` starts with the first step of the first row; rows are `stride` elements apart. `x` are steps of `T` tokens side by
/// side. A step of `$step` elements has `$parts`, each a vector: `$load_w` and `$load_x` make it of weights and tokens, and
/// `$mul_add(w, x, acc)` returns `acc + w · x`. `ahead` is fetched into the cache meanwhile, a part of it every `AT_ONCE` steps.
///
/// The vectors of the fewer, rows or tokens, are held in registers while those of the others pass by, so that the sums and
/// one vector more are all that the registers need hold.
macro_rules! tile {
    (
        $name:ident, $features:literal, $weight:ty, $input:ty, $acc:ty, step: $step:literal,
        parts: [$($load_w:ident by $load_x:ident),+], $mul_add:ident
    ) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn $name<const R: usize, const T: usize, const AT_ONCE: usize>(
            w: &[$weight],
            stride: usize,
            x: &[$input],
            mut ahead: $crate::ahead::Ahead,
            mut acc: [[$acc; T]; R],
        ) -> [[$acc; T]; R] {
            let (x, _) = x.as_chunks::<$step>();
            let (x, _) = x.as_chunks::<T>();
            assert!(w.len() >= (R - 1) * stride + x.len() * $step);
            let mut w = w.as_ptr();
            let mut step = |x: &[[$input; $step]; T], acc: &mut [[$acc; T]; R]| {
                $(
                    // SAFETY: this runs once for each of `x`, so row `r`'s step ends where the last row's last step does or
                    // before, and that is inside the slice, says the assertion.
                    let load = |r: usize| $load_w(unsafe { &*w.wrapping_add(r * stride).cast() });
                    if R < T {
                        let mut rows = [load(0); R];
                        for r in 1..R {
                            rows[r] = load(r);
                        }
                        for t in 0..T {
                            let x = $load_x(&x[t]);
                            for r in 0..R {
                                acc[r][t] = $mul_add(rows[r], x, acc[r][t]);
                            }
                        }
                    } else {
                        let mut tokens = [$load_x(&x[0]); T];
                        for t in 1..T {
                            tokens[t] = $load_x(&x[t]);
                        }
                        for r in 0..R {
                            let row = load(r);
                            for t in 0..T {
                                acc[r][t] = $mul_add(row, tokens[t], acc[r][t]);
                            }
                        }
                    }
                )+
                w = w.wrapping_add($step);
            };
            let (groups, rest) = x.as_chunks::<AT_ONCE>();
            let lines_at_once = $crate::ahead::share(ahead.num_lines(), groups.len());
            for group in groups {
                for line in ahead.split_to(lines_at_once) {
                    prefetch(line);
                }
                for x in group {
                    step(x, &mut acc);
                }
            }
            for x in rest {
                step(x, &mut acc);
            }
            acc
        }
    };
}

/// Defines `$name`, a module with the layer `block` and what it wants of its inputs.
///
/// As many tokens as `few` says are multiplied by `$streams` rows at a time: as few as keep up with the memory, which likes
/// a single stream best. More come in tiles of up to as many as `many` says, by `$rows` rows, which fills the registers.
/// Each is `of` a [`tile`] that suits it. Few tokens look at what is ahead every `$few_look` steps.
/// `$reduce` adds the lanes of four accumulators.
macro_rules! linear_block {
    (
        $name:ident, $features:literal, $weight:ty, $input:ty, $acc:ident, $reduce:ident, $zero:ident, step: $step:literal,
        few: $streams:literal by [1 $($few:literal)*] of $few_tile:ident looking every $few_look:literal,
        many: $rows:literal by [$($tokens:literal)+] of $tile:ident
    ) => {
        pub(crate) mod $name {
            use super::{$acc, $few_tile as multiply_few, $reduce, $tile as multiply_many, $zero};
            use crate::ahead::Ahead;
            use crate::block::{Tokens, Weights, rows_ahead, segment};
            use crate::panel::{Outputs, Panel};

            /// Elements of K a step.
            pub(crate) const STEP: usize = $step;

            /// The most tokens that are few.
            const FEW: usize = 1 + [$($few),*].len();

            /// The most tokens of a tile.
            const TOKENS: usize = [$($tokens),+].len();

            /// Sums that are reduced at once: of a few tokens, those of so many rows.
            const REDUCED: usize = 4;

            /// Steps between two looks at what is ahead. A single token, which waits for memory alone, looks in every step;
            /// several are spared the instructions.
            const LOOK_EVERY: usize = 4;
            const FEW_LOOK_EVERY: usize = $few_look;

            type Inputs<'a> = Tokens<'a, $input>;
            type Rows<'a> = Weights<'a, $weight>;

            /// Tiles that so many tokens come in.
            pub(crate) fn num_tiles(num_tokens: usize) -> usize {
                num_tokens.div_ceil(if num_tokens <= FEW { FEW } else { TOKENS })
            }

            /// `x @ wᵀ` for a tile of `x`, `[num_tokens, num_rows]`.
            #[target_feature(enable = $features)]
            pub(crate) fn block(w: Rows<'_>, x: Inputs<'_>, tile: usize, out: Outputs<'_>) {
                let num_tokens = x.shape().tokens(tile).len();
                if x.shape().num_tokens <= FEW {
                    return match num_tokens {
                        1 => few::<1, 1>(w, x, out),
                        $($few => few::<$few, FEW_LOOK_EVERY>(w, x, out),)*
                        _ => unreachable!("a tile of few tokens has {num_tokens}"),
                    };
                }
                match num_tokens {
                    $($tokens => many::<$tokens>(w, x, tile, out),)+
                    _ => unreachable!("a tile has {num_tokens} tokens"),
                }
            }

            /// A few tokens: weights pass by once, and what they need is to come from memory in time.
            #[target_feature(enable = $features)]
            fn few<const T: usize, const AT_ONCE: usize>(w: Rows<'_>, x: Inputs<'_>, mut out: Outputs<'_>) {
                let (k, num_rows) = (w.rows.k(), w.rows.num_rows());
                for first in (0..num_rows).step_by(REDUCED) {
                    let mut sums = [[$zero(); T]; REDUCED];
                    let (at_once, _) = sums.as_chunks_mut::<$streams>();
                    for (sums, r) in at_once.iter_mut().zip((first..num_rows).step_by($streams)) {
                        let rows = w.rows.rows(r..num_rows.min(r + $streams));
                        let ahead = Ahead::of(rows_ahead(w.rows, w.next, r, $streams));
                        *sums = add::<$streams, T, AT_ONCE, true>(rows, (0, k), x.tile(0), ahead, *sums);
                    }
                    store(&sums, first, &mut out);
                }
            }

            /// A tile of many tokens, a segment of K after the other.
            #[target_feature(enable = $features)]
            fn many<const T: usize>(w: Rows<'_>, x: Inputs<'_>, tile: usize, mut out: Outputs<'_>) {
                let (k, num_rows) = (w.rows.k(), w.rows.num_rows());
                let (shape, tokens, next_tokens) = (x.shape(), x.tile(tile), x.tile_ahead(tile));
                let segment = segment::<$input>(T, STEP, shape.padded_k);
                let num_segments = k.div_ceil(segment);
                let turns = num_rows.div_ceil($rows);
                // Each tile asks for its share of the next rows, and each segment for the next one's tokens if they are far.
                let next_rows = Ahead::of(w.next.elements()).run(tile, shape.num_tiles);
                // All sums between segments.
                let mut kept = vec![[[$zero(); T]; $rows]; if num_segments > 1 { turns } else { 0 }];
                for (i, start) in (0..k).step_by(segment).enumerate() {
                    let end = k.min(start + segment);
                    let x = &tokens[start * T..shape.padded_k.min(start + segment) * T];
                    let next_x = match next_tokens {
                        Some(_) if end < k => &tokens[end * T..],
                        Some(next_tokens) => next_tokens,
                        None => &[],
                    };
                    let mut next_x = Ahead::of(&next_x[..next_x.len().min(x.len())]);
                    let mut next_rows = next_rows.run(i, num_segments);
                    let lines_a_turn = (next_x.num_lines() + next_rows.num_lines()).div_ceil(turns);
                    for (turn, r) in (0..num_rows).step_by($rows).enumerate() {
                        let ahead = if next_x.num_lines() > 0 { &mut next_x } else { &mut next_rows };
                        let ahead = ahead.split_to(lines_a_turn);
                        let rows = w.rows.rows(r..num_rows.min(r + $rows));
                        let mut sums = [[$zero(); T]; $rows];
                        if start > 0 {
                            sums = kept[turn];
                        }
                        let sums = add::<$rows, T, LOOK_EVERY, false>(rows, (start, end), x, ahead, sums);
                        if end < k {
                            kept[turn] = sums;
                        } else {
                            store(&sums, r, &mut out);
                        }
                    }
                }
            }

            /// The sums of up to `R` rows by `T` tokens, brought forward from `start` to `end` of K.
            #[target_feature(enable = $features)]
            #[inline]
            fn add<const R: usize, const T: usize, const AT_ONCE: usize, const IS_FEW: bool>(
                rows: Panel<'_, $weight>,
                (start, end): (usize, usize),
                x: &[$input],
                ahead: Ahead,
                mut sums: [[$acc; T]; R],
            ) -> [[$acc; T]; R] {
                if rows.num_rows() == R {
                    return rows_by::<R, T, AT_ONCE, IS_FEW>(rows, (start, end), x, ahead, sums);
                }
                let nothing = Ahead::of::<u8>(&[]);
                for (r, sums) in sums.iter_mut().enumerate().take(rows.num_rows()) {
                    let row = rows.rows(r..r + 1);
                    [*sums] = rows_by::<1, T, AT_ONCE, IS_FEW>(row, (start, end), x, nothing, [*sums]);
                }
                sums
            }

            /// The sums of `R` rows by `T` tokens, brought forward from `start` to `end` of K.
            #[target_feature(enable = $features)]
            #[inline]
            fn rows_by<const R: usize, const T: usize, const AT_ONCE: usize, const IS_FEW: bool>(
                rows: Panel<'_, $weight>,
                (start, end): (usize, usize),
                x: &[$input],
                ahead: Ahead,
                sums: [[$acc; T]; R],
            ) -> [[$acc; T]; R] {
                let whole = (end - start) / STEP * STEP;
                let (x, rest) = x.split_at(whole * T);
                let (w, stride) = (&rows.elements()[start..], rows.k());
                let sums = if IS_FEW {
                    multiply_few::<R, T, AT_ONCE>(w, stride, x, ahead, sums)
                } else {
                    multiply_many::<R, T, AT_ONCE>(w, stride, x, ahead, sums)
                };
                if rest.is_empty() {
                    return sums;
                }
                let mut padded = [[<$weight>::default(); STEP]; R];
                for (r, padded) in padded.iter_mut().enumerate() {
                    padded[..end - start - whole].copy_from_slice(&rows.row(r)[start + whole..end]);
                }
                multiply_many::<R, T, 1>(padded.as_flattened(), STEP, rest, Ahead::of::<u8>(&[]), sums)
            }

            /// Reduces the sums of `R` rows from `first` on, or of as many as there are, four sums at a time.
            #[target_feature(enable = $features)]
            #[inline]
            fn store<const R: usize, const T: usize>(
                sums: &[[$acc; T]; R],
                first: usize,
                out: &mut Outputs<'_>,
            ) {
                const { assert!(R <= REDUCED) };
                let len = out.num_columns() - first;
                for t in (0..T).step_by(REDUCED / R) {
                    // As many tokens at once as fit; the last one's stand in for those past it.
                    let four = $reduce(std::array::from_fn(|i| sums[i % R][(t + i / R).min(T - 1)]));
                    for (t, reduced) in (t..T).zip(four.as_chunks::<R>().0) {
                        // Of a length that the compiler knows, if it can be.
                        out.write(t, first, if len >= R { reduced } else { &reduced[..len] });
                    }
                }
            }
        }
    };
}

pub(crate) use {linear_block, tile};
