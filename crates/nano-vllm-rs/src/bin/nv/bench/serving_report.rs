//! What serving requests came to, for people and for programs.

use std::fmt;

use serde_json::{Value, json};

use super::serving::{Served, quantile};
use super::traffic::Arrivals;
use crate::format::{grouped, percent, plural, seconds};
use crate::table::{Align, Table};

/// The shares of requests or tokens whose times are told.
const SHARES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

impl Served {
    fn output_tokens_a_second(&self) -> f64 {
        self.num_output_tokens as f64 / self.seconds
    }

    fn total_tokens_a_second(&self) -> f64 {
        (self.num_input_tokens + self.num_output_tokens) as f64 / self.seconds
    }

    /// How close it comes to the least time that it could take.
    fn ratio(&self) -> Option<f64> {
        self.floor_seconds.map(|floor_seconds| floor_seconds / self.seconds)
    }

    fn max_kv_cache_usage(&self) -> f64 {
        let stats = self.stats.scheduler;
        stats.max_num_used_blocks as f64 / stats.num_blocks.max(1) as f64
    }

    fn sampler_share(&self) -> f64 {
        let times = self.stats.step_times;
        times.sampler.as_secs_f64() / times.all.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Names as in JSON, and as in the table.
    fn times(&self) -> [(&'static str, &'static str, &[f64]); 3] {
        [
            ("time_to_first_token", "time to first token", &self.time_to_first_token),
            ("inter_token", "from token to token", &self.inter_token),
            ("end_to_end", "from arrival to end", &self.end_to_end),
        ]
    }

    /// The numbers of the table in seconds and tokens.
    pub(super) fn to_json(&self) -> Value {
        let stats = self.stats.scheduler;
        let (concurrency, rate) = match self.arrivals {
            Arrivals::Concurrency(concurrency) => (Some(concurrency), None),
            Arrivals::Rate(rate) => (None, Some(rate)),
        };
        let mut json = json!({
            "requests": self.num_requests,
            "concurrency": concurrency,
            "rate": rate,
            "steps": stats.num_steps,
            "seconds": self.seconds,
            "input_tokens": self.num_input_tokens,
            "output_tokens": self.num_output_tokens,
            "output_tokens_per_second": self.output_tokens_a_second(),
            "total_tokens_per_second": self.total_tokens_a_second(),
            "read_bandwidth": self.limits.read_bandwidth,
            "product_peak": self.limits.product_peak,
            "floor_seconds": self.floor_seconds,
            "ratio": self.ratio(),
            "kv_blocks": stats.num_blocks,
            "max_kv_blocks_used": stats.max_num_used_blocks,
            "prefix_queries": stats.num_prefix_queries,
            "prefix_hits": stats.num_prefix_hits,
            "preemptions": stats.num_preemptions,
            "draft_tokens": stats.num_draft_tokens,
            "accepted_tokens": stats.num_accepted_tokens,
            "sampler_share": self.sampler_share(),
            "overhead_share": self.stats.step_times.overhead(),
        });
        for (name, _, sorted) in self.times() {
            json[name] = SHARES
                .map(|(share, q)| (share.to_owned(), json!(quantile(sorted, q))))
                .into_iter()
                .collect();
        }
        json
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats.scheduler;
        let arrivals = match self.arrivals {
            Arrivals::Concurrency(concurrency) => {
                format!("{} at once", grouped(concurrency as u64))
            }
            Arrivals::Rate(rate) => format!("{rate} a second"),
        };
        let title = format!("{}, {arrivals}", plural(self.num_requests, "request"));
        let mut table = Table::new(title, [Align::Left, Align::Right]);
        let speed = |tokens_a_second: f64| format!("{tokens_a_second:.1} tok/s");
        table.row([&"time", &seconds(self.seconds)]);
        table.row([&"input tokens", &grouped(self.num_input_tokens as u64)]);
        table.row([&"output tokens", &grouped(self.num_output_tokens as u64)]);
        table.row([&"output", &speed(self.output_tokens_a_second())]);
        table.row([&"input and output", &speed(self.total_tokens_a_second())]);
        if let (Some(floor_seconds), Some(ratio)) = (self.floor_seconds, self.ratio()) {
            table.row([&"floor: prompts' arithmetic, then decoding", &seconds(floor_seconds)]);
            table.row([&"ratio", &format!("{ratio:.2}")]);
        }
        table.row([&"steps", &grouped(stats.num_steps)]);
        table.row([&"sampling, of a step", &percent(self.sampler_share())]);
        table.row([&"outside model and sampling", &percent(self.stats.step_times.overhead())]);
        table.row([&"KV cache at most", &percent(self.max_kv_cache_usage())]);
        let of = |part: u64, all: u64| format!("{} of {} tokens", grouped(part), grouped(all));
        table.row([&"prefix cache", &of(stats.num_prefix_hits, stats.num_prefix_queries)]);
        table.row([&"preemptions", &grouped(stats.num_preemptions)]);
        if stats.num_draft_tokens > 0 {
            table.row([&"right guesses", &of(stats.num_accepted_tokens, stats.num_draft_tokens)]);
        }
        write!(f, "{table}")?;

        let right = [Align::Left, Align::Right, Align::Right, Align::Right];
        let mut table = Table::new("latencies", right);
        let [p50, p90, p99] = SHARES;
        table.row([&"", &p50.0, &p90.0, &p99.0]);
        for (_, name, sorted) in self.times() {
            let at = |q| quantile(sorted, q).map(seconds).unwrap_or_default();
            table.row([&name, &at(p50.1), &at(p90.1), &at(p99.1)]);
        }
        write!(f, "\n{table}")
    }
}
