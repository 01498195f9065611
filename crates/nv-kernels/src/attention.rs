//! Attention over a block table, for prefill chunks, decode and mixtures.
//!
//! Keys are walked in tiles of fixed absolute positions with an online softmax, so that a query's bits depend on
//! its position and its sequence's keys and values alone: not on chunking, on blocks, or on what else runs.
//! Knows no instruction set, and nothing of who owns blocks.

use std::cmp::Reverse;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::dispatch::Kernels;
use crate::elementwise::{Elementwise, Softmax, SoftmaxStep};
use crate::kv::{KvLayout, KvMut, Sequence, Slot};
use crate::outer::{HALF, Outer, Run, halves_at_once};
use crate::panel::{NewResult, SharedResult};
use crate::pool::Pool;

/// Keys of one step of the online softmax.
const KEY_TILE: usize = 128;

/// Query rows (tokens × grouped heads) that walk the keys together: many, since every walk reads all of them again, and
/// a multiple of the rows that AVX-512 takes at once.
const QUERY_ROWS: usize = 126;

/// See [`Kernels::attention`].
pub(crate) fn run(
    kernels: &Kernels,
    pool: &Pool,
    layout: &KvLayout,
    kv: &KvMut<'_>,
    sequences: &[Sequence<'_>],
    q: &[f32],
    out: &mut Vec<f32>,
) {
    let num_tokens = layout.check(kv, sequences);
    if num_tokens == 0 {
        assert!(q.is_empty());
        out.clear();
        return;
    }
    let num_heads = q.len() / num_tokens / layout.head_dim;
    assert_eq!(num_tokens * num_heads * layout.head_dim, q.len());
    assert!(num_heads.is_multiple_of(layout.num_kv_heads));
    let groups = num_heads / layout.num_kv_heads;

    let pieces = pieces(layout, sequences, groups);
    let mut result = NewResult::new(out, num_tokens, num_heads * layout.head_dim);
    let room = result.room();
    let elementwise = kernels.elementwise;
    match kv {
        KvMut::Bf16 { k, v } => {
            let softmax_step = elementwise.softmax_step_rounded;
            if let Some(outer) = kernels.outer_bf16 {
                let cache = Cache { elementwise, outer, softmax_step, k, v };
                pool.run(pieces.len(), |i| attend(&cache, layout, &pieces[i], groups, q, &room));
            } else {
                let cache =
                    Cache { elementwise, outer: kernels.outer_bf16_f32, softmax_step, k, v };
                pool.run(pieces.len(), |i| attend(&cache, layout, &pieces[i], groups, q, &room));
            }
        }
        KvMut::F32 { k, v } => {
            let (outer, softmax_step) = (kernels.outer_f32, elementwise.softmax_step);
            let cache = Cache { elementwise, outer, softmax_step, k, v };
            pool.run(pieces.len(), |i| attend(&cache, layout, &pieces[i], groups, q, &room));
        }
    }
    // SAFETY: the pieces are all tokens and heads (`pieces`), and a piece writes all of its own.
    #[expect(unsafe_code, reason = "what the pieces wrote is the result")]
    unsafe {
        result.written();
    }
}

/// Some consecutive tokens of one sequence, for one KV head.
struct Piece<'a> {
    sequence: &'a Sequence<'a>,
    /// The first token, counted from the sequence's first in this batch.
    first: usize,
    num_tokens: usize,
    kv_head: usize,
}

/// All pieces of a batch. No token and head is in two.
///
/// Those that read the same keys and values come one after another, while these are in the cache; of them the longest walks
/// first, so that the last ones are short.
fn pieces<'a>(layout: &KvLayout, sequences: &'a [Sequence<'a>], groups: usize) -> Vec<Piece<'a>> {
    let step = (QUERY_ROWS / groups).max(1);
    let mut pieces = Vec::new();
    for sequence in sequences {
        for first in (0..sequence.num_tokens).step_by(step) {
            let num_tokens = step.min(sequence.num_tokens - first);
            pieces.extend((0..layout.num_kv_heads).map(|kv_head| Piece {
                sequence,
                first,
                num_tokens,
                kv_head,
            }));
        }
    }
    pieces.sort_by_key(|piece| {
        let sequence = piece.sequence;
        let longest_first = Reverse(sequence.kv_len());
        (piece.kv_head, longest_first, sequence.first_token, Reverse(piece.first))
    });
    pieces
}

/// An element of a cache: a number, or two of them.
trait Element: Copy {
    fn is_finite(self) -> bool;

    /// Only the first of two numbers.
    fn first(self) -> Self;
}

/// A pair of bfloat16.
impl Element for u32 {
    fn is_finite(self) -> bool {
        [0x7f80_u32, 0x7f80_0000].iter().all(|exponent| self & exponent != *exponent)
    }

    fn first(self) -> Self {
        self & 0xffff
    }
}

impl Element for f32 {
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }

    fn first(self) -> Self {
        self
    }
}

/// What queries and weights are multiplied as: some numbers at once, by as many of an element of the cache.
trait Operand: Copy + Default {
    /// Numbers at once.
    const NUMBERS: usize;

    /// Rounds `numbers` to the precision that they are multiplied in.
    fn round(elementwise: &Elementwise, numbers: &[f32], out: &mut [Self]);

    /// Numbers that have that precision: where they are, or in `room` if they are packed.
    fn of_rounded<'a>(
        elementwise: &Elementwise,
        numbers: &'a [f32],
        room: &'a mut Vec<Self>,
    ) -> &'a [Self];
}

/// A pair of bfloat16.
impl Operand for u32 {
    const NUMBERS: usize = 2;

    fn round(elementwise: &Elementwise, numbers: &[f32], out: &mut [u32]) {
        // SAFETY: `elementwise` is of a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (elementwise.pack_pairs)(numbers, out);
        }
    }

    fn of_rounded<'a>(
        elementwise: &Elementwise,
        numbers: &'a [f32],
        room: &'a mut Vec<u32>,
    ) -> &'a [u32] {
        room.resize(numbers.len() / 2, 0);
        // SAFETY: `elementwise` is of a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (elementwise.pack_rounded)(numbers, room);
        }
        room
    }
}

/// A pair of bfloat16, widened.
impl Operand for [f32; 2] {
    const NUMBERS: usize = 2;

    fn round(elementwise: &Elementwise, numbers: &[f32], out: &mut [Self]) {
        // SAFETY: `elementwise` is of a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (elementwise.round)(numbers, out.as_flattened_mut());
        }
    }

    fn of_rounded<'a>(_: &Elementwise, numbers: &'a [f32], _: &'a mut Vec<Self>) -> &'a [Self] {
        numbers.as_chunks().0
    }
}

/// One f32.
impl Operand for [f32; 1] {
    const NUMBERS: usize = 1;

    fn round(_: &Elementwise, numbers: &[f32], out: &mut [Self]) {
        out.as_flattened_mut().copy_from_slice(numbers);
    }

    fn of_rounded<'a>(_: &Elementwise, numbers: &'a [f32], _: &'a mut Vec<Self>) -> &'a [Self] {
        numbers.as_chunks().0
    }
}

/// A layer's keys and values, and the kernels that multiply them by `A`.
struct Cache<'a, A, B> {
    elementwise: &'a Elementwise,
    outer: unsafe fn(Outer<'_, A, B>),
    softmax_step: SoftmaxStep,
    k: &'a [B],
    v: &'a [B],
}

impl<A, B> Cache<'_, A, B> {
    fn outer(&self, outer: Outer<'_, A, B>) {
        // SAFETY: `outer` is of a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (self.outer)(outer);
        }
    }

    fn softmax_step(&self, scores: &mut [f32], scale: f32, softmax: &mut Softmax) {
        // SAFETY: `softmax_step` is of a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (self.softmax_step)(scores, scale, softmax);
        }
    }
}

/// Attends the queries of one piece.
fn attend<A: Operand, B: Element>(
    cache: &Cache<'_, A, B>,
    layout: &KvLayout,
    piece: &Piece<'_>,
    groups: usize,
    q: &[f32],
    out: &SharedResult<'_, MaybeUninit<f32>>,
) {
    let (head_dim, num_heads) = (layout.head_dim, groups * layout.num_kv_heads);
    let q_row = head_dim / A::NUMBERS;
    let Piece { sequence, first, num_tokens, kv_head } = *piece;
    let (first_token, first_position) = (sequence.first_token + first, sequence.start_pos + first);
    let num_rows = num_tokens * groups;
    // The position of a row's query: rows are tokens, then heads of the group.
    let position = |row: usize| first_position + row / groups;
    let kv_len = position(num_rows - 1) + 1;

    let heads = kv_head * groups..(kv_head + 1) * groups;
    let mut queries = vec![A::default(); num_rows * q_row];
    for (token, queries) in queries.chunks_mut(groups * q_row).enumerate() {
        let q = &q[(first_token + token) * num_heads * head_dim..][..num_heads * head_dim];
        A::round(cache.elementwise, &q[heads.start * head_dim..heads.end * head_dim], queries);
    }

    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut softmax = Softmax::new(num_rows);
    let mut attended = vec![0.0f32; num_rows * head_dim];
    let mut scores = vec![0.0f32; num_rows * KEY_TILE];
    let mut packed_weights = Vec::new();
    let halves_of_dim: Vec<usize> = (0..head_dim).step_by(HALF).collect();
    let (mut halves_of_keys, mut runs, mut ahead) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen_values = Vec::new();
    // A single token's time goes into waiting for memory, unless it is asked for what comes next.
    let waits = num_tokens == 1;

    for tile in (0..kv_len).step_by(KEY_TILE) {
        let end = kv_len.min(tile + KEY_TILE);

        layout.key_halves::<A>(piece, tile..end, &mut halves_of_keys);
        ahead.clear();
        if waits {
            ahead.extend(layout.values::<A, B>(cache.v, piece, tile..end));
        }
        for (i, halves) in halves_of_keys.chunks(halves_at_once(num_rows)).enumerate() {
            cache.outer(Outer {
                a: &queries,
                a_stride: q_row,
                num_rows,
                b: cache.k,
                runs: &[Run { start: 0, num_steps: q_row }],
                halves,
                b_stride: layout.lanes(),
                c: &mut scores[i * halves_at_once(num_rows) * HALF..],
                c_stride: KEY_TILE,
                is_new: true,
                ahead: if i == 0 { &ahead } else { &[] },
            });
        }

        if tile + KEY_TILE > first_position + 1 {
            mask(&mut scores, (0..num_rows).map(position), tile);
        }
        cache.softmax_step(&mut scores, scale, &mut softmax);
        correct(&mut attended, head_dim, &softmax.corrections);

        let weights = A::of_rounded(cache.elementwise, &scores, &mut packed_weights);
        let weights_stride = KEY_TILE / A::NUMBERS;
        let mut add_values = |rows: Range<usize>, v: &[B], runs: &[Run], ahead: &[&[B]]| {
            for halves in halves_of_dim.chunks(halves_at_once(rows.len())) {
                cache.outer(Outer {
                    a: &weights[rows.start * weights_stride..],
                    a_stride: weights_stride,
                    num_rows: rows.len(),
                    b: v,
                    runs,
                    halves,
                    b_stride: head_dim,
                    c: &mut attended[rows.start * head_dim + halves[0]..],
                    c_stride: head_dim,
                    is_new: false,
                    ahead: if halves[0] == 0 { ahead } else { &[] },
                });
            }
        };
        let not_seen_by_all = end.min(tile.max(first_position + 1))..end;
        if layout.values::<A, B>(cache.v, piece, not_seen_by_all).all(all_finite) {
            runs.clear();
            runs.extend(layout.by_block(tile..end).map(|keys| Run {
                start: layout.value_row::<A>(piece, keys.start),
                num_steps: keys.len().div_ceil(A::NUMBERS),
            }));
            ahead.clear();
            if waits {
                let next = end..kv_len.min(end + KEY_TILE);
                ahead.extend(layout.parts::<A, B>(cache.k, piece, next));
            }
            add_values(0..num_rows, cache.v, &runs, &ahead);
        } else {
            // Their weights are 0 where a query does not see them, but 0 · NaN is NaN: what a query doesn't see stays away.
            for token in 0..num_tokens {
                let seen = tile..end.min(first_position + token + 1);
                if !seen.is_empty() {
                    let num_steps = seen.len().div_ceil(A::NUMBERS);
                    layout.copy_values::<A, B>(cache.v, piece, seen, &mut seen_values);
                    let rows = token * groups..(token + 1) * groups;
                    add_values(rows, &seen_values, &[Run { start: 0, num_steps }], &[]);
                }
            }
        }
    }

    let columns = heads.start * head_dim..heads.end * head_dim;
    // SAFETY: these tokens and heads are this piece's alone (`pieces`), and the pool runs a piece once.
    #[expect(unsafe_code, reason = "pieces write disjoint parts")]
    let mut part = unsafe { out.part(first_token..first_token + num_tokens, columns) };
    for (row, sums) in attended.chunks(head_dim).enumerate() {
        let out = &mut part.row(row / groups)[row % groups * head_dim..][..head_dim];
        divide(sums, softmax.total(row), out);
    }
}

/// `out = sums / total`
fn divide(sums: &[f32], total: f32, out: &mut [MaybeUninit<f32>]) {
    let reciprocal = 1.0 / total;
    for (out, sum) in out.iter_mut().zip(sums) {
        out.write(sum * reciprocal);
    }
}

/// Hides what the queries of some rows, at `positions`, must not see of a tile of keys from position `tile` on.
fn mask(scores: &mut [f32], positions: impl Iterator<Item = usize>, tile: usize) {
    for (scores, position) in scores.chunks_exact_mut(KEY_TILE).zip(positions) {
        let visible = (position + 1).saturating_sub(tile).min(KEY_TILE);
        scores[visible..].fill(f32::NEG_INFINITY);
    }
}

/// Multiplies each row by its correction: most are 1.
fn correct(attended: &mut [f32], head_dim: usize, corrections: &[f32]) {
    for (sums, &correction) in attended.chunks_exact_mut(head_dim).zip(corrections) {
        if correction < 1.0 {
            for sum in sums {
                *sum *= correction;
            }
        }
    }
}

/// Looks at all of them: that is vectors, where stopping at one is not.
fn all_finite(values: &[impl Element]) -> bool {
    values.iter().fold(true, |all, value| all & value.is_finite())
}

impl KvLayout {
    /// The first element of the block of `position`, for the piece's head.
    fn region<A: Operand>(&self, piece: &Piece<'_>, position: usize) -> usize {
        let block = piece.sequence.block_table[position / self.block_size] as usize;
        (block * self.block_elements() + piece.kv_head * self.head_elements()) / A::NUMBERS
    }

    /// `positions`, those of each block by themselves.
    fn by_block(&self, positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut first = positions.start;
        std::iter::from_fn(move || {
            let end = positions.end.min((first / self.block_size + 1) * self.block_size);
            let start = std::mem::replace(&mut first, end);
            (start < end).then_some(start..end)
        })
    }

    /// What `elements`, keys or values, hold of `positions`, which start and end between elements: a part for each block.
    fn parts<'c, A: Operand, B>(
        &self,
        elements: &'c [B],
        piece: &Piece<'_>,
        positions: Range<usize>,
    ) -> impl Iterator<Item = &'c [B]> {
        self.by_block(positions).map(|positions| {
            let within = positions.start % self.block_size * self.head_dim / A::NUMBERS;
            let start = self.region::<A>(piece, positions.start) + within;
            &elements[start..start + positions.len() * self.head_dim / A::NUMBERS]
        })
    }

    /// The values of `positions`, and of those that share an element with one: a part for each block.
    fn values<'c, A: Operand, B>(
        &self,
        values: &'c [B],
        piece: &Piece<'_>,
        positions: Range<usize>,
    ) -> impl Iterator<Item = &'c [B]> {
        let whole = |position: usize| position.next_multiple_of(A::NUMBERS);
        let first = positions.start / A::NUMBERS * A::NUMBERS;
        self.parts::<A, B>(values, piece, first..whole(positions.end))
    }

    /// Makes `out` the values of `positions`, and of no others: if they end within an element, it is cleared from there on.
    fn copy_values<A: Operand, B: Element>(
        &self,
        values: &[B],
        piece: &Piece<'_>,
        positions: Range<usize>,
        out: &mut Vec<B>,
    ) {
        out.clear();
        out.extend(self.values::<A, B>(values, piece, positions.clone()).flatten());
        if !positions.len().is_multiple_of(A::NUMBERS) {
            let last = out.len() - self.head_dim;
            for value in &mut out[last..] {
                *value = value.first();
            }
        }
    }

    /// Where the keys of 8 tokens from `position` on are, a multiple of 8: 8 lanes every [`Self::lanes`] elements.
    fn key_half<A: Operand>(&self, piece: &Piece<'_>, position: usize) -> usize {
        let index = position % self.block_size;
        let group = Slot { index, lanes: self.lanes() }.group(self.head_dim, A::NUMBERS);
        self.region::<A>(piece, position) + group + index % self.lanes()
    }

    /// Makes `halves` whole vectors of all keys of `positions`, which start with a vector: one half after the end stands in for
    /// nothing.
    fn key_halves<A: Operand>(
        &self,
        piece: &Piece<'_>,
        positions: Range<usize>,
        halves: &mut Vec<usize>,
    ) {
        let Range { start, end } = positions;
        let keys = (start..end.next_multiple_of(2 * HALF)).step_by(HALF);
        halves.clear();
        halves
            .extend(keys.map(|key| self.key_half::<A>(piece, if key < end { key } else { start })));
    }

    /// Where the values of the token at `position` are.
    fn value_row<A: Operand>(&self, piece: &Piece<'_>, position: usize) -> usize {
        self.region::<A>(piece, position) + position % self.block_size / A::NUMBERS * self.head_dim
    }
}
