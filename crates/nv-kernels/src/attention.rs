//! Attention over a block table, for prefill chunks, decode and mixtures.
//!
//! Keys are walked in tiles of fixed absolute positions with an online softmax, so that a query's bits depend on
//! its position and its sequence's keys and values alone: not on chunking, on blocks, or on what else runs.
//! Knows no instruction set, and nothing of who owns blocks.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::dispatch::Kernels;
use crate::elementwise::SoftmaxState;
use crate::kv::{KvLayout, KvMut, Sequence, Slot};
use crate::outer::{HALF, MAX_HALVES, Outer, halves_at_once};
use crate::panel::{NewResult, SharedResult};
use crate::pool::Pool;

/// Keys of one step of the online softmax.
const KEY_TILE: usize = 64;

/// Query rows (tokens × grouped heads) that walk the keys together.
const QUERY_ROWS: usize = 32;

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
    layout.check(kv);
    let mut num_tokens = 0;
    for sequence in sequences {
        // So no token is in two of them, or in none.
        assert_eq!(sequence.first_token, num_tokens, "sequences are packed one after another");
        num_tokens += sequence.num_tokens;
    }
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
    pool.run(pieces.len(), |piece| {
        let piece = &pieces[piece];
        match kv {
            KvMut::Bf16 { k, v } => {
                attend(&Pairs { kernels, k, v }, layout, piece, groups, q, &room);
            }
            KvMut::F32 { k, v } => {
                attend(&Singles { kernels, k, v }, layout, piece, groups, q, &room);
            }
        }
    });
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

/// All pieces of a batch, the longest walks first so that the last ones are short. No token and head is in two.
fn pieces<'a>(layout: &KvLayout, sequences: &'a [Sequence<'a>], groups: usize) -> Vec<Piece<'a>> {
    let step = (QUERY_ROWS / groups).max(1);
    let mut pieces = Vec::new();
    for sequence in sequences {
        let first = sequence.first_token;
        assert!(
            sequence.block_table.len() * layout.block_size >= sequence.kv_len(),
            "token {first}: blocks are missing"
        );
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
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.sequence.start_pos + piece.first));
    pieces
}

/// A cache's element type and the products over it.
trait Cache {
    /// What a vector lane holds: a pair of bfloat16, or an f32.
    type Element: Copy + Default;
    /// Numbers in an element.
    const PACKED: usize;
    /// Packs numbers, which are rounded.
    fn pack(&self, numbers: &[f32], elements: &mut [Self::Element]);
    fn keys(&self) -> &[Self::Element];
    fn values(&self) -> &[Self::Element];
    fn outer(&self, outer: Outer<'_, Self::Element, Self::Element>);
    fn softmax_step(
        &self,
        scores: &mut [f32],
        scale: f32,
        states: &mut [SoftmaxState],
        corrections: &mut [f32],
    );
}

struct Pairs<'a> {
    kernels: &'a Kernels,
    k: &'a [u32],
    v: &'a [u32],
}

struct Singles<'a> {
    kernels: &'a Kernels,
    k: &'a [f32],
    v: &'a [f32],
}

impl Cache for Pairs<'_> {
    type Element = u32;
    const PACKED: usize = 2;

    fn pack(&self, numbers: &[f32], elements: &mut [u32]) {
        // SAFETY: `kernels` exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (self.kernels.elementwise.pack_pairs)(numbers, elements);
        }
    }

    fn keys(&self) -> &[u32] {
        self.k
    }

    fn values(&self) -> &[u32] {
        self.v
    }

    fn outer(&self, outer: Outer<'_, u32, u32>) {
        // SAFETY: `kernels` exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (self.kernels.outer_pairs)(outer);
        }
    }

    fn softmax_step(
        &self,
        scores: &mut [f32],
        scale: f32,
        states: &mut [SoftmaxState],
        corrections: &mut [f32],
    ) {
        // SAFETY: `kernels` exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (self.kernels.elementwise.softmax_step_rounded)(scores, scale, states, corrections);
        }
    }
}

impl Cache for Singles<'_> {
    type Element = f32;
    const PACKED: usize = 1;

    fn pack(&self, numbers: &[f32], elements: &mut [f32]) {
        elements.copy_from_slice(numbers);
    }

    fn keys(&self) -> &[f32] {
        self.k
    }

    fn values(&self) -> &[f32] {
        self.v
    }

    fn outer(&self, outer: Outer<'_, f32, f32>) {
        // SAFETY: `kernels` exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (self.kernels.outer_f32)(outer);
        }
    }

    fn softmax_step(
        &self,
        scores: &mut [f32],
        scale: f32,
        states: &mut [SoftmaxState],
        corrections: &mut [f32],
    ) {
        // SAFETY: `kernels` exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (self.kernels.elementwise.softmax_step)(scores, scale, states, corrections);
        }
    }
}

/// Attends the queries of one piece.
fn attend<C: Cache>(
    cache: &C,
    layout: &KvLayout,
    piece: &Piece<'_>,
    groups: usize,
    q: &[f32],
    out: &SharedResult<'_, MaybeUninit<f32>>,
) {
    let head_dim = layout.head_dim;
    let num_heads = groups * layout.num_kv_heads;
    let first_token = piece.sequence.first_token + piece.first;
    let first_position = piece.sequence.start_pos + piece.first;
    let num_rows = piece.num_tokens * groups;
    // The position of a row's query: rows are tokens, then heads of the group.
    let position = |row: usize| first_position + row / groups;
    let kv_len = position(num_rows - 1) + 1;

    let q_row = head_dim / C::PACKED;
    let mut queries = vec![C::Element::default(); num_rows * q_row];
    for (row, query) in queries.chunks_mut(q_row).enumerate() {
        let head = piece.kv_head * groups + row % groups;
        let at = ((first_token + row / groups) * num_heads + head) * head_dim;
        cache.pack(&q[at..at + head_dim], query);
    }

    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut states = vec![SoftmaxState::EMPTY; num_rows];
    let mut corrections = vec![1.0f32; num_rows];
    let mut attended = vec![0.0f32; num_rows * head_dim];
    let mut scores = vec![0.0f32; num_rows * KEY_TILE];
    let weight_row = KEY_TILE / C::PACKED;
    let mut weights = vec![C::Element::default(); num_rows * weight_row];
    let lanes = halves_at_once(num_rows) * HALF;

    for tile in (0..kv_len).step_by(KEY_TILE) {
        let end = kv_len.min(tile + KEY_TILE);

        // A single token's time goes into waiting for memory, unless it is asked in advance.
        let next = end..if piece.num_tokens == 1 { kv_len.min(end + KEY_TILE) } else { end };

        let mut ahead = [&[][..]; KEY_TILE / HALF];
        let mut num_ahead = 0;
        for (ahead, part) in
            ahead.iter_mut().zip(layout.parts::<C>(cache.keys(), piece, next.clone()))
        {
            *ahead = part;
            num_ahead += 1;
        }
        scores.fill(0.0);
        // Halves past the end stand in for nothing: their scores are masked below.
        let halves: [&[C::Element]; KEY_TILE / HALF] = std::array::from_fn(|half| {
            let key = tile + half * HALF;
            layout.key_half(cache, piece, if key < end { key } else { tile })
        });
        cache.outer(Outer {
            a: &queries,
            a_stride: q_row,
            num_rows,
            n: q_row,
            b: &halves,
            b_stride: layout.lanes(),
            c: &mut scores,
            c_stride: KEY_TILE,
            ahead: &ahead[..num_ahead],
        });

        for (row, scores) in scores.chunks_exact_mut(KEY_TILE).enumerate() {
            let visible = (position(row) + 1).saturating_sub(tile).min(KEY_TILE);
            scores[visible..].fill(f32::NEG_INFINITY);
        }
        cache.softmax_step(&mut scores, scale, &mut states, &mut corrections);
        for (sums, &correction) in attended.chunks_exact_mut(head_dim).zip(&corrections) {
            if correction < 1.0 {
                for sum in sums {
                    *sum *= correction;
                }
            }
        }
        cache.pack(&scores, &mut weights);

        let mut ahead = layout.parts::<C>(cache.values(), piece, next);
        let mut key = tile;
        while key < end {
            // The keys of one block, as far as the tile goes.
            let block_end = end.min((key / layout.block_size + 1) * layout.block_size);
            let values = layout.value_rows(cache, piece, key);
            let n = (block_end - key).div_ceil(C::PACKED);
            let ahead = ahead.next();
            for lane in (0..head_dim).step_by(lanes) {
                let num_halves = lanes.min(head_dim - lane) / HALF;
                let halves: [&[C::Element]; MAX_HALVES] =
                    std::array::from_fn(|half| &values[lane + half.min(num_halves - 1) * HALF..]);
                cache.outer(Outer {
                    a: &weights[(key - tile) / C::PACKED..],
                    a_stride: weight_row,
                    num_rows,
                    n,
                    b: &halves[..num_halves],
                    b_stride: head_dim,
                    c: &mut attended[lane..],
                    c_stride: head_dim,
                    ahead: if lane == 0 { ahead.as_slice() } else { &[] },
                });
            }
            key = block_end;
        }
    }

    let columns = piece.kv_head * groups * head_dim..(piece.kv_head + 1) * groups * head_dim;
    // SAFETY: these tokens and heads are this piece's alone (`pieces`), and the pool runs a piece once.
    #[expect(unsafe_code, reason = "pieces write disjoint parts")]
    let mut part = unsafe { out.part(first_token..first_token + piece.num_tokens, columns) };
    for (row, sums) in attended.chunks(head_dim).enumerate() {
        let out = &mut part.row(row / groups)[row % groups * head_dim..][..head_dim];
        for (out, sum) in out.iter_mut().zip(sums) {
            out.write(sum / states[row].total);
        }
    }
}

impl KvLayout {
    /// The first element of the block of `position`, for the piece's head.
    fn region<C: Cache>(&self, piece: &Piece<'_>, position: usize) -> usize {
        let block = piece.sequence.block_table[position / self.block_size] as usize;
        (block * self.block_elements() + piece.kv_head * self.head_elements()) / C::PACKED
    }

    /// What `elements`, keys or values, hold of `positions`, which start with a tile: a part for each block.
    fn parts<'c, C: Cache>(
        &self,
        elements: &'c [C::Element],
        piece: &Piece<'_>,
        positions: Range<usize>,
    ) -> impl Iterator<Item = &'c [C::Element]> {
        let mut first = positions.start;
        std::iter::from_fn(move || {
            let end = positions.end.min((first / self.block_size + 1) * self.block_size);
            let len = (first < end).then(|| (end - first) * self.head_dim / C::PACKED)?;
            let within = first % self.block_size * self.head_dim / C::PACKED;
            let start = self.region::<C>(piece, first) + within;
            first = end;
            Some(&elements[start..start + len])
        })
    }

    /// The keys of 8 tokens from `position`, a multiple of 8: 8 lanes every [`Self::lanes`] elements.
    fn key_half<'c, C: Cache>(
        &self,
        cache: &'c C,
        piece: &Piece<'_>,
        position: usize,
    ) -> &'c [C::Element] {
        let index = position % self.block_size;
        let group = Slot { index, lanes: self.lanes() }.group(self.head_dim, C::PACKED);
        let start = self.region::<C>(piece, position) + group + index % self.lanes();
        let len = self.lanes() * (self.head_dim / C::PACKED - 1) + HALF;
        &cache.keys()[start..start + len]
    }

    /// The values of `position`'s block from that token on.
    fn value_rows<'c, C: Cache>(
        &self,
        cache: &'c C,
        piece: &Piece<'_>,
        position: usize,
    ) -> &'c [C::Element] {
        let region = self.region::<C>(piece, position);
        let first = position % self.block_size / C::PACKED * self.head_dim;
        &cache.values()[region + first..region + self.head_elements() / C::PACKED]
    }
}
