//! What the engine knows of a request that has not ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::constraint::{ConstrainedText, Constraint, Lookahead};
use crate::error::Result;
use crate::prompt_lookup::PromptLookup;
use crate::request::{FinishReason, Request, RequestId, RequestOutput};
use crate::sampler::Sampler;
use crate::sampling_params::SamplingParams;
use crate::sampling_state::SamplingState;
use crate::scheduler::SequenceId;
use crate::stats::Latencies;
use crate::{TokenId, TokenLogprobs};

/// A request and its continuations.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: RequestId,
    pub(super) params: Arc<SamplingParams>,
    pub(super) num_prompt_tokens: usize,
    /// Tokens of the prompt, from the second on, whose log-probabilities are out.
    pub(super) num_prompt_logprobs: usize,
    pub(super) num_cached_tokens: usize,
    constraint: Option<Arc<dyn Constraint>>,
    /// What the continuations' guesses start from, if there are to be any; knows the prompt once one of them has.
    lookup: Option<PromptLookup>,
    /// The continuations that have begun, the first from the start; `None` for those that have ended.
    sequences: Vec<Option<RunningSequence>>,
    arrival: Instant,
    /// When the first step began that the request was part of.
    first_step: Option<Instant>,
}

/// A continuation that has not ended.
#[derive(Debug)]
pub(super) struct RunningSequence {
    state: SamplingState,
    /// `None` until something is to be guessed.
    lookup: Option<PromptLookup>,
    /// What it is held to.
    text: Option<ConstrainedText>,
    /// When its last token came.
    last_token: Option<Instant>,
}

impl Running {
    pub(super) fn new(
        id: RequestId,
        request: &Request,
        lookup: Option<PromptLookup>,
    ) -> Result<Self> {
        let params = Arc::new(request.params.clone());
        let state = SamplingState::new(&params, 0, &request.prompt_token_ids);
        let constraint = request.constraint.clone();
        let text = begin(constraint.as_deref(), &params)?;
        Ok(Self {
            id,
            params,
            num_prompt_tokens: request.prompt_token_ids.len(),
            num_prompt_logprobs: 0,
            num_cached_tokens: 0,
            constraint,
            lookup,
            sequences: vec![Some(RunningSequence { state, lookup: None, text, last_token: None })],
            arrival: Instant::now(),
            first_step: None,
        })
    }

    /// Which continuation a sequence is; `None` if it is another request's.
    pub(super) fn index_of(&self, id: SequenceId) -> Option<usize> {
        let index = usize::try_from(id.0.checked_sub(self.id.0)?).ok()?;
        (index < self.params.n()).then_some(index)
    }

    /// Whether there are continuations that begin with the first one's first token.
    pub(super) fn is_to_fork(&self) -> bool {
        self.sequences.len() < self.params.n()
    }

    /// Begins the other continuations.
    pub(super) fn fork(&mut self) -> Result<()> {
        let Some(first) = &self.sequences[0] else { return Ok(()) };
        // No token has come yet: what they are held to begins anew.
        let forks = (1..self.params.n()).map(|index| {
            Ok(Some(RunningSequence {
                state: first.state.fork(index as u64),
                lookup: None,
                text: begin(self.constraint.as_deref(), &self.params)?,
                last_token: None,
            }))
        });
        let forks: Vec<_> = forks.collect::<Result<_>>()?;
        self.sequences.extend(forks);
        Ok(())
    }

    /// The tokens that may follow the text of a continuation, prompt included: a part of it, empty if there is no guess.
    pub(super) fn propose<'t>(&mut self, index: usize, token_ids: &'t [TokenId]) -> &'t [TokenId] {
        let (Some(base), Some(Some(sequence))) = (&mut self.lookup, self.sequences.get_mut(index))
        else {
            return &[];
        };
        let lookup = sequence.lookup.get_or_insert_with(|| {
            base.index_prompt(&token_ids[..self.num_prompt_tokens]);
            base.clone()
        });
        lookup.propose(token_ids)
    }

    /// The continuations that have not ended, those that have not begun among them.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = usize> + use<'_> {
        (0..self.params.n()).filter(|&index| self.sequences.get(index).is_none_or(Option::is_some))
    }

    /// Ends a continuation that has tokens; returns whether it was the last one, `None` if it has none or has ended.
    pub(super) fn abort(&mut self, index: usize) -> Option<bool> {
        self.sequences.get(index)?.as_ref()?.last_token?;
        self.sequences.get_mut(index)?.take()?;
        Some(self.unfinished().next().is_none())
    }

    /// Nothing new of a continuation.
    pub(super) fn output(&self, index: usize) -> RequestOutput {
        let num_cached_tokens = self.num_cached_tokens;
        RequestOutput { num_cached_tokens, ..RequestOutput::empty(self.id, index) }
    }

    /// Chooses the next token of a continuation by its `logits` and adds it to `output`; it ends the continuation if
    /// `output` says so then.
    pub(super) fn sample(
        &mut self,
        sampler: &mut Sampler,
        logits: &[f32],
        max_model_len: usize,
        output: &mut RequestOutput,
    ) -> Result<TokenId> {
        let sequence = self.sequences[output.index].as_mut();
        let sequence = sequence.expect("only what has not ended is sampled");
        let state = &mut sequence.state;
        let mut text = sequence.text.as_ref().map(ConstrainedText::lock);
        let mask = text.as_mut().map(|text| text.next_tokens()).transpose()?;
        let token_id = sampler.sample_masked(logits, &self.params, state, mask)?;
        state.push(token_id);
        let num_tokens = state.num_output_tokens();
        let finished = if self.params.stops_at(token_id) {
            Some(FinishReason::Stop { token_id })
        } else {
            output.token_ids.push(token_id);
            if let Some(num_top) = self.params.logprobs() {
                output.logprobs.push(TokenLogprobs::new(logits, token_id, num_top)?);
            }
            let is_complete = match &mut text {
                Some(text) => text.push(token_id)?,
                None => false,
            };
            if is_complete {
                Some(FinishReason::Complete)
            } else if self.params.max_tokens() == Some(num_tokens) {
                Some(FinishReason::Length)
            } else {
                (self.num_prompt_tokens + num_tokens == max_model_len)
                    .then_some(FinishReason::ContextFull)
            }
        };
        output.finished = finished.map(Ok);
        Ok(token_id)
    }

    /// Has somebody find out what may come next in a continuation, unless it has ended or is held to nothing.
    pub(super) fn look_ahead(&self, index: usize, lookahead: &mut Lookahead) {
        let sequence = self.sequences.get(index).and_then(Option::as_ref);
        if let Some(text) = sequence.and_then(|sequence| sequence.text.as_ref()) {
            lookahead.ask(text);
        }
    }

    /// Takes note of the request's part in a step that begins.
    pub(super) fn begin_step(&mut self, now: Instant, latencies: &mut Latencies) {
        if self.first_step.is_none() {
            self.first_step = Some(now);
            latencies.queue.record(now - self.arrival, 1);
        }
    }

    /// Takes note of `num_tokens` new tokens of a continuation, at least one; returns whether the first of them is the
    /// request's first.
    pub(super) fn end_step(
        &mut self,
        index: usize,
        num_tokens: usize,
        now: Instant,
        latencies: &mut Latencies,
    ) -> bool {
        let Some(sequence) = self.sequences[index].as_mut() else { return false };
        let last_token = sequence.last_token.replace(now);
        if let Some(last) = last_token {
            let num_tokens = u32::try_from(num_tokens).unwrap_or(u32::MAX);
            latencies.inter_token.record(now - last, num_tokens);
        }
        let is_first = last_token.is_none() && index == 0;
        if is_first {
            let prefill = self.first_step.map_or(Duration::ZERO, |first_step| now - first_step);
            latencies.prefill.record(prefill, 1);
            latencies.time_to_first_token.record(now - self.arrival, 1);
        }
        is_first
    }

    /// Ends a continuation; returns whether it was the last one.
    pub(super) fn finish(&mut self, index: usize, now: Instant, latencies: &mut Latencies) -> bool {
        self.sequences[index] = None;
        latencies.end_to_end.record(now - self.arrival, 1);
        self.unfinished().next().is_none()
    }
}

/// A continuation that has not begun, if it is held to anything.
fn begin(
    constraint: Option<&dyn Constraint>,
    params: &Arc<SamplingParams>,
) -> Result<Option<ConstrainedText>> {
    constraint.map(|constraint| ConstrainedText::begin(constraint, params)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations_find_their_prompt_once_for_all() {
        let params = SamplingParams::default().with_n(3).unwrap();
        let request = Request::new(vec![1, 2, 3], params);
        let lookup = PromptLookup::new(1, 2, 4).unwrap();
        let mut running = Running::new(RequestId(0), &request, Some(lookup)).unwrap();
        running.fork().unwrap();
        // The first may have ended with its first token.
        running.sequences[0] = None;
        assert!(running.propose(0, &[1, 2, 3, 1]).is_empty());
        for index in 1..3 {
            assert_eq!(running.propose(index, &[1, 2, 3, 1]), [2, 3, 1]);
        }
        let lookups = running.sequences.iter().flatten().map(|it| it.lookup.as_ref().unwrap());
        let base = running.lookup.as_ref().unwrap();
        assert!(lookups.into_iter().all(|lookup| lookup.shares_prompt_with(base)));
    }
}
