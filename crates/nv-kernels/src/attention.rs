//! Attention over a block table, for prefill chunks, decode and mixtures.
//!
//! Keys are walked in tiles of fixed absolute positions with an online softmax, so that a query's bits depend on
//! its position and its sequence's keys and values alone: not on chunking, on blocks, or on what else runs.
//! Knows no instruction set, and nothing of who owns blocks.

mod blocks;
mod operand;
pub(crate) mod outer;

use std::cmp::Reverse;
use std::mem::MaybeUninit;
use std::ops::Range;

use self::operand::{Element, Operand};
use self::outer::{LANES, Outer, Run, vectors_at_once};
use crate::elementwise::{Elementwise, Softmax, SoftmaxStep};
use crate::kv::{KvLayout, KvMut, Sequence};
use crate::pool::Pool;
use crate::results::{NewResult, SharedResult};
use crate::table::Kernels;

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

    let tasks = tasks(layout, sequences, groups);
    let mut result = NewResult::new(out, num_tokens, num_heads * layout.head_dim);
    let shared = result.shared();
    let elementwise = kernels.elementwise;
    match kv {
        KvMut::Bf16 { k, v } => {
            let softmax_step = elementwise.softmax_step_rounded;
            if let Some(outer) = kernels.outer_bf16 {
                let cache = Cache { elementwise, outer, softmax_step, k, v };
                pool.run(tasks.len(), |i| attend(&cache, layout, &tasks[i], groups, q, &shared));
            } else {
                let cache =
                    Cache { elementwise, outer: kernels.outer_bf16_f32, softmax_step, k, v };
                pool.run(tasks.len(), |i| attend(&cache, layout, &tasks[i], groups, q, &shared));
            }
        }
        KvMut::F32 { k, v } => {
            let (outer, softmax_step) = (kernels.outer_f32, elementwise.softmax_step);
            let cache = Cache { elementwise, outer, softmax_step, k, v };
            pool.run(tasks.len(), |i| attend(&cache, layout, &tasks[i], groups, q, &shared));
        }
    }
    // SAFETY: the tasks are all tokens and heads (`tasks`), and a task writes all of its own.
    #[expect(unsafe_code, reason = "what the tasks wrote is the result")]
    unsafe {
        result.written();
    }
}

/// Some consecutive tokens of one sequence, for one KV head.
struct Task<'a> {
    sequence: &'a Sequence<'a>,
    /// The first token, counted from the sequence's first in this batch.
    first: usize,
    num_tokens: usize,
    kv_head: usize,
}

/// All tasks of a batch. No token and head is in two.
///
/// Those that read the same keys and values come one after another, while these are in the cache; of them the longest walks
/// first, so that the last ones are short.
fn tasks<'a>(layout: &KvLayout, sequences: &'a [Sequence<'a>], groups: usize) -> Vec<Task<'a>> {
    let step = (QUERY_ROWS / groups).max(1);
    let mut tasks = Vec::new();
    for sequence in sequences {
        for first in (0..sequence.num_tokens).step_by(step) {
            let num_tokens = step.min(sequence.num_tokens - first);
            tasks.extend((0..layout.num_kv_heads).map(|kv_head| Task {
                sequence,
                first,
                num_tokens,
                kv_head,
            }));
        }
    }
    tasks.sort_by_key(|task| {
        let sequence = task.sequence;
        let longest_first = Reverse(sequence.kv_len());
        (task.kv_head, longest_first, sequence.first_token, Reverse(task.first))
    });
    tasks
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

/// Attends the queries of one task.
fn attend<A: Operand, B: Element>(
    cache: &Cache<'_, A, B>,
    layout: &KvLayout,
    task: &Task<'_>,
    groups: usize,
    q: &[f32],
    out: &SharedResult<'_, MaybeUninit<f32>>,
) {
    let mut walk = Walk::new(cache, layout, task, groups, q);
    let kv_len = walk.first_position + task.num_tokens;
    for tile in (0..kv_len).step_by(KEY_TILE) {
        let keys = tile..kv_len.min(tile + KEY_TILE);
        walk.score(keys.clone());
        walk.weigh(keys.start);
        walk.add_values(keys, kv_len);
    }
    walk.write(out);
}

/// A task's walk over the keys. Its rows are tokens, then heads of the group.
struct Walk<'a, A, B> {
    cache: &'a Cache<'a, A, B>,
    layout: &'a KvLayout,
    task: &'a Task<'a>,
    /// Query heads of a KV head.
    groups: usize,
    /// The position of the first token.
    first_position: usize,
    /// `[num_rows, head_dim]`, rounded.
    queries: Vec<A>,
    /// `[num_rows, KEY_TILE]`: scores, then weights, of the tile at hand.
    scores: Vec<f32>,
    softmax: Softmax,
    /// `[num_rows, head_dim]`: the weighted values so far.
    attended: Vec<f32>,
    /// Where the vectors of a value start.
    vectors_of_value: Vec<usize>,
    buffers: Buffers<'a, A, B>,
}

/// What a walk's steps fill anew for each tile.
struct Buffers<'a, A, B> {
    vectors_of_keys: Vec<usize>,
    runs: Vec<Run>,
    prefetch: Vec<&'a [B]>,
    weights: Vec<A>,
    seen_values: Vec<B>,
}

impl<'a, A: Operand, B: Element> Walk<'a, A, B> {
    fn new(
        cache: &'a Cache<'a, A, B>,
        layout: &'a KvLayout,
        task: &'a Task<'a>,
        groups: usize,
        q: &[f32],
    ) -> Self {
        let (head_dim, num_heads) = (layout.head_dim, groups * layout.num_kv_heads);
        let num_rows = task.num_tokens * groups;
        let heads = task.kv_head * groups..(task.kv_head + 1) * groups;
        let row_len = head_dim / A::NUMBERS;
        let mut queries = vec![A::default(); num_rows * row_len];
        for (token, queries) in queries.chunks_mut(groups * row_len).enumerate() {
            let token = task.sequence.first_token + task.first + token;
            let q = &q[token * num_heads * head_dim..][..num_heads * head_dim];
            A::round(cache.elementwise, &q[heads.start * head_dim..heads.end * head_dim], queries);
        }
        Self {
            cache,
            layout,
            task,
            groups,
            first_position: task.sequence.start_pos + task.first,
            queries,
            scores: vec![0.0; num_rows * KEY_TILE],
            softmax: Softmax::new(num_rows),
            attended: vec![0.0; num_rows * head_dim],
            vectors_of_value: (0..head_dim).step_by(LANES).collect(),
            buffers: Buffers {
                vectors_of_keys: Vec::new(),
                runs: Vec::new(),
                prefetch: Vec::new(),
                weights: Vec::new(),
                seen_values: Vec::new(),
            },
        }
    }

    fn num_rows(&self) -> usize {
        self.task.num_tokens * self.groups
    }

    /// Whether the walk waits for memory: a single token does, unless what comes next is prefetched.
    fn waits(&self) -> bool {
        self.task.num_tokens == 1
    }

    /// The scores of a tile of keys: q · k.
    fn score(&mut self, keys: Range<usize>) {
        let (num_rows, waits) = (self.num_rows(), self.waits());
        let Self { cache, layout, task, queries, scores, buffers, .. } = self;
        layout.key_vectors::<A>(task, keys.clone(), &mut buffers.vectors_of_keys);
        buffers.prefetch.clear();
        if waits {
            buffers.prefetch.extend(layout.values::<A, B>(cache.v, task, keys));
        }
        let row_len = layout.head_dim / A::NUMBERS;
        let at_once = vectors_at_once(num_rows);
        for (i, vectors) in buffers.vectors_of_keys.chunks(at_once).enumerate() {
            cache.outer(Outer {
                a: queries,
                a_stride: row_len,
                num_rows,
                b: cache.k,
                runs: &[Run { start: 0, num_steps: row_len }],
                vectors,
                b_stride: layout.lanes(),
                c: &mut scores[i * at_once * LANES..],
                c_stride: KEY_TILE,
                is_new: true,
                prefetch: if i == 0 { &buffers.prefetch } else { &[] },
            });
        }
    }

    /// Turns the scores of a tile, which starts at `first`, into weights, and what was summed before to their scale.
    fn weigh(&mut self, first: usize) {
        let (groups, first_position) = (self.groups, self.first_position);
        if first + KEY_TILE > first_position + 1 {
            let positions = (0..self.num_rows()).map(|row| first_position + row / groups);
            mask(&mut self.scores, positions, first);
        }
        let head_dim = self.layout.head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        self.cache.softmax_step(&mut self.scores, scale, &mut self.softmax);
        correct(&mut self.attended, head_dim, &self.softmax.corrections);
    }

    /// Adds the weighted values of a tile: p · v.
    fn add_values(&mut self, keys: Range<usize>, kv_len: usize) {
        let (num_rows, waits) = (self.num_rows(), self.waits());
        let Self { cache, layout, task, groups, first_position, ref mut buffers, .. } = *self;
        let Buffers { runs, prefetch, weights, seen_values, .. } = buffers;
        let weights = A::of_rounded(cache.elementwise, &self.scores, weights);
        let mut sums = ValueSums {
            cache,
            head_dim: layout.head_dim,
            weights,
            vectors: &self.vectors_of_value,
            attended: &mut self.attended,
        };
        let not_seen_by_all = keys.end.min(keys.start.max(first_position + 1))..keys.end;
        if layout.values::<A, B>(cache.v, task, not_seen_by_all).all(all_finite) {
            runs.clear();
            runs.extend(layout.by_block(keys.clone()).map(|keys| Run {
                start: layout.value_row::<A>(task, keys.start),
                num_steps: keys.len().div_ceil(A::NUMBERS),
            }));
            prefetch.clear();
            if waits {
                let next = keys.end..kv_len.min(keys.end + KEY_TILE);
                prefetch.extend(layout.parts::<A, B>(cache.k, task, next));
            }
            sums.add(0..num_rows, cache.v, runs, prefetch);
        } else {
            // Their weights are 0 where a query does not see them, but 0 · NaN is NaN: what a query doesn't see stays away.
            for token in 0..task.num_tokens {
                let seen = keys.start..keys.end.min(first_position + token + 1);
                if !seen.is_empty() {
                    let num_steps = seen.len().div_ceil(A::NUMBERS);
                    layout.copy_values::<A, B>(cache.v, task, seen, seen_values);
                    let rows = token * groups..(token + 1) * groups;
                    sums.add(rows, seen_values, &[Run { start: 0, num_steps }], &[]);
                }
            }
        }
    }

    /// Divides what was summed by the totals of the weights, into the task's part of `out`.
    fn write(self, out: &SharedResult<'_, MaybeUninit<f32>>) {
        let Self { layout, task, groups, softmax, attended, .. } = self;
        let head_dim = layout.head_dim;
        let first_token = task.sequence.first_token + task.first;
        let columns = task.kv_head * groups * head_dim..(task.kv_head + 1) * groups * head_dim;
        // SAFETY: these tokens and heads are this task's alone (`tasks`), and the pool runs a task once.
        #[expect(unsafe_code, reason = "tasks write disjoint parts")]
        let mut part = unsafe { out.part(first_token..first_token + task.num_tokens, columns) };
        for (row, sums) in attended.chunks(head_dim).enumerate() {
            let out = &mut part.row(row / groups)[row % groups * head_dim..][..head_dim];
            divide(sums, softmax.total(row), out);
        }
    }
}

/// Where a tile's weighted values are added.
struct ValueSums<'a, A, B> {
    cache: &'a Cache<'a, A, B>,
    head_dim: usize,
    /// `[num_rows, KEY_TILE]`.
    weights: &'a [A],
    /// Where the vectors of a value start.
    vectors: &'a [usize],
    /// `[num_rows, head_dim]`.
    attended: &'a mut [f32],
}

impl<A: Operand, B: Element> ValueSums<'_, A, B> {
    /// Adds, for some rows, the values that `runs` of `v` are.
    fn add(&mut self, rows: Range<usize>, v: &[B], runs: &[Run], prefetch: &[&[B]]) {
        let weights_stride = KEY_TILE / A::NUMBERS;
        for vectors in self.vectors.chunks(vectors_at_once(rows.len())) {
            self.cache.outer(Outer {
                a: &self.weights[rows.start * weights_stride..],
                a_stride: weights_stride,
                num_rows: rows.len(),
                b: v,
                runs,
                vectors,
                b_stride: self.head_dim,
                c: &mut self.attended[rows.start * self.head_dim + vectors[0]..],
                c_stride: self.head_dim,
                is_new: false,
                prefetch: if vectors[0] == 0 { prefetch } else { &[] },
            });
        }
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
