//! The outcome of a simulation, for people to read.

use std::fmt::Write;
use std::time::Duration;

use super::{Args, Histogram, Outcome};

/// Tables in Markdown.
pub(super) fn markdown(args: &Args, outcome: &Outcome, scheduling: Duration) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write(&mut text, args, outcome, scheduling);
    text
}

fn write(
    text: &mut String,
    args: &Args,
    outcome: &Outcome,
    scheduling: Duration,
) -> std::fmt::Result {
    let Outcome { seconds, num_requests, .. } = *outcome;
    let per_second = |count: u64| count as f64 / seconds;
    let percent = |part: f64| 100.0 * part;
    writeln!(text, "# {num_requests} requests on {} engines\n", args.engines)?;
    writeln!(
        text,
        "Arrivals: {} a second in the mean, seed {}. Times but for the last row are imagined.\n",
        args.rate, args.seed
    )?;
    writeln!(text, "| what | |\n| --- | ---: |")?;
    let mut row = |what: &str, value: String| writeln!(text, "| {what} | {value} |");
    row("time", format!("{seconds:.0} s"))?;
    row("requests", format!("{:.1} a second", num_requests as f64 / seconds))?;
    row("prompt tokens", format!("{:.0} a second", per_second(outcome.num_prompt_tokens)))?;
    row("output tokens", format!("{:.0} a second", per_second(outcome.num_output_tokens)))?;
    let hits = outcome.num_prefix_hits as f64 / outcome.num_prompt_tokens as f64;
    row("prompt tokens from the prefix cache", format!("{:.1} %", percent(hits)))?;
    row("KV usage, mean", format!("{:.1} %", percent(outcome.mean_usage)))?;
    row("KV usage, highest", format!("{:.1} %", percent(outcome.max_usage)))?;
    row("running at an engine, mean", format!("{:.0}", outcome.mean_running))?;
    row("waiting at an engine, most", format!("{}", outcome.max_waiting))?;
    row("preemptions", format!("{}", outcome.num_preemptions))?;
    let num_needed =
        outcome.num_prompt_tokens + outcome.num_output_tokens - outcome.num_requests as u64;
    let again = outcome.num_computed_tokens + outcome.num_prefix_hits;
    let again = again.saturating_sub(num_needed) as f64 / outcome.num_computed_tokens as f64;
    row("computed again after preemption", format!("{:.2} %", percent(again)))?;
    let micros = 1e6 * scheduling.as_secs_f64() / outcome.num_steps as f64;
    row("scheduling and bookkeeping, real", format!("{micros:.1} µs a step"))?;

    writeln!(text, "\n| seconds | p50 | p90 | p99 | worst |\n| --- | ---: | ---: | ---: | ---: |")?;
    for (kind, waits) in &outcome.waits {
        durations(text, &format!("wait, {kind}"), waits)?;
    }
    durations(text, "time to first token", &outcome.first_tokens)?;
    durations(text, "inter-token", &outcome.inter_tokens)
}

fn durations(text: &mut String, what: &str, histogram: &Histogram) -> std::fmt::Result {
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| histogram.quantile(q));
    writeln!(text, "| {what} | {p50:.3} | {p90:.3} | {p99:.3} | {:.3} |", histogram.max())
}
