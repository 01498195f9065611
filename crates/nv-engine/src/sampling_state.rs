//! What of a sequence's past its next token depends on.

use std::collections::BTreeMap;

use crate::TokenId;
use crate::sampling_params::SamplingParams;

/// What the [`Sampler`](crate::Sampler) must know of one sequence beside its logits: which place comes next, and
/// which tokens came before. Kept up to date token by token; belongs to the sequence, not to where it is computed.
///
/// A clone under another `sequence` is a fork: see [`SamplingState::fork`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamplingState {
    sequence: u64,
    num_prompt_tokens: usize,
    num_output_tokens: usize,
    /// The tokens of prompt and continuation, and how often the continuation has them. Ascending, so that logits are
    /// visited in memory's order. `None` if no penalty asks for it.
    output_counts: Option<BTreeMap<TokenId, u32>>,
}

impl SamplingState {
    /// The state of the sequence number `sequence`, of those that grow under one seed, after its prompt.
    pub fn new(params: &SamplingParams, sequence: u64, prompt: &[TokenId]) -> Self {
        let counts = || prompt.iter().map(|&token_id| (token_id, 0)).collect();
        Self {
            sequence,
            num_prompt_tokens: prompt.len(),
            num_output_tokens: 0,
            output_counts: params.has_penalties().then(counts),
        }
    }

    /// The same past as another sequence's: its continuation is drawn anew from here on.
    #[must_use]
    pub fn fork(&self, sequence: u64) -> Self {
        Self { sequence, ..self.clone() }
    }

    /// Takes up one more token of the continuation. Takes logarithmic time at most.
    pub fn push(&mut self, token_id: TokenId) {
        self.num_output_tokens += 1;
        if let Some(counts) = &mut self.output_counts {
            *counts.entry(token_id).or_default() += 1;
        }
    }

    /// The number of the sequence among those that grow under one seed.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The place of the next token: how many came before it, prompt included.
    pub fn position(&self) -> usize {
        self.num_prompt_tokens + self.num_output_tokens
    }

    /// How many tokens the continuation has.
    pub fn num_output_tokens(&self) -> usize {
        self.num_output_tokens
    }

    /// The distinct tokens of prompt and continuation and how often the continuation has them; none if no penalty
    /// asks for them.
    pub(crate) fn output_counts(&self) -> impl Iterator<Item = (TokenId, u32)> {
        self.output_counts.iter().flatten().map(|(&token_id, &count)| (token_id, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_continuation_is_counted() {
        let params = SamplingParams::default().with_presence_penalty(1.0).unwrap();
        let mut state = SamplingState::new(&params, 3, &[7, 5, 7]);
        assert_eq!((state.position(), state.num_output_tokens()), (3, 0));
        state.push(5);
        state.push(9);
        state.push(9);
        assert_eq!(state.output_counts().collect::<Vec<_>>(), [(5, 1), (7, 0), (9, 2)]);
        assert_eq!((state.position(), state.num_output_tokens()), (6, 3));
        let fork = state.fork(4);
        assert_eq!((fork.sequence(), state.sequence()), (4, 3));
        assert_eq!(SamplingState { sequence: 3, ..fork }, state);
    }

    #[test]
    fn nothing_is_counted_that_no_penalty_asks_for() {
        let mut state = SamplingState::new(&SamplingParams::default(), 0, &[7, 5, 7]);
        state.push(5);
        assert_eq!(state.output_counts().count(), 0);
        assert_eq!((state.position(), state.num_output_tokens()), (4, 1));
    }
}
