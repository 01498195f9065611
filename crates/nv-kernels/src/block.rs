//! The loops around a tile: some weight rows against the tokens, in whichever form suits their number.
//!
//! Every form computes an output in the same way: one vector accumulator, K in order from 0 in steps of one
//! vector, a zero-padded last step, one fixed tree of additions across the lanes. So an output's bits depend on
//! its weight row and its token alone.
//!
//! Tokens come in tiles, tiles in parts. A part is a single tile, which stays in the first-level cache while all rows of a
//! piece pass by from the second-level cache; or it is as many tiles as stay in the second-level cache, and pass by some rows
//! that stay in the first-level cache. Which is faster is measured, by tier and number of tokens. What comes
//! next is asked for meanwhile.

use std::ops::Range;

use crate::ahead::LINE_BYTES;
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
    pub(crate) num_tiles: usize,
    tokens_a_tile: usize,
    /// Tiles that have one token more; they are the first.
    num_longer: usize,
    /// Tiles of a part; the last part may have fewer.
    pub(crate) tiles_a_part: usize,
    /// Elements of K a step.
    pub(crate) step: usize,
    /// Elements of a token, the last step's padding included.
    pub(crate) padded_k: usize,
}

impl TokensShape {
    /// Tiles whose sizes differ by one at most, in parts of about `part_bytes`.
    pub(crate) fn new<E>(
        (num_tokens, k): (usize, usize),
        num_tiles: usize,
        step: usize,
        part_bytes: usize,
    ) -> Self {
        let padded_k = k.next_multiple_of(step);
        let bytes = num_tokens * padded_k * size_of::<E>();
        let num_parts = bytes.div_ceil(part_bytes.max(1)).min(num_tiles);
        let tiles_a_part = num_tiles.div_ceil(num_parts);
        let (tokens_a_tile, num_longer) = (num_tokens / num_tiles, num_tokens % num_tiles);
        Self { num_tokens, num_tiles, tokens_a_tile, num_longer, tiles_a_part, step, padded_k }
    }

    /// The parts, each a range of tiles.
    pub(crate) fn parts(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        let (num_tiles, len) = (self.num_tiles, self.tiles_a_part);
        (0..num_tiles).step_by(len).map(move |first| first..num_tiles.min(first + len))
    }

    /// The tokens of some tiles.
    pub(crate) fn tokens(&self, tiles: Range<usize>) -> Range<usize> {
        let first = |tile: usize| tile * self.tokens_a_tile + tile.min(self.num_longer);
        first(tiles.start)..first(tiles.end)
    }

    /// Where the elements of some tiles are.
    pub(crate) fn elements(&self, tiles: Range<usize>) -> Range<usize> {
        let tokens = self.tokens(tiles);
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

    pub(crate) fn tiles(&self, tiles: Range<usize>) -> &'a [E] {
        &self.data[self.shape.elements(tiles)]
    }

    /// The tile that is multiplied after `tile`, if the tokens are too many to stay in the second-level cache; the first
    /// comes after the last.
    pub(crate) fn tile_ahead(&self, tile: usize) -> &'a [E] {
        if size_of_val(self.data) <= NEAR_BYTES {
            return &[];
        }
        let next = (tile + 1) % self.shape.num_tiles;
        self.tiles(next..next + 1)
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
    if buffer.len() < len + LINE_BYTES / size_of::<E>() {
        buffer.resize(len + LINE_BYTES / size_of::<E>(), E::default());
    }
    let start = buffer.as_ptr().align_offset(LINE_BYTES);
    &mut buffer[start..start + len]
}

/// Whether `elements` start with a cache line.
pub(crate) fn starts_line<E>(elements: &[E]) -> bool {
    elements.as_ptr().addr().is_multiple_of(LINE_BYTES)
}

/// Bytes of tokens that stay in the second-level cache beside the weights.
const NEAR_BYTES: usize = 256 * 1024;

/// What stays in the first-level cache while something else passes by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Held {
    /// A tile of so many bytes a step of K, while rows pass by.
    Tile(usize),
    /// Rows of so many bytes a step of K, while tiles pass by, which come in order.
    Rows(usize),
}

/// Steps of K that are multiplied at once, so that what is held fits: all, or equal segments. Between segments all sums are
/// kept, so few large ones are best.
pub(crate) fn steps_at_once(held: Held, num_steps: usize) -> usize {
    // Bytes of all steps if they fit, else of a segment beside kept sums.
    let (step, whole, segment) = match held {
        Held::Tile(step) => (step, 24 * 1024, 16 * 1024),
        Held::Rows(step) => (step, 32 * 1024, 24 * 1024),
    };
    let bytes = num_steps * step;
    num_steps.div_ceil(if bytes <= whole { 1 } else { bytes.div_ceil(segment) })
}

/// Bytes that a few tokens' weights are asked for in advance: some pages, so that the wait at the start of a page is over
/// when its weights are needed.
const AHEAD_BYTES: usize = 8 * 1024;

/// The rows to ask for while `len` rows from `r` of `w` are multiplied; the rows of `next` come after those of `w`. Where `len`
/// divides the rows of `w`, none is left out.
pub(crate) fn rows_ahead<'a, E: Copy>(
    w: Panel<'a, E>,
    next: Panel<'a, E>,
    r: usize,
    len: usize,
) -> &'a [E] {
    let first = r + (AHEAD_BYTES / (w.k() * size_of::<E>())).max(1).next_multiple_of(len);
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
/// a single stream best. More come in tiles of up to as many as `many` says, by `$rows` rows, which fills the registers; a
/// part is of `$part` KiB, a tile at least. Each is `of` a [`tile`] that suits it. Few tokens look at what is ahead every
/// `$few_look` steps, but for a single one, which waits for memory alone and looks in every step. `$reduce` adds the lanes of
/// four accumulators.
macro_rules! linear_block {
    (
        $name:ident, $features:literal, $weight:ty, $input:ty, $acc:ident, $reduce:ident, $zero:ident, step: $step:literal,
        few: $streams:literal by [1 $($few:literal)*] of $few_tile:ident looking every $few_look:literal,
        many: $rows:literal by [$($tokens:literal)+] of $tile:ident in parts of $part:literal KiB
    ) => {
        pub(crate) mod $name {
            use std::cell::RefCell;
            use std::ops::Range;

            use super::{$acc, $few_tile as multiply_few, $reduce, $tile as multiply_many, $zero};
            use crate::ahead::Ahead;
            use crate::block::{Held, Tokens, TokensShape, Weights, aligned, rows_ahead, steps_at_once};
            use crate::panel::{Outputs, Panel};

            /// Elements of K a step.
            const STEP: usize = $step;

            /// The most tokens that are few.
            const FEW: usize = [1 $(, $few)*].len();

            /// The most tokens of a tile.
            const TOKENS: usize = [$($tokens),+].len();

            /// Sums that are reduced at once. A few tokens are multiplied by so many rows before.
            const REDUCED: usize = 4;

            /// Steps between two looks at what is ahead: many tokens are spared the instructions.
            const LOOK_EVERY: usize = 4;

            type Inputs<'a> = Tokens<'a, $input>;
            type Rows<'a> = Weights<'a, $weight>;
            type Kept = [$acc; TOKENS];

            /// What a thread keeps from part to part.
            struct Room {
                /// The sums of a part's tiles between segments.
                kept: Vec<Kept>,
                /// A copy of the rows that tiles pass by.
                copy: Vec<$weight>,
            }

            thread_local! {
                static ROOM: RefCell<Room> = const { RefCell::new(Room { kept: Vec::new(), copy: Vec::new() }) };
            }

            /// How so many tokens of `k` elements are laid out. A few are one part.
            pub(crate) fn shape(num_tokens: usize, k: usize) -> TokensShape {
                let num_tiles = num_tokens.div_ceil(if num_tokens <= FEW { FEW } else { TOKENS });
                TokensShape::new::<$input>((num_tokens, k), num_tiles, STEP, $part * 1024)
            }

            /// `x @ wᵀ` for a part of `x`, `[num_tokens, num_rows]`. Rows are whole steps.
            #[target_feature(enable = $features)]
            pub(crate) fn block(w: Rows<'_>, x: Inputs<'_>, part: Range<usize>, out: Outputs<'_>) {
                match x.shape().num_tokens {
                    1 => few::<1, 1>(w, x, out),
                    $($few => few::<$few, $few_look>(w, x, out),)*
                    _ => ROOM.with_borrow_mut(|room| many(w, x, part, room, out)),
                }
            }

            /// A few tokens: weights pass by once, and what they need is to come from memory in time.
            #[target_feature(enable = $features)]
            fn few<const T: usize, const AT_ONCE: usize>(w: Rows<'_>, x: Inputs<'_>, mut out: Outputs<'_>) {
                let num_rows = w.rows.num_rows();
                for first in (0..num_rows).step_by(REDUCED) {
                    let mut sums = [[$zero(); T]; REDUCED];
                    let (at_once, _) = sums.as_chunks_mut::<$streams>();
                    for (sums, r) in at_once.iter_mut().zip((first..num_rows).step_by($streams)) {
                        let rows = w.rows.rows(r..num_rows.min(r + $streams));
                        let ahead = Ahead::of(rows_ahead(w.rows, w.next, r, $streams));
                        *sums = few_by::<$streams, T, AT_ONCE>(rows, x.tiles(0..1), ahead, *sums);
                    }
                    store(&sums, REDUCED.min(num_rows - first), (0, first), &mut out);
                }
            }

            /// The sums of up to `R` rows by `T` tokens.
            #[target_feature(enable = $features)]
            #[inline]
            fn few_by<const R: usize, const T: usize, const AT_ONCE: usize>(
                rows: Panel<'_, $weight>,
                x: &[$input],
                ahead: Ahead,
                mut sums: [[$acc; T]; R],
            ) -> [[$acc; T]; R] {
                if rows.num_rows() == R {
                    return multiply_few::<R, T, AT_ONCE>(rows.elements(), rows.k(), x, ahead, sums);
                }
                let nothing = Ahead::of::<u8>(&[]);
                for (r, sums) in sums.iter_mut().enumerate().take(rows.num_rows()) {
                    [*sums] = multiply_few::<1, T, AT_ONCE>(rows.row(r), rows.k(), x, nothing, [*sums]);
                }
                sums
            }

            /// A part of many tokens: a segment of K after the other, in each of them some rows after the others, and for
            /// these rows a tile after the other.
            #[target_feature(enable = $features)]
            fn many(w: Rows<'_>, x: Inputs<'_>, part: Range<usize>, room: &mut Room, mut out: Outputs<'_>) {
                let (k, num_rows, num_tiles) = (w.rows.k(), w.rows.num_rows(), part.len());
                let (shape, Room { kept, copy }) = (x.shape(), room);
                let num_parts = shape.parts().len();
                let held = if shape.tiles_a_part == 1 {
                    Held::Tile(TOKENS * STEP * size_of::<$input>())
                } else {
                    Held::Rows($rows * STEP * size_of::<$weight>())
                };
                let segment = STEP * steps_at_once(held, k / STEP);
                let num_segments = k.div_ceil(segment);
                if num_segments > 1 && kept.len() < num_tiles * num_rows {
                    kept.resize(num_tiles * num_rows, [$zero(); TOKENS]);
                }
                // Weights pass by once if there is a single part: several tiles read a copy, and all the while the rows after
                // it are asked for.
                let copies = num_parts == 1 && num_tiles > 1;
                // Else each part asks for its share of the next piece, and a single tile for the next one if that is far:
                // several are in order, which the machine foresees.
                let mut next_tile = Ahead::of(if num_tiles == 1 { x.tile_ahead(part.start) } else { &[] });
                let mut next_piece = Ahead::of(w.next.elements()).run(part.start / shape.tiles_a_part, num_parts);
                let lines_at_once = if copies {
                    Ahead::num_lines_of::<$weight>($rows * segment).div_ceil(num_tiles + 1)
                } else {
                    let times = num_segments * num_rows.div_ceil($rows) * num_tiles;
                    (next_tile.num_lines() + next_piece.num_lines()).div_ceil(times)
                };
                let first_token = shape.tokens(part.clone()).start;
                for (i, start) in (0..k).step_by(segment).enumerate() {
                    let segment = start..k.min(start + segment);
                    for r in (0..num_rows).step_by($rows) {
                        let mut rows = w.rows.rows(r..num_rows.min(r + $rows));
                        let mut next_rows = Ahead::of::<$weight>(&[]);
                        if copies {
                            next_rows = Ahead::of(rows_ahead(w.rows, w.next, r, $rows)).run(i, num_segments);
                            rows = copied(rows, segment.clone(), next_rows.split_to(lines_at_once), copy);
                        }
                        for tile in part.clone() {
                            let ahead = if copies {
                                &mut next_rows
                            } else if next_tile.num_lines() > 0 {
                                &mut next_tile
                            } else {
                                &mut next_piece
                            };
                            let ahead = ahead.split_to(lines_at_once);
                            let (x, tokens) = (x.tiles(tile..tile + 1), shape.tokens(tile..tile + 1));
                            let place = (tokens.start - first_token, r);
                            let at = (tile - part.start) * num_rows + r;
                            let kept = if num_segments > 1 { &mut kept[at..at + rows.num_rows()] } else { &mut [] };
                            match tokens.len() {
                                $($tokens => many_by::<$tokens>(rows, segment.clone(), x, ahead, kept, place, &mut out),)+
                                num_tokens => unreachable!("a tile has {num_tokens} tokens"),
                            }
                        }
                    }
                }
            }

            /// `rows` as a copy that starts with a cache line, of a segment of K alone. Most checkpoints' rows don't, and
            /// nearly every load of theirs takes two.
            #[target_feature(enable = $features)]
            fn copied<'a>(
                rows: Panel<'_, $weight>,
                segment: Range<usize>,
                mut ahead: Ahead,
                copy: &'a mut Vec<$weight>,
            ) -> Panel<'a, $weight> {
                /// Elements between two looks at what is ahead.
                const AT_ONCE: usize = 8 * STEP;
                let k = rows.k();
                let copy = aligned(copy, rows.num_rows() * k);
                let times = rows.num_rows() * segment.len().div_ceil(AT_ONCE);
                let lines_at_once = ahead.num_lines().div_ceil(times);
                for (r, copy) in copy.chunks_exact_mut(k).enumerate() {
                    let row = rows.row(r)[segment.clone()].chunks(AT_ONCE);
                    for (row, copy) in row.zip(copy[segment.clone()].chunks_mut(AT_ONCE)) {
                        for line in ahead.split_to(lines_at_once) {
                            super::prefetch(line);
                        }
                        copy.copy_from_slice(row);
                    }
                }
                Panel::new(copy, k)
            }

            /// Up to `$rows` rows by a tile of `T` tokens along a segment of K. Their sums go to `kept`, if there are several
            /// segments, or in the last one to their place in `out`: a token and a row.
            #[target_feature(enable = $features)]
            #[inline]
            fn many_by<const T: usize>(
                rows: Panel<'_, $weight>,
                segment: Range<usize>,
                x: &[$input],
                ahead: Ahead,
                kept: &mut [Kept],
                (token, first): (usize, usize),
                out: &mut Outputs<'_>,
            ) {
                let x = &x[segment.start * T..segment.end * T];
                if rows.num_rows() == $rows {
                    return rows_by::<$rows, T>(rows, segment, x, ahead, kept.first_chunk_mut(), (token, first), out);
                }
                let nothing = Ahead::of::<u8>(&[]);
                for r in 0..rows.num_rows() {
                    let kept = kept.get_mut(r).map(std::array::from_mut);
                    rows_by::<1, T>(rows.rows(r..r + 1), segment.clone(), x, nothing, kept, (token, first + r), out);
                }
            }

            /// [`many_by`] of `R` rows.
            #[target_feature(enable = $features)]
            #[inline]
            fn rows_by<const R: usize, const T: usize>(
                rows: Panel<'_, $weight>,
                segment: Range<usize>,
                x: &[$input],
                ahead: Ahead,
                kept: Option<&mut [Kept; R]>,
                place: (usize, usize),
                out: &mut Outputs<'_>,
            ) {
                let sums = match &kept {
                    Some(kept) if segment.start > 0 => std::array::from_fn(|r| std::array::from_fn(|t| kept[r][t])),
                    _ => [[$zero(); T]; R],
                };
                let sums = multiply_many::<R, T, LOOK_EVERY>(&rows.elements()[segment.start..], rows.k(), x, ahead, sums);
                match kept {
                    Some(kept) if segment.end < rows.k() => {
                        for r in 0..R {
                            for t in 0..T {
                                kept[r][t] = sums[r][t];
                            }
                        }
                    }
                    _ => store(&sums, R, place, out),
                }
            }

            /// Reduces the sums of `R` rows, and writes those of the first `num_rows` to their place.
            #[target_feature(enable = $features)]
            #[inline]
            fn store<const R: usize, const T: usize>(
                sums: &[[$acc; T]; R],
                num_rows: usize,
                (token, first): (usize, usize),
                out: &mut Outputs<'_>,
            ) {
                // By tokens, then rows.
                let place = |sum: usize| (sum % R, sum / R);
                let mut reduced = [[0.0; R]; T];
                for first in (0..R * T).step_by(REDUCED) {
                    // The last sum stands in for those past it.
                    let four = $reduce(std::array::from_fn(|i| {
                        let (r, t) = place((first + i).min(R * T - 1));
                        sums[r][t]
                    }));
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
        }
    };
}

pub(crate) use {linear_block, tile};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_are_asked_for_once() {
        let (k, num_rows) = (700, 24);
        let elements: Vec<u16> = vec![0; 3 * num_rows * k];
        let all = Panel::new(&elements, k);
        for len in [1, 2, 3, 4, 8] {
            let pieces: Vec<_> =
                (0..3).map(|piece| all.rows(piece * num_rows..(piece + 1) * num_rows)).collect();
            let mut asked: Vec<_> = pieces
                .windows(2)
                .flat_map(|pair| {
                    (0..num_rows).step_by(len).map(|r| rows_ahead(pair[0], pair[1], r, len))
                })
                .map(<[u16]>::as_ptr_range)
                .collect();
            asked.sort_by_key(|range| range.start);
            let first = asked[0].start.addr() - elements.as_ptr().addr();
            assert!(first <= 16 * 1024, "{first} bytes of the first piece are not asked for");
            assert!(
                asked.windows(2).all(|pair| pair[0].end == pair[1].start),
                "{len} rows at once"
            );
        }
    }
}
