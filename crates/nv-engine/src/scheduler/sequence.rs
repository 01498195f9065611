//! What a scheduler knows of one sequence, and all of them by number.

use std::collections::HashMap;
use std::fmt;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use crate::TokenId;
use crate::kv_cache_manager::SequenceBlocks;

/// The number of a sequence, chosen by whoever adds it. A request has one sequence, or several with `n` above 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A sequence to be scheduled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSequence {
    /// Not the id of a sequence that hasn't ended.
    pub id: SequenceId,
    /// At least one token.
    pub prompt_token_ids: Vec<TokenId>,
    /// Tokens to add to the prompt at most, at least 1; `None` for as many as there is room for.
    pub max_tokens: Option<usize>,
    /// The lower, the earlier it runs.
    pub priority: i32,
    /// The number of its arrival. Sequences of one priority run in this order, those of one request too.
    pub arrival: u64,
    /// Only sequences of an equal salt share blocks.
    pub cache_salt: Option<Arc<str>>,
    /// Computes every token of the prompt, as its log probabilities need, until something is sampled; others may still
    /// find its blocks.
    pub skip_prefix_cache: bool,
}

/// The order in which sequences run; its last one is preempted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The arrival, put back by the reach of a priority for each level.
    rank: i128,
    arrival: u64,
    id: SequenceId,
}

impl Key {
    pub(super) fn new(new: &NewSequence, priority_reach: u32) -> Self {
        let rank = i128::from(new.arrival) + i128::from(new.priority) * i128::from(priority_reach);
        Self { rank, arrival: new.arrival, id: new.id }
    }

    /// The place of another sequence of the same request.
    pub(super) fn sibling(self, id: SequenceId) -> Self {
        Self { id, ..self }
    }
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) key: Key,
    pub(super) blocks: SequenceBlocks,
    /// The sequence's tokens, then proposed ones.
    token_ids: Vec<TokenId>,
    num_tokens: usize,
    num_prompt_tokens: usize,
    /// Where the sequence ends at the latest.
    pub(super) max_num_tokens: usize,
    /// Tokens whose keys and values are in `blocks`; fewer than `num_tokens`.
    pub(super) num_computed_tokens: usize,
    /// Tokens of the step under way; 0 if there is none.
    pub(super) num_scheduled_tokens: usize,
    /// Tokens that the prefix cache gave; `None` until the sequence runs.
    pub(super) num_cached_tokens: Option<usize>,
    skip_prefix_cache: bool,
}

impl Sequence {
    pub(super) fn new(new: NewSequence, key: Key, max_num_tokens: usize) -> Self {
        Self {
            id: new.id,
            key,
            blocks: SequenceBlocks::new(new.cache_salt),
            num_tokens: new.prompt_token_ids.len(),
            num_prompt_tokens: new.prompt_token_ids.len(),
            token_ids: new.prompt_token_ids,
            max_num_tokens,
            num_computed_tokens: 0,
            num_scheduled_tokens: 0,
            num_cached_tokens: None,
            skip_prefix_cache: new.skip_prefix_cache,
        }
    }

    /// Another sequence of the same request, without blocks: the tokens of this one, and `token_id`.
    pub(super) fn sibling(&self, id: SequenceId, token_id: TokenId) -> Self {
        let mut token_ids = Vec::with_capacity(self.num_tokens + 1);
        token_ids.extend_from_slice(self.token_ids());
        token_ids.push(token_id);
        Self {
            id,
            key: self.key.sibling(id),
            blocks: SequenceBlocks::new(self.blocks.cache_salt().cloned()),
            num_tokens: token_ids.len(),
            num_prompt_tokens: self.num_prompt_tokens,
            token_ids,
            max_num_tokens: self.max_num_tokens,
            num_computed_tokens: 0,
            num_scheduled_tokens: 0,
            num_cached_tokens: self.num_cached_tokens,
            skip_prefix_cache: false,
        }
    }

    pub(super) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// The sequence's own tokens.
    pub(super) fn token_ids(&self) -> &[TokenId] {
        &self.token_ids[..self.num_tokens]
    }

    pub(super) fn blocks_and_token_ids(&mut self) -> (&mut SequenceBlocks, &[TokenId]) {
        (&mut self.blocks, &self.token_ids[..self.num_tokens])
    }

    pub(super) fn num_uncomputed_tokens(&self) -> usize {
        self.num_tokens - self.num_computed_tokens
    }

    /// Whether nothing is to be found of it. What was sampled has had all that the logits of the prompt are for.
    pub(super) fn skips_prefix_cache(&self) -> bool {
        self.skip_prefix_cache && self.num_tokens == self.num_prompt_tokens
    }

    /// Whether only the token that the last step sampled is to be computed.
    pub(super) fn decodes(&self) -> bool {
        self.num_uncomputed_tokens() == 1
    }

    /// The tokens of the step under way, proposed ones included.
    pub(super) fn scheduled_token_ids(&self) -> &[TokenId] {
        &self.token_ids[self.num_computed_tokens..][..self.num_scheduled_tokens]
    }

    pub(super) fn draft(&self) -> &[TokenId] {
        &self.token_ids[self.num_tokens..]
    }

    /// Replaces the proposed tokens; keeps those that leave room for one more behind them. A prompt that nothing was
    /// sampled for ends in a single place, where others may [`sibling`](Self::sibling) off: nothing is kept behind it.
    pub(super) fn set_draft(&mut self, token_ids: &[TokenId]) {
        let max = if self.num_tokens == self.num_prompt_tokens {
            0
        } else {
            (self.max_num_tokens - self.num_tokens).saturating_sub(1)
        };
        self.token_ids.truncate(self.num_tokens);
        self.token_ids.extend_from_slice(&token_ids[..token_ids.len().min(max)]);
    }

    /// Adds `token_ids`, as many as there is room for, in place of the proposed ones.
    pub(super) fn push(&mut self, token_ids: &[TokenId]) {
        let num_new = token_ids.len().min(self.max_num_tokens - self.num_tokens);
        self.token_ids.truncate(self.num_tokens);
        self.token_ids.extend_from_slice(&token_ids[..num_new]);
        self.num_tokens += num_new;
    }

    pub(super) fn is_full(&self) -> bool {
        self.num_tokens == self.max_num_tokens
    }
}

/// Where a sequence is kept until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(usize);

/// All sequences that haven't ended.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    slots: Vec<Option<Sequence>>,
    free: Vec<Slot>,
    by_id: HashMap<SequenceId, Slot>,
}

impl Sequences {
    pub(super) fn slot(&self, id: SequenceId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    /// The sequence in `slot`, if it is still the one with this id.
    pub(super) fn get(&self, slot: Slot, id: SequenceId) -> Option<&Sequence> {
        self.slots[slot.0].as_ref().filter(|sequence| sequence.id == id)
    }

    /// As [`get`](Self::get).
    pub(super) fn get_mut(&mut self, slot: Slot, id: SequenceId) -> Option<&mut Sequence> {
        self.slots[slot.0].as_mut().filter(|sequence| sequence.id == id)
    }

    pub(super) fn insert(&mut self, sequence: Sequence) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot(self.slots.len() - 1)
        });
        self.by_id.insert(sequence.id, slot);
        self.slots[slot.0] = Some(sequence);
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Sequence {
        let sequence = self.slots[slot.0].take().expect("a listed sequence hasn't ended");
        self.by_id.remove(&sequence.id);
        self.free.push(slot);
        sequence
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.slots.iter().flatten()
    }
}

impl Index<Slot> for Sequences {
    type Output = Sequence;

    fn index(&self, slot: Slot) -> &Sequence {
        self.slots[slot.0].as_ref().expect("a listed sequence hasn't ended")
    }
}

impl IndexMut<Slot> for Sequences {
    fn index_mut(&mut self, slot: Slot) -> &mut Sequence {
        self.slots[slot.0].as_mut().expect("a listed sequence hasn't ended")
    }
}
