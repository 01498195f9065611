//! What a scheduler hands out: a step to run, and counts.

use super::sequence::{SequenceId, Slot};
use crate::kv_cache_manager::BlockCopy;

/// One step: what to run, and what changed on the way to it.
///
/// A buffer that is used again for every step.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SchedulerOutput {
    /// The sequences to compute, each once: those with one token to go first, then chunks of prompts.
    pub scheduled: Vec<ScheduledSequence>,
    /// Blocks to copy, in this order, before the step writes any keys or values. They can name blocks that no
    /// scheduled sequence has any more; copying those does no harm.
    pub copies: Vec<BlockCopy>,
    /// Sequences that ran and now wait again, without blocks: all their tokens will be computed anew.
    pub preempted: Vec<SequenceId>,
    /// Sequences that ended since the last step: finished, full or aborted.
    pub finished: Vec<SequenceId>,
}

impl SchedulerOutput {
    /// Tokens of the step, all sequences together.
    pub fn num_scheduled_tokens(&self) -> usize {
        self.scheduled.iter().map(|sequence| sequence.num_scheduled_tokens).sum()
    }

    pub(super) fn clear(&mut self) {
        let Self { scheduled, copies, preempted, finished } = self;
        scheduled.clear();
        copies.clear();
        preempted.clear();
        finished.clear();
    }
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduledSequence {
    /// Which sequence.
    pub id: SequenceId,
    /// Tokens to compute: positions from `num_computed_tokens`.
    pub num_scheduled_tokens: usize,
    /// How many of them, the last ones, are proposed and not yet part of the sequence.
    pub num_draft_tokens: usize,
    /// Tokens before them, whose keys and values the sequence's blocks hold.
    pub num_computed_tokens: usize,
    /// Tokens that the prefix cache gave when the sequence first ran.
    pub num_cached_tokens: usize,
    /// Whether the step reaches the sequence's end. The logits of the last `1 + num_draft_tokens` tokens are wanted
    /// then, else none.
    pub samples: bool,
    pub(super) slot: Slot,
}

/// Counts since the scheduler was made, and its state now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences that hold blocks.
    pub num_running: usize,
    /// Sequences that wait for blocks, new and preempted ones.
    pub num_waiting: usize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Blocks that sequences hold.
    pub num_used_blocks: usize,
    /// Blocks that the sequences of one step held at most.
    pub max_num_used_blocks: usize,
    /// Blocks, held or free, whose content can be found.
    pub num_cached_blocks: usize,
    /// Steps scheduled.
    pub num_steps: u64,
    /// Times that a sequence lost its blocks to another one.
    pub num_preemptions: u64,
    /// Prompt tokens that were looked up in the prefix cache. Sequences that come back from preemption don't count.
    pub num_prefix_queries: u64,
    /// How many of them it had.
    pub num_prefix_hits: u64,
    /// Proposed tokens that were verified.
    pub num_draft_tokens: u64,
    /// How many of them were accepted.
    pub num_accepted_tokens: u64,
}
