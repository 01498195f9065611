//! Where a task's keys and values lie in the blocks of its sequence.

use std::ops::Range;

use super::Task;
use super::operand::{Element, Operand};
use super::outer::LANES;
use crate::kv::{KvLayout, Slot};

impl KvLayout {
    /// The first element of the block of `position`, for the task's head.
    pub(super) fn region<A: Operand>(&self, task: &Task<'_>, position: usize) -> usize {
        let block = task.sequence.block_table[position / self.block_size] as usize;
        (block * self.block_elements() + task.kv_head * self.head_elements()) / A::NUMBERS
    }

    /// `positions`, those of each block by themselves.
    pub(super) fn by_block(&self, positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut first = positions.start;
        std::iter::from_fn(move || {
            let end = positions.end.min((first / self.block_size + 1) * self.block_size);
            let start = std::mem::replace(&mut first, end);
            (start < end).then_some(start..end)
        })
    }

    /// What `elements`, keys or values, hold of `positions`, which start and end between elements: a part for each block.
    pub(super) fn parts<'c, A: Operand, B>(
        &self,
        elements: &'c [B],
        task: &Task<'_>,
        positions: Range<usize>,
    ) -> impl Iterator<Item = &'c [B]> {
        self.by_block(positions).map(|positions| {
            let within = positions.start % self.block_size * self.head_dim / A::NUMBERS;
            let start = self.region::<A>(task, positions.start) + within;
            &elements[start..start + positions.len() * self.head_dim / A::NUMBERS]
        })
    }

    /// The values of `positions`, and of those that share an element with one: a part for each block.
    pub(super) fn values<'c, A: Operand, B>(
        &self,
        values: &'c [B],
        task: &Task<'_>,
        positions: Range<usize>,
    ) -> impl Iterator<Item = &'c [B]> {
        let whole = |position: usize| position.next_multiple_of(A::NUMBERS);
        let first = positions.start / A::NUMBERS * A::NUMBERS;
        self.parts::<A, B>(values, task, first..whole(positions.end))
    }

    /// Makes `out` the values of `positions`, and of no others: if they end within an element, it is cleared from there on.
    pub(super) fn copy_values<A: Operand, B: Element>(
        &self,
        values: &[B],
        task: &Task<'_>,
        positions: Range<usize>,
        out: &mut Vec<B>,
    ) {
        out.clear();
        out.extend(self.values::<A, B>(values, task, positions.clone()).flatten());
        if !positions.len().is_multiple_of(A::NUMBERS) {
            let last = out.len() - self.head_dim;
            for value in &mut out[last..] {
                *value = value.first();
            }
        }
    }

    /// Where the keys of 8 tokens from `position` on are, a multiple of 8: 8 lanes every [`Self::lanes`] elements.
    pub(super) fn key_vector<A: Operand>(&self, task: &Task<'_>, position: usize) -> usize {
        let index = position % self.block_size;
        let group = Slot { index, lanes: self.lanes() }.group(self.head_dim, A::NUMBERS);
        self.region::<A>(task, position) + group + index % self.lanes()
    }

    /// Makes `vectors` whole vectors of all keys of `positions`, which start with a vector: one half after the end stands in for
    /// nothing.
    pub(super) fn key_vectors<A: Operand>(
        &self,
        task: &Task<'_>,
        positions: Range<usize>,
        vectors: &mut Vec<usize>,
    ) {
        let Range { start, end } = positions;
        let keys = (start..end.next_multiple_of(2 * LANES)).step_by(LANES);
        vectors.clear();
        vectors.extend(
            keys.map(|key| self.key_vector::<A>(task, if key < end { key } else { start })),
        );
    }

    /// Where the values of the token at `position` are.
    pub(super) fn value_row<A: Operand>(&self, task: &Task<'_>, position: usize) -> usize {
        self.region::<A>(task, position) + position % self.block_size / A::NUMBERS * self.head_dim
    }
}
