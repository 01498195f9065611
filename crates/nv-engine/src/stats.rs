//! What an engine has done and is doing, as plain data.

use std::time::Duration;

use crate::scheduler::SchedulerStats;

/// Counts since the engine was made, and its state now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences that run and wait, blocks, prefix cache, preemptions, speculation.
    pub scheduler: SchedulerStats,
    /// Requests that were taken.
    pub num_requests: u64,
    /// Continuations that ended at a token, a length or the end of the context.
    pub num_finished: u64,
    /// Continuations that ended with an error.
    pub num_failed: u64,
    /// Continuations that were aborted.
    pub num_aborted: u64,
    /// Tokens of prompts that were computed, or found in the prefix cache. Recomputing after a preemption doesn't count.
    pub num_prompt_tokens: u64,
    /// Tokens that were generated, stop tokens included.
    pub num_generated_tokens: u64,
    /// How long things took.
    pub latencies: Latencies,
    /// What took the time of steps.
    pub step_times: StepTimes,
}

/// The time of all steps together, and what took it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct StepTimes {
    /// All of it.
    pub all: Duration,
    /// The model, up to logits.
    pub model: Duration,
    /// Choosing tokens by their logits, and judging them.
    pub sampler: Duration,
}

/// How long the parts of requests took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Latencies {
    /// From the request's arrival to the first step that it is part of.
    pub queue: Histogram,
    /// From that step's begin to the first token.
    pub prefill: Histogram,
    /// From the request's arrival to the first token.
    pub time_to_first_token: Histogram,
    /// From token to token. Tokens that come together share the time since the one before.
    pub inter_token: Histogram,
    /// From the request's arrival to a continuation's end.
    pub end_to_end: Histogram,
}

/// How many durations there were of which length.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Histogram {
    /// Durations up to each of [`Self::BOUNDS`], and above the one before; the last are those above all bounds.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// All durations together.
    pub sum: Duration,
}

impl EngineStats {
    /// The part of the KV cache's blocks that sequences hold, from 0 to 1.
    pub fn kv_cache_usage(&self) -> f64 {
        let SchedulerStats { num_used_blocks, num_blocks, .. } = self.scheduler;
        num_used_blocks as f64 / num_blocks.max(1) as f64
    }
}

impl StepTimes {
    /// The part of all time that neither model nor sampler took: scheduling, and keeping account of requests. From 0 to 1.
    pub fn overhead(&self) -> f64 {
        let rest = self.all.saturating_sub(self.model + self.sampler);
        if self.all.is_zero() { 0.0 } else { rest.as_secs_f64() / self.all.as_secs_f64() }
    }
}

impl Histogram {
    /// Upper bounds of the buckets, in microseconds: 100 µs to 2,500 s.
    pub const BOUNDS: [u64; 23] = [
        100,
        250,
        500,
        1_000,
        2_500,
        5_000,
        10_000,
        25_000,
        50_000,
        100_000,
        250_000,
        500_000,
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        25_000_000,
        50_000_000,
        100_000_000,
        250_000_000,
        500_000_000,
        1_000_000_000,
        2_500_000_000,
    ];

    /// Counts `count` durations that take `total` together, each an equal part of it.
    pub fn record(&mut self, total: Duration, count: u32) {
        if count == 0 {
            return;
        }
        let micros = (total / count).as_micros();
        let bucket = Self::BOUNDS.partition_point(|&bound| u128::from(bound) < micros);
        self.counts[bucket] += u64::from(count);
        self.sum += total;
    }

    /// How many durations there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their mean; `None` if there were none.
    pub fn mean(&self) -> Option<Duration> {
        let count = self.count();
        (count > 0).then(|| Duration::from_secs_f64(self.sum.as_secs_f64() / count as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_goes_into_the_first_bucket_whose_bound_it_does_not_exceed() {
        let check = |micros, bucket: usize| {
            let mut histogram = Histogram::default();
            histogram.record(Duration::from_micros(micros), 1);
            assert_eq!(histogram.counts.iter().position(|&count| count == 1), Some(bucket));
            assert_eq!(histogram.count(), 1);
        };
        check(0, 0);
        check(100, 0);
        check(101, 1);
        check(2_500_000_000, 22);
        check(2_500_000_001, 23);
        assert!(Histogram::BOUNDS.is_sorted());
    }

    #[test]
    fn durations_that_come_together_are_equal_parts() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.mean(), None);
        histogram.record(Duration::from_millis(30), 3);
        histogram.record(Duration::from_millis(50), 1);
        histogram.record(Duration::from_millis(50), 0);
        assert_eq!((histogram.counts[6], histogram.counts[8]), (3, 1));
        assert_eq!(histogram.mean(), Some(Duration::from_millis(20)));
    }

    #[test]
    fn overhead_is_what_neither_model_nor_sampler_took() {
        let seconds = Duration::from_secs;
        let check = |all, model, sampler, expected: f64| {
            let times =
                StepTimes { all: seconds(all), model: seconds(model), sampler: seconds(sampler) };
            assert!((times.overhead() - expected).abs() < 1e-12);
        };
        check(0, 0, 0, 0.0);
        check(100, 90, 6, 0.04);
        check(100, 90, 11, 0.0);
    }

    #[test]
    fn usage_is_a_part_of_all_blocks() {
        let mut stats = EngineStats::default();
        assert!(stats.kv_cache_usage() < f64::EPSILON);
        (stats.scheduler.num_blocks, stats.scheduler.num_used_blocks) = (8, 2);
        assert!((stats.kv_cache_usage() - 0.25).abs() < f64::EPSILON);
    }
}
