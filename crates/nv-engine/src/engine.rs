//! Many requests at once: the scheduler says what runs, the model computes it, the sampler chooses.
//!
//! Synchronous: whoever holds the engine says when a step happens, and but for the model and what texts are held to all of
//! it happens on the caller's thread. Knows nothing of text or of where
//! requests come from.

mod config;
mod running;
mod step;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::time::Instant;

use nv_qwen3::Qwen3ForCausalLM;
use tracing::debug_span;
use tracing::field::Empty;

use crate::TokenId;
use crate::error::{Error, Result, panic_message};
use crate::kv_cache_size::KvCacheSize;
use crate::model::{Model, PagedQwen3};
use crate::prompt_lookup::PromptLookup;
use crate::request::{Gathered, Generation, Request, RequestId, RequestOutput};
use crate::scheduler::{
    NewSequence, ScheduledSequence, Scheduler, SchedulerConfig, SchedulerOutput, SequenceId,
};
use crate::stats::EngineStats;
use running::Running;
use step::{Outcome, Step};

pub use config::EngineConfig;

/// Serves requests with a model.
///
/// What a request gets does not depend on what else the engine does: batching, chunks of prompts, the prefix cache,
/// preemption and speculation change when its tokens come, never which.
///
/// ```
/// use nv_engine::{Engine, EngineConfig, KvCacheMemory, Request, SamplingParams};
/// use nv_qwen3::Qwen3ForCausalLM;
///
/// # fn example(model: Qwen3ForCausalLM, prompt: Vec<u32>) -> nv_engine::Result<()> {
/// let config = EngineConfig { kv_cache_memory: KvCacheMemory::Bytes(1 << 30), ..EngineConfig::default() };
/// let mut engine = Engine::new(model, config)?;
/// let params = SamplingParams::default().with_max_tokens(16)?;
/// engine.add_request(Request::new(prompt, params))?;
/// while engine.has_unfinished_requests() {
///     for output in engine.step() {
///         println!("{}: {:?} {:?}", output.request_id, output.token_ids, output.finished);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine<M = PagedQwen3> {
    model: M,
    scheduler: Scheduler,
    requests: Requests,
    /// What a sequence's guesses start from, if there are to be any.
    lookup: Option<PromptLookup>,
    next_id: u64,
    num_arrivals: u64,
    /// Counts; those of the scheduler are looked up.
    counts: EngineStats,
    output: SchedulerOutput,
    step: Step,
    draft: Vec<TokenId>,
}

/// The requests that have not ended, by their ids.
#[derive(Debug, Default)]
struct Requests(BTreeMap<RequestId, Running>);

impl Requests {
    /// The request of a sequence, unless it has ended.
    fn find(&self, id: SequenceId) -> Option<&Running> {
        let (_, request) = self.0.range(..=RequestId(id.0)).next_back()?;
        request.index_of(id).map(|_| request)
    }

    /// The request of a sequence that has not ended, and which of its continuations it is.
    fn get_mut(&mut self, id: SequenceId) -> (&mut Running, usize) {
        let request = self.0.range_mut(..=RequestId(id.0)).next_back();
        let found = request.and_then(|(_, request)| Some((request.index_of(id)?, request)));
        let (index, request) = found.expect("a sequence has a request until it ends");
        (request, index)
    }
}

impl Engine {
    /// An engine that serves `qwen3` from a paged KV cache of its own.
    ///
    /// # Errors
    /// As [`KvCacheSize::new`](crate::KvCacheSize::new) and [`Self::with_model`]; [`Error::KvCacheMemory`] if the system
    /// refuses the memory.
    pub fn new(qwen3: Qwen3ForCausalLM, config: EngineConfig) -> Result<Self> {
        let size = config.kv_cache_size(&qwen3)?;
        let dtype = config.kv_dtype_of(&qwen3);
        Self::with_model(PagedQwen3::new(qwen3, dtype, size)?, &config)
    }
}

impl<M: Model> Engine<M> {
    /// An engine that serves `model`, which brings its own KV cache: what `config` says of one has no part in it.
    ///
    /// # Errors
    /// [`Error::Setting`] and [`Error::SamplingParameter`] for settings that nothing could run under.
    pub fn with_model(model: M, config: &EngineConfig) -> Result<Self> {
        let scheduler = config.scheduler(model.kv_cache_size(), model.max_position_embeddings())?;
        Ok(Self {
            scheduler: Scheduler::new(scheduler)?,
            lookup: config.prompt_lookup()?,
            model,
            requests: Requests::default(),
            next_id: 0,
            num_arrivals: 0,
            counts: EngineStats::default(),
            output: SchedulerOutput::default(),
            step: Step::default(),
            draft: Vec::new(),
        })
    }

    /// Takes a request; the next steps compute it.
    ///
    /// More `max_tokens` than there is room for behind the prompt are no error, as none are: the text ends with
    /// [`FinishReason::ContextFull`](crate::FinishReason::ContextFull) at the `max_model_len` of
    /// [`Self::scheduler_config`].
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`]; [`Error::PromptTooLong`] if the prompt leaves no room for a token in the model's context,
    /// [`Error::RequestTooLong`] if in `max_model_len`; [`Error::TokenId`] for a token that the model doesn't know;
    /// [`Error::SamplingParameter`] as [`SamplingParams::check`](crate::SamplingParams::check); [`Error::Constraint`]
    /// if the constraint panics.
    pub fn add_request(&mut self, request: Request) -> Result<RequestId> {
        let (params, vocab_size) = (&request.params, self.model.vocab_size());
        params.check(vocab_size)?;
        let prompt = &request.prompt_token_ids;
        if let Some(&token_id) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenId { token_id, num_logits: vocab_size });
        }
        let max_position_embeddings = self.model.max_position_embeddings();
        if prompt.len() >= max_position_embeddings {
            let num_tokens = prompt.len();
            return Err(Error::PromptTooLong { num_tokens, max_position_embeddings });
        }
        // A prompt that leaves no room is refused by the scheduler.
        let room = self.scheduler.config().max_model_len.saturating_sub(prompt.len()).max(1);
        let id = RequestId(self.next_id);
        let running = Running::new(id, &request, self.lookup.clone())?;
        self.scheduler.add_sequence(NewSequence {
            id: id.sequence(0),
            max_tokens: params.max_tokens().map(|max_tokens| max_tokens.min(room)),
            priority: request.priority,
            arrival: self.num_arrivals,
            // What is found is not computed, and has no logits.
            skip_prefix_cache: params.prompt_logprobs().is_some(),
            cache_salt: request.cache_salt,
            prompt_token_ids: request.prompt_token_ids,
        })?;
        self.next_id += running.params.n() as u64;
        self.num_arrivals += 1;
        self.counts.num_requests += 1;
        // While the prompt is computed.
        running.look_ahead(0, &mut self.step.lookahead);
        self.requests.0.insert(id, running);
        Ok(id)
    }

    /// Computes one step: a token for every continuation that runs, and parts of prompts. Returns what is new.
    ///
    /// If the model fails, or panics, the requests of the step end with that error, and the others go on. A logit that is
    /// NaN ends its own request alone.
    pub fn step(&mut self) -> Vec<RequestOutput> {
        let start = Instant::now();
        let span = debug_span!("step", sequences = Empty, tokens = Empty).entered();
        debug_span!("schedule").in_scope(|| self.scheduler.schedule(&mut self.output));
        span.record("sequences", self.output.scheduled.len());
        span.record("tokens", self.output.num_scheduled_tokens());
        if self.output.scheduled.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        for scheduled in &self.output.scheduled {
            let (request, _) = self.requests.get_mut(scheduled.id);
            request.begin_step(now, &mut self.counts.latencies);
        }
        let Self { model, scheduler, output, requests, step, .. } = self;
        // What a panic leaves half-done goes with the requests of the step; the step's buffers are cleared by the next.
        let run = AssertUnwindSafe(|| step.run(model, scheduler, output, requests));
        let outcomes = panic::catch_unwind(run)
            .unwrap_or_else(|panic| Err(Error::Panic { message: panic_message(&*panic) }));

        let now = Instant::now();
        let scheduled = std::mem::take(&mut self.output.scheduled);
        let mut outputs = Vec::with_capacity(scheduled.len());
        match outcomes {
            Ok(outcomes) => {
                for (scheduled, outcome) in scheduled.iter().zip(outcomes) {
                    self.apply(scheduled, outcome, now, &mut outputs);
                }
            }
            Err(error) => {
                for scheduled in &scheduled {
                    // Another continuation's turn may have ended it.
                    if let Some(id) = self.requests.find(scheduled.id).map(|request| request.id) {
                        self.fail(id, &error, &mut outputs);
                    }
                }
            }
        }
        self.output.scheduled = scheduled;
        let times = &mut self.counts.step_times;
        times.model += self.step.model_time;
        times.sampler += self.step.sampler_time;
        times.all += start.elapsed();
        outputs
    }

    /// Ends a request, at any time; returns whether there was one. No output of it comes after that.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let Some(request) = self.requests.0.remove(&id) else { return false };
        for index in request.unfinished() {
            self.scheduler.abort(id.sequence(index));
            self.counts.num_aborted += 1;
        }
        true
    }

    /// Ends one continuation of a request, after its first token, if its text is over for a reason that the engine doesn't
    /// know; the others go on. Returns whether there was one.
    pub fn abort_continuation(&mut self, id: RequestId, index: usize) -> bool {
        let Some(request) = self.requests.0.get_mut(&id) else { return false };
        let Some(is_last) = request.abort(index) else { return false };
        self.scheduler.abort(id.sequence(index));
        self.counts.num_aborted += 1;
        if is_last {
            self.requests.0.remove(&id);
        }
        true
    }

    /// Takes the blocks of a request's continuations that run, as if others had needed them; they are computed anew when
    /// their turn comes. Returns whether any ran. What the request gets is the same.
    pub fn preempt(&mut self, id: RequestId) -> bool {
        let Some(request) = self.requests.0.get(&id) else { return false };
        let mut any = false;
        for index in request.unfinished() {
            any |= self.scheduler.preempt(id.sequence(index));
        }
        any
    }

    /// Whether there is anything to compute.
    pub fn has_unfinished_requests(&self) -> bool {
        !self.requests.0.is_empty()
    }

    /// Serves `requests` to their ends, in the order of `requests`; each that is refused or fails has its error.
    ///
    /// For an engine that has nothing else to do: what is new of other requests in the meantime is lost.
    pub fn generate(&mut self, requests: Vec<Request>) -> Vec<Result<Generation>> {
        let mut by_id = BTreeMap::new();
        let mut done: Vec<Option<Result<Generation>>> = requests.iter().map(|_| None).collect();
        for (place, request) in requests.into_iter().enumerate() {
            let n = request.params.n();
            match self.add_request(request) {
                Ok(id) => drop(by_id.insert(id, (place, Gathered::new(id, n)))),
                Err(error) => done[place] = Some(Err(error)),
            }
        }
        while !by_id.is_empty() {
            for output in self.step() {
                let id = output.request_id;
                let Some((_, gathered)) = by_id.get_mut(&id) else { continue };
                gathered.push(output);
                if gathered.is_finished()
                    && let Some((place, gathered)) = by_id.remove(&id)
                {
                    done[place] = Some(gathered.finish());
                }
            }
        }
        done.into_iter().map(|generation| generation.unwrap_or(Err(Error::Stopped))).collect()
    }

    /// Counts and state.
    pub fn stats(&self) -> EngineStats {
        EngineStats { scheduler: self.scheduler.stats(), ..self.counts }
    }

    /// The limits that requests are served under. Its `max_model_len` is the longest sequence that can be served, prompt
    /// and continuation together.
    pub fn scheduler_config(&self) -> &SchedulerConfig {
        self.scheduler.config()
    }

    /// The KV cache; prints as what a user wants to know of it.
    pub fn kv_cache_size(&self) -> KvCacheSize {
        self.model.kv_cache_size()
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model; requests that have not ended are given up.
    pub fn into_model(self) -> M {
        self.model
    }

    /// Makes what a step found true.
    fn apply(
        &mut self,
        scheduled: &ScheduledSequence,
        outcome: Outcome,
        now: Instant,
        outputs: &mut Vec<RequestOutput>,
    ) {
        let Outcome { output, token_ids, forks, error, .. } = outcome;
        if let Some(error) = error {
            self.fail(output.request_id, &error, outputs);
            return;
        }
        if !self.requests.0.contains_key(&output.request_id) {
            // Another continuation has failed in this step.
            return;
        }
        for (token_id, output) in forks {
            if output.finished.is_none() {
                let child = output.request_id.sequence(output.index);
                self.scheduler
                    .fork(scheduled, child, token_id)
                    .expect("the id is new and the sequence in a step under way");
            }
            self.push(output, 1, now, outputs);
        }
        let is_finished = output.finished.is_some();
        self.scheduler.update(scheduled, &token_ids, is_finished);
        if !is_finished && scheduled.samples {
            self.propose(scheduled.id);
        }
        self.push(output, token_ids.len(), now, outputs);
    }

    /// Guesses what comes next.
    fn propose(&mut self, id: SequenceId) {
        let (request, index) = self.requests.get_mut(id);
        let Some(token_ids) = self.scheduler.token_ids(id) else { return };
        self.draft.clear();
        self.draft.extend_from_slice(request.propose(index, token_ids));
        if !self.draft.is_empty() {
            self.scheduler.propose(id, &self.draft).expect("its tokens were just there");
        }
    }

    /// Hands out what is new of a continuation, if anything is: `num_tokens` tokens, a stop token included.
    fn push(
        &mut self,
        output: RequestOutput,
        num_tokens: usize,
        now: Instant,
        outputs: &mut Vec<RequestOutput>,
    ) {
        let Some(request) = self.requests.0.get_mut(&output.request_id) else { return };
        let counts = &mut self.counts;
        if num_tokens > 0 {
            counts.num_generated_tokens += num_tokens as u64;
            if request.end_step(output.index, num_tokens, now, &mut counts.latencies) {
                counts.num_prompt_tokens += request.num_prompt_tokens as u64;
            }
        }
        if output.finished.is_some() {
            counts.num_finished += 1;
            if request.finish(output.index, now, &mut counts.latencies) {
                self.requests.0.remove(&output.request_id);
            }
        }
        if num_tokens > 0 || !output.prompt_logprobs.is_empty() {
            outputs.push(output);
        }
    }

    /// Ends a request with an error, if it has not ended yet.
    fn fail(&mut self, id: RequestId, error: &Error, outputs: &mut Vec<RequestOutput>) {
        let Some(request) = self.requests.0.remove(&id) else { return };
        for index in request.unfinished() {
            self.scheduler.abort(id.sequence(index));
            self.counts.num_failed += 1;
            outputs.push(RequestOutput {
                finished: Some(Err(error.clone())),
                ..request.output(index)
            });
        }
    }
}
