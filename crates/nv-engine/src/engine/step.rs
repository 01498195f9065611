//! One step of the engine up to what was sampled: a flat batch through the model, and its logits through the sampler.
//!
//! Changes neither the scheduler nor which sequences there are: a step that fails half-way has decided nothing.

use std::time::{Duration, Instant};

use nv_kernels::Sequence;
use nv_qwen3::Elements;
use tracing::debug_span;

use super::Requests;
use crate::constraint::Lookahead;
use crate::error::{Error, Result};
use crate::model::{Batch, Model};
use crate::request::RequestOutput;
use crate::sampler::Sampler;
use crate::scheduler::{ScheduledSequence, Scheduler, SchedulerOutput, SequenceId};
use crate::{TokenId, TokenLogprobs};

/// Rows of logits that are there at once: bounds the memory that the logits of a long prompt take.
const MAX_LOGITS_ROWS: usize = 128;

/// Buffers of a step, which the next one uses again.
#[derive(Debug, Default)]
pub(super) struct Step {
    token_ids: Vec<TokenId>,
    positions: Vec<usize>,
    sequence_ids: Vec<SequenceId>,
    /// The tokens of the batch whose logits are wanted, in ascending order, and what for.
    rows: Vec<u32>,
    wanted: Vec<Wanted>,
    sampler: Sampler,
    /// Finds out what may come next while the model computes.
    pub(super) lookahead: Lookahead,
    /// How long the last step computed, up to logits.
    pub(super) model_time: Duration,
    /// How long it chose and judged tokens.
    pub(super) sampler_time: Duration,
}

/// What a row of logits is for.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// To judge the token that follows in the prompt.
    PromptLogprobs { scheduled: usize, token_id: TokenId },
    /// To choose the token that follows; `draft` is the one that was guessed to.
    Sample { scheduled: usize, draft: Option<TokenId> },
}

/// What a step made of one scheduled sequence.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What is new for whoever asked.
    pub(super) output: RequestOutput,
    /// The tokens that were sampled, a stop token included.
    pub(super) token_ids: Vec<TokenId>,
    /// The other continuations that begin here: their first token, and what is new.
    pub(super) forks: Vec<(TokenId, RequestOutput)>,
    /// Why the request can't go on.
    pub(super) error: Option<Error>,
    /// Whether the rows that follow come after something that wasn't sampled.
    is_over: bool,
}

impl Step {
    /// Computes what is scheduled; returns an outcome for each sequence, in order.
    pub(super) fn run<M: Model>(
        &mut self,
        model: &mut M,
        scheduler: &Scheduler,
        output: &SchedulerOutput,
        requests: &mut Requests,
    ) -> Result<Vec<Outcome>> {
        (self.model_time, self.sampler_time) = (Duration::ZERO, Duration::ZERO);
        self.pack(scheduler, output, requests);
        let mut first_token = 0;
        let sequences: Vec<Sequence<'_>> = output
            .scheduled
            .iter()
            .map(|scheduled| {
                let sequence = Sequence {
                    first_token,
                    num_tokens: scheduled.num_scheduled_tokens,
                    start_pos: scheduled.num_computed_tokens,
                    block_table: scheduler.block_table(scheduled),
                };
                first_token += sequence.num_tokens;
                sequence
            })
            .collect();
        let mut start = Instant::now();
        let span = debug_span!("forward").entered();
        let hidden_states = model.forward(&Batch {
            copies: &output.copies,
            token_ids: &self.token_ids,
            positions: &self.positions,
            sequences: &sequences,
            sequence_ids: &self.sequence_ids,
        })?;
        drop(span);
        self.model_time += lap(&mut start);

        let mut outcomes: Vec<Outcome> =
            output.scheduled.iter().map(|scheduled| Outcome::new(scheduled, requests)).collect();
        let vocab_size = model.vocab_size();
        let max_model_len = scheduler.config().max_model_len;
        let groups = self.rows.chunks(MAX_LOGITS_ROWS).zip(self.wanted.chunks(MAX_LOGITS_ROWS));
        for (rows, wanted) in groups {
            start = Instant::now();
            let span = debug_span!("logits", rows = rows.len()).entered();
            let logits = model.compute_logits(&hidden_states, rows)?; // [rows.len(), vocab_size]
            drop(span);
            self.model_time += lap(&mut start);
            let _span = debug_span!("sample").entered();
            let logits = Elements::of(&logits)?;
            for (&wanted, logits) in wanted.iter().zip(logits.as_slice()?.chunks(vocab_size)) {
                let (Wanted::PromptLogprobs { scheduled, .. } | Wanted::Sample { scheduled, .. }) =
                    wanted;
                let outcome = &mut outcomes[scheduled];
                let tools = (&mut self.sampler, &mut self.lookahead);
                outcome.take(wanted, logits, max_model_len, tools, requests);
            }
            self.sampler_time += lap(&mut start);
        }
        Ok(outcomes)
    }

    /// Lists the step's tokens, and the rows of logits that are wanted.
    fn pack(&mut self, scheduler: &Scheduler, output: &SchedulerOutput, requests: &Requests) {
        self.token_ids.clear();
        self.positions.clear();
        self.sequence_ids.clear();
        self.rows.clear();
        self.wanted.clear();
        for (index, scheduled) in output.scheduled.iter().enumerate() {
            let first = self.token_ids.len();
            let token_ids = scheduler.scheduled_token_ids(scheduled);
            let start_pos = scheduled.num_computed_tokens;
            self.token_ids.extend_from_slice(token_ids);
            self.positions.extend(start_pos..start_pos + token_ids.len());
            self.sequence_ids.push(scheduled.id);
            self.want_prompt_logprobs(index, first, scheduler, scheduled, requests);
            if scheduled.samples {
                let last = token_ids.len() - 1;
                for i in last - scheduled.num_draft_tokens..=last {
                    let draft = token_ids.get(i + 1).copied();
                    self.want(first + i, Wanted::Sample { scheduled: index, draft });
                }
            }
        }
    }

    /// Asks for the logits before those tokens of the prompt that have not been judged yet.
    fn want_prompt_logprobs(
        &mut self,
        index: usize,
        first: usize,
        scheduler: &Scheduler,
        scheduled: &ScheduledSequence,
        requests: &Requests,
    ) {
        let Some(request) = requests.find(scheduled.id) else { return };
        // The other continuations have the same prompt.
        if request.params.prompt_logprobs().is_none() || request.index_of(scheduled.id) != Some(0) {
            return;
        }
        let start = scheduled.num_computed_tokens;
        // The last token of the prompt is followed by none of the prompt's.
        let end = (start + scheduled.num_scheduled_tokens).min(request.num_prompt_tokens - 1);
        let token_ids = scheduler.token_ids(scheduled.id).unwrap_or_default();
        for position in start.max(request.num_prompt_logprobs)..end {
            let token_id = token_ids[position + 1];
            let wanted = Wanted::PromptLogprobs { scheduled: index, token_id };
            self.want(first + position - start, wanted);
        }
    }

    fn want(&mut self, row: usize, wanted: Wanted) {
        self.rows.push(u32::try_from(row).expect("a step has fewer than 2^32 tokens"));
        self.wanted.push(wanted);
    }
}

/// The time since `start`, which is now from here on.
fn lap(start: &mut Instant) -> Duration {
    let now = Instant::now();
    now - std::mem::replace(start, now)
}

impl Outcome {
    fn new(scheduled: &ScheduledSequence, requests: &mut Requests) -> Self {
        let (request, index) = requests.get_mut(scheduled.id);
        request.num_cached_tokens = scheduled.num_cached_tokens;
        Self {
            output: request.output(index),
            token_ids: Vec::new(),
            forks: Vec::new(),
            error: None,
            is_over: false,
        }
    }

    /// Uses a row of logits. The rows of a sequence come in order.
    fn take(
        &mut self,
        wanted: Wanted,
        logits: &[f32],
        max_model_len: usize,
        (sampler, lookahead): (&mut Sampler, &mut Lookahead),
        requests: &mut Requests,
    ) {
        if self.is_over {
            return;
        }
        let (request, index) = requests.get_mut(self.output.request_id.sequence(self.output.index));
        let result = match wanted {
            Wanted::PromptLogprobs { token_id, .. } => {
                let num_top = request.params.prompt_logprobs().unwrap_or(0);
                request.num_prompt_logprobs += 1;
                TokenLogprobs::new(logits, token_id, num_top)
                    .map(|logprobs| self.output.prompt_logprobs.push(logprobs))
            }
            Wanted::Sample { draft, .. } => (|| {
                if index == 0 && request.is_to_fork() {
                    request.fork()?;
                    for index in 1..request.params.n() {
                        let mut output = request.output(index);
                        let token_id =
                            request.sample(sampler, logits, max_model_len, &mut output)?;
                        if output.finished.is_none() {
                            request.look_ahead(index, lookahead);
                        }
                        self.forks.push((token_id, output));
                    }
                }
                let token_id = request.sample(sampler, logits, max_model_len, &mut self.output)?;
                self.token_ids.push(token_id);
                self.is_over = self.output.finished.is_some() || draft != Some(token_id);
                // Behind a guess that was right, the next row needs to know at once.
                if self.is_over && self.output.finished.is_none() {
                    request.look_ahead(index, lookahead);
                }
                Ok(())
            })(),
        };
        if let Err(error) = result {
            self.is_over = true;
            self.error = Some(error);
        }
    }
}
