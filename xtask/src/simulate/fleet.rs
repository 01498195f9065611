//! Engines that each have a scheduler, a model that takes time but computes nothing, and a clock of their own.

use std::time::{Duration, Instant};

use nv_engine::{
    NewSequence, Result, ScheduledSequence, Scheduler, SchedulerConfig, SchedulerOutput,
    SchedulerStats, SequenceId, TokenId,
};

use super::histogram::Histogram;
use super::workload::{Conversation, Kind, MAX_MODEL_LEN, Request, Workload};

/// What a step takes on the engine that is imagined: an accelerator under a model of eight billion parameters.
const SECONDS_PER_STEP: f64 = 0.010;
const SECONDS_PER_TOKEN: f64 = 50e-6;
/// For each token of a sequence's past that a new token attends, once a step.
const SECONDS_PER_CACHED_TOKEN: f64 = 70e-9;

/// What the model answers with; never asked for, as nothing in it depends on anything.
const ANSWER: TokenId = 0;

/// Limits of every engine: 256 sequences and 4,096 tokens a step, a KV cache of 256k tokens in blocks of 16, as is usual on
/// accelerators.
fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 256,
        max_num_batched_tokens: 4096,
        block_size: 16,
        ..SchedulerConfig::new(16 * 1024, MAX_MODEL_LEN)
    }
}

/// What happened, in imagined time.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// Requests that ended.
    pub num_requests: usize,
    /// Seconds from the start to the end of the last request.
    pub seconds: f64,
    /// Tokens in prompts.
    pub num_prompt_tokens: u64,
    /// Tokens in answers.
    pub num_output_tokens: u64,
    /// Tokens that were computed, those of preempted sequences again.
    pub num_computed_tokens: u64,
    /// Steps of all engines.
    pub num_steps: u64,
    /// Times that a sequence lost its blocks.
    pub num_preemptions: u64,
    /// Prompt tokens that the prefix caches had.
    pub num_prefix_hits: u64,
    /// Share of the blocks that sequences held, in the mean over the time that engines worked.
    pub mean_usage: f64,
    /// The largest share of an engine's blocks.
    pub max_usage: f64,
    /// Sequences that ran at once, in the mean over the time that engines worked.
    pub mean_running: f64,
    /// The most sequences that waited at once at one engine.
    pub max_waiting: usize,
    /// From arrival to the first step, by the kind of request.
    pub waits: Vec<(&'static str, Histogram)>,
    /// From arrival to the first token.
    pub first_tokens: Histogram,
    /// From each token to the next.
    pub inter_tokens: Histogram,
    /// Blocks that were still held at the end.
    pub num_lost_blocks: usize,
}

/// What is left to do for a request, and what it has got.
#[derive(Debug)]
struct Progress {
    kind: Kind,
    arrival: f64,
    num_output_tokens: usize,
    num_sampled_tokens: usize,
    has_started: bool,
    last_token: f64,
}

#[derive(Debug)]
struct Engine {
    scheduler: Scheduler,
    output: SchedulerOutput,
    /// Seconds from the start.
    now: f64,
    seconds_worked: f64,
    /// Seconds times share of the blocks, and times sequences.
    usage: f64,
    running: f64,
}

/// The fleet and all requests so far.
#[derive(Debug)]
pub(super) struct Fleet {
    engines: Vec<Engine>,
    requests: Vec<Progress>,
    outcome: Outcome,
    /// Real time that scheduling and its bookkeeping took.
    scheduling: Duration,
}

impl Fleet {
    /// Idle engines.
    ///
    /// # Errors
    /// If a scheduler refuses the limits.
    pub(super) fn new(num_engines: usize) -> Result<Self> {
        let engine = || {
            Ok(Engine {
                scheduler: Scheduler::new(config())?,
                output: SchedulerOutput::default(),
                now: 0.0,
                seconds_worked: 0.0,
                usage: 0.0,
                running: 0.0,
            })
        };
        let waits = Kind::ALL.map(|kind| (kind.name(), Histogram::default())).into();
        Ok(Self {
            engines: (0..num_engines).map(|_| engine()).collect::<Result<_>>()?,
            requests: Vec::new(),
            outcome: Outcome { waits, ..Outcome::default() },
            scheduling: Duration::ZERO,
        })
    }

    /// Serves the next `num_requests` requests of `workload`; returns what happened, and the real time that scheduling
    /// took.
    ///
    /// # Errors
    /// If a request is refused.
    pub(super) fn serve(
        mut self,
        workload: &mut Workload,
        num_requests: usize,
    ) -> Result<(Outcome, Duration)> {
        for _ in 0..num_requests {
            let request = workload.next_request();
            self.work_until(request.time, workload);
            self.add(request)?;
        }
        self.work_until(f64::INFINITY, workload);
        Ok(self.finish())
    }

    /// Sends a request to the engine that knows its beginning, or else to the one with the least to do.
    fn add(&mut self, request: Request) -> Result<()> {
        let load = |engine: &Engine| {
            let SchedulerStats { num_running, num_waiting, num_used_blocks, .. } =
                engine.scheduler.stats();
            (num_waiting, num_running, num_used_blocks)
        };
        let least = self.engines.iter_mut().min_by_key(|engine| load(engine));
        let number = self.requests.len() as u64;
        let Request { time, kind, prompt_token_ids, num_output_tokens, engine } = request;
        self.outcome.num_prompt_tokens += prompt_token_ids.len() as u64;
        self.requests.push(Progress {
            kind,
            arrival: time,
            num_output_tokens,
            num_sampled_tokens: 0,
            has_started: false,
            last_token: time,
        });
        let engine = match engine {
            Some(engine) => &mut self.engines[engine],
            None => least.expect("a fleet has engines"),
        };
        if !engine.scheduler.has_unfinished_sequences() {
            engine.now = engine.now.max(time);
        }
        engine.scheduler.add_sequence(NewSequence {
            id: SequenceId(number),
            prompt_token_ids,
            max_tokens: Some(num_output_tokens),
            priority: kind.priority(),
            arrival: number,
            cache_salt: None,
            skip_prefix_cache: false,
        })
    }

    /// Lets every engine work as long as it has something to do and its clock is not past `time`.
    fn work_until(&mut self, time: f64, workload: &mut Workload) {
        for engine in 0..self.engines.len() {
            while self.engines[engine].now < time
                && self.engines[engine].scheduler.has_unfinished_sequences()
            {
                self.step(engine, workload);
            }
        }
    }

    fn step(&mut self, number: usize, workload: &mut Workload) {
        let engine = &mut self.engines[number];
        let outcome = &mut self.outcome;
        let start = engine.now;
        let clock = Instant::now();
        engine.scheduler.schedule(&mut engine.output);
        self.scheduling += clock.elapsed();

        let num_tokens = engine.output.num_scheduled_tokens();
        let past = |sequence: &ScheduledSequence| sequence.num_computed_tokens;
        let num_cached_tokens: usize = engine.output.scheduled.iter().map(past).sum();
        let seconds = SECONDS_PER_STEP
            + SECONDS_PER_TOKEN * num_tokens as f64
            + SECONDS_PER_CACHED_TOKEN * num_cached_tokens as f64;
        engine.now += seconds;
        engine.seconds_worked += seconds;
        let stats = engine.scheduler.stats();
        let usage = stats.num_used_blocks as f64 / stats.num_blocks as f64;
        engine.usage += usage * seconds;
        engine.running += stats.num_running as f64 * seconds;
        outcome.max_usage = outcome.max_usage.max(usage);
        outcome.max_waiting = outcome.max_waiting.max(stats.num_waiting);
        outcome.num_steps += 1;
        outcome.num_computed_tokens += num_tokens as u64;

        let clock = Instant::now();
        for sequence in &engine.output.scheduled {
            let request = &mut self.requests[index(sequence)];
            request.num_sampled_tokens += usize::from(sequence.samples);
            let ends = request.num_sampled_tokens == request.num_output_tokens;
            if ends && request.kind == Kind::Chat {
                let past = engine.scheduler.token_ids(sequence.id).unwrap_or_default();
                let token_ids = [past, &[ANSWER]].concat();
                workload.remember(Conversation { token_ids, engine: number });
            }
            let sampled: &[TokenId] = if sequence.samples { &[ANSWER] } else { &[] };
            engine.scheduler.update(sequence, sampled, ends);
        }
        self.scheduling += clock.elapsed();

        for sequence in &engine.output.scheduled {
            let request = &mut self.requests[index(sequence)];
            if !std::mem::replace(&mut request.has_started, true) {
                let wait = start - request.arrival;
                outcome.waits[request.kind as usize].1.add(wait);
            }
            if sequence.samples {
                let is_first = request.num_sampled_tokens == 1;
                let histogram =
                    if is_first { &mut outcome.first_tokens } else { &mut outcome.inter_tokens };
                histogram.add(engine.now - request.last_token);
                request.last_token = engine.now;
                outcome.num_output_tokens += 1;
                outcome.num_requests +=
                    usize::from(request.num_sampled_tokens == request.num_output_tokens);
            }
        }
    }

    fn finish(mut self) -> (Outcome, Duration) {
        let outcome = &mut self.outcome;
        let seconds_worked: f64 = self.engines.iter().map(|engine| engine.seconds_worked).sum();
        for engine in &self.engines {
            let stats = engine.scheduler.stats();
            outcome.seconds = outcome.seconds.max(engine.now);
            outcome.num_preemptions += stats.num_preemptions;
            outcome.num_prefix_hits += stats.num_prefix_hits;
            outcome.num_lost_blocks += stats.num_used_blocks;
            outcome.mean_usage += engine.usage / seconds_worked;
            outcome.mean_running += engine.running / seconds_worked;
        }
        (self.outcome, self.scheduling)
    }
}

/// The request that a sequence is; ids count them.
fn index(sequence: &ScheduledSequence) -> usize {
    usize::try_from(sequence.id.0).expect("requests fit into memory")
}
