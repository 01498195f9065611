//! What is run to learn a model's speed.

use super::floor::{Costs, Work};
use super::timing::Budget;
use crate::args::Section;
use crate::format::{grouped, plural};

/// What each sequence of a batch holds, in tokens.
pub(super) const BATCH_CONTEXT: usize = 128;

/// Steps that are timed together.
pub(super) const DECODE_STEPS: u32 = 8;
pub(super) const BATCH_STEPS: u32 = 4;

/// One row: a kind of step at one size.
#[derive(Debug, Clone, Copy)]
pub(super) enum Workload {
    /// A prompt, up to the token after it.
    Prefill { num_tokens: usize },
    /// One more token of a sequence.
    Decode { context: usize },
    /// One more token of each of some sequences.
    Batch { num_sequences: usize },
}

impl Workload {
    pub(super) const ALL: [Self; 14] = [
        Self::Prefill { num_tokens: 128 },
        Self::Prefill { num_tokens: 512 },
        Self::Prefill { num_tokens: 2048 },
        Self::Prefill { num_tokens: 4096 },
        Self::Prefill { num_tokens: 8192 },
        Self::Decode { context: 128 },
        Self::Decode { context: 4096 },
        Self::Decode { context: 16_384 },
        Self::Batch { num_sequences: 1 },
        Self::Batch { num_sequences: 4 },
        Self::Batch { num_sequences: 8 },
        Self::Batch { num_sequences: 16 },
        Self::Batch { num_sequences: 32 },
        Self::Batch { num_sequences: 64 },
    ];

    pub(super) fn section(self) -> Section {
        match self {
            Self::Prefill { .. } => Section::Prefill,
            Self::Decode { .. } => Section::Decode,
            Self::Batch { .. } => Section::Batch,
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Prefill { num_tokens } => plural(num_tokens, "token"),
            Self::Decode { context } => format!("context {}", grouped(context as u64)),
            Self::Batch { num_sequences } => plural(num_sequences, "sequence"),
        }
    }

    /// Sequences that run at once.
    pub(super) fn num_sequences(self) -> usize {
        match self {
            Self::Prefill { .. } | Self::Decode { .. } => 1,
            Self::Batch { num_sequences } => num_sequences,
        }
    }

    /// Tokens that a step computes.
    pub(super) fn num_tokens(self) -> usize {
        match self {
            Self::Prefill { num_tokens } => num_tokens,
            Self::Decode { .. } => 1,
            Self::Batch { num_sequences } => num_sequences,
        }
    }

    /// Tokens of prompts that have to be computed before a step or in it.
    pub(super) fn num_prompt_tokens(self) -> usize {
        match self {
            Self::Prefill { num_tokens } => num_tokens,
            Self::Decode { context } => context,
            Self::Batch { num_sequences } => num_sequences * BATCH_CONTEXT,
        }
    }

    /// Tokens that a sequence holds after the last repetition, at most.
    pub(super) fn max_len(self) -> usize {
        // One step is not timed.
        let after = |context, steps: u32| context + 1 + steps as usize * Budget::MAX_REPETITIONS;
        match self {
            Self::Prefill { num_tokens } => num_tokens + 1,
            Self::Decode { context } => after(context + 1, DECODE_STEPS),
            Self::Batch { .. } => after(BATCH_CONTEXT, BATCH_STEPS),
        }
    }

    pub(super) fn work(self, costs: &Costs) -> Work {
        match self {
            Self::Prefill { num_tokens } => costs.prefill(num_tokens),
            Self::Decode { context } => costs.decode(1, context),
            Self::Batch { num_sequences } => costs.decode(num_sequences, BATCH_CONTEXT),
        }
    }
}
