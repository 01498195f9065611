//! A scheduler's decisions, one by one, as text.

use std::fmt;

use super::sequence::SequenceId;

/// One decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A step begins.
    Step {
        /// Counted from 1.
        number: u64,
        /// Sequences that hold blocks.
        num_running: usize,
        /// Sequences that don't.
        num_waiting: usize,
        /// Blocks that nobody holds.
        num_free_blocks: usize,
    },
    /// A waiting sequence got blocks.
    Admitted {
        /// Which.
        id: SequenceId,
        /// Its tokens.
        num_tokens: usize,
        /// How many of them the prefix cache had.
        num_cached_tokens: usize,
    },
    /// The first of the waiting sequences, and so all of them, waits on.
    Blocked {
        /// Which.
        id: SequenceId,
        /// Blocks that all of its tokens take.
        num_blocks: usize,
        /// Blocks that nobody holds.
        num_free_blocks: usize,
    },
    /// A sequence is part of the step.
    Scheduled {
        /// Which.
        id: SequenceId,
        /// Tokens computed before.
        num_computed_tokens: usize,
        /// Tokens of the step, without proposed ones.
        num_scheduled_tokens: usize,
    },
    /// Proposed tokens of a scheduled sequence are part of the step.
    Drafted {
        /// Which sequence.
        id: SequenceId,
        /// How many tokens.
        num_draft_tokens: usize,
    },
    /// A sequence lost its blocks to one before it.
    Preempted {
        /// Which.
        id: SequenceId,
        /// Tokens that it had computed.
        num_computed_tokens: usize,
    },
    /// A step's tokens were added to a sequence.
    Updated {
        /// Which.
        id: SequenceId,
        /// Its tokens now.
        num_tokens: usize,
        /// How many of them are computed.
        num_computed_tokens: usize,
    },
    /// A sequence ended.
    Finished {
        /// Which.
        id: SequenceId,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step { number, num_running, num_waiting, num_free_blocks } => write!(
                f,
                "step {number}: {num_running} running, {num_waiting} waiting, {num_free_blocks} blocks free"
            ),
            Self::Admitted { id, num_tokens, num_cached_tokens } => {
                write!(f, "  {id} admitted: {num_tokens} tokens, {num_cached_tokens} cached")
            }
            Self::Blocked { id, num_blocks, num_free_blocks } => {
                write!(f, "  {id} blocked: takes {num_blocks} blocks, {num_free_blocks} free")
            }
            Self::Scheduled { id, num_computed_tokens, num_scheduled_tokens } => {
                write!(f, "  {id} scheduled: {num_scheduled_tokens} at {num_computed_tokens}")
            }
            Self::Drafted { id, num_draft_tokens } => {
                write!(f, "  {id} drafted: {num_draft_tokens} more")
            }
            Self::Preempted { id, num_computed_tokens } => {
                write!(f, "  {id} preempted: {num_computed_tokens} computed tokens lost")
            }
            Self::Updated { id, num_tokens, num_computed_tokens } => {
                write!(f, "  {id} updated: {num_tokens} tokens, {num_computed_tokens} computed")
            }
            Self::Finished { id } => write!(f, "  {id} finished"),
        }
    }
}
