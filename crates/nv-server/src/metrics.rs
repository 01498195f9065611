//! `/metrics`: counts in Prometheus' text format, under the names that vLLM's have.

use std::fmt::{Display, Write};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use nv_engine::{EngineStats, Histogram};

use crate::counts::Ending;
use crate::error::Result;
use crate::server::Server;

pub(crate) async fn metrics(State(server): State<Server>) -> Result<impl IntoResponse> {
    let stats = server.engine().stats().await?;
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], Page::new(&server).write(&stats)))
}

struct Page<'a> {
    server: &'a Server,
    /// What every sample is labelled with.
    labels: String,
    text: String,
}

impl<'a> Page<'a> {
    fn new(server: &'a Server) -> Self {
        let name = server.model_name().replace('\\', "\\\\").replace('"', "\\\"");
        let labels = format!("engine=\"0\",model_name=\"{}\"", name.replace('\n', "\\n"));
        Self { server, labels, text: String::new() }
    }

    fn write(mut self, stats: &EngineStats) -> String {
        let scheduler = &stats.scheduler;
        self.gauge("num_requests_running", "Sequences that run.", scheduler.num_running);
        self.gauge("num_requests_waiting", "Sequences that wait.", scheduler.num_waiting);
        for name in ["kv_cache_usage_perc", "gpu_cache_usage_perc"] {
            let help = "Part of the KV cache's blocks that sequences hold, from 0 to 1.";
            self.gauge(name, help, stats.kv_cache_usage());
        }
        let (block_size, num_blocks) = self.server.kv_cache();
        self.head("cache_config_info", "gauge", "The KV cache: tokens a block, and blocks.");
        let cache = format!("block_size=\"{block_size}\",num_gpu_blocks=\"{num_blocks}\"");
        self.sample("cache_config_info", &cache, 1);

        for (name, help, count) in [
            (
                "prefix_cache_queries",
                "Prompt tokens that were looked up in the prefix cache.",
                scheduler.num_prefix_queries,
            ),
            (
                "prefix_cache_hits",
                "Prompt tokens that the prefix cache had.",
                scheduler.num_prefix_hits,
            ),
            (
                "num_preemptions",
                "Times that a sequence lost its blocks.",
                scheduler.num_preemptions,
            ),
            ("prompt_tokens", "Tokens of prompts.", stats.num_prompt_tokens),
            ("generation_tokens", "Tokens that were generated.", stats.num_generated_tokens),
            (
                "spec_decode_num_draft_tokens",
                "Tokens that were guessed ahead.",
                scheduler.num_draft_tokens,
            ),
            (
                "spec_decode_num_accepted_tokens",
                "Tokens that were guessed right.",
                scheduler.num_accepted_tokens,
            ),
        ] {
            let name = format!("{name}_total");
            self.head(&name, "counter", help);
            self.sample(&name, "", count);
        }
        let counts = self.server.counts();
        let (ended, end_to_end) =
            (Ending::ALL.map(|e| (e, counts.num_ended(e))), counts.end_to_end);
        drop(counts);
        self.head("request_success_total", "counter", "Continuations that ended, by how they did.");
        for (ending, count) in ended {
            let label = format!("finished_reason=\"{}\"", ending.name());
            self.sample("request_success_total", &label, count);
        }

        let latencies = &stats.latencies;
        let token = &latencies.inter_token;
        for (name, help, histogram) in [
            (
                "time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                &latencies.time_to_first_token,
            ),
            ("inter_token_latency_seconds", "From token to token.", token),
            ("time_per_output_token_seconds", "From token to token, by an older name.", token),
            (
                "request_queue_time_seconds",
                "From a request's arrival to its first step.",
                &latencies.queue,
            ),
            (
                "request_prefill_time_seconds",
                "From a request's first step to its first token.",
                &latencies.prefill,
            ),
            (
                "e2e_request_latency_seconds",
                "From a request's arrival to a continuation's end.",
                &end_to_end,
            ),
        ] {
            self.histogram(name, help, histogram);
        }
        self.text
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "vllm:{name}{{{}{comma}{labels}}} {value}", self.labels);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.sample(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (bound, num) in Histogram::BOUNDS.into_iter().zip(histogram.counts) {
            count += num;
            self.sample(&bucket, &format!("le=\"{}\"", bound as f64 / 1e6), count);
        }
        self.sample(&bucket, "le=\"+Inf\"", histogram.count());
        self.sample(&format!("{name}_sum"), "", histogram.sum.as_secs_f64());
        self.sample(&format!("{name}_count"), "", histogram.count());
    }
}
