//! Many requests, served together; results come in the order of the input, each as soon as those before it are there.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nano_vllm_rs::engine::{Engine, RequestId};
use nano_vllm_rs::text::Tokenizer;
use serde_json::json;

use super::answer::{Answer, Job};
use crate::format::{grouped, plural};
use crate::{interrupt, say};

/// How often the bar tells the speed anew.
const INTERVAL: Duration = Duration::from_millis(200);

/// Serves `jobs` to their ends, or until the user ends it.
pub(super) fn run(
    engine: &mut Engine,
    jobs: Vec<Job>,
    prints_json: bool,
    tokenizer: &Tokenizer,
    interrupted: &AtomicBool,
) -> Result<ExitCode> {
    let start = Instant::now();
    let mut results = Results::new(jobs, prints_json, tokenizer);
    let mut serving = BTreeMap::new();
    for index in 0..results.jobs.len() {
        let added = match &results.jobs[index].request {
            Ok(asked) => engine.add_request(asked.request.clone()).map_err(Error::from),
            Err(_) => continue,
        };
        match added {
            Ok(id) => drop(serving.insert(id, index)),
            Err(error) => results.fail(index, error),
        }
    }
    results.show_ready()?;

    let mut last_told = Instant::now();
    while !serving.is_empty() && !interrupted.load(Ordering::Relaxed) {
        for output in engine.step() {
            let (id, which) = (output.request_id, output.index);
            let Some(&index) = serving.get(&id) else { continue };
            if let Some(Err(error)) = output.finished {
                results.fail(index, error.into());
                serving.remove(&id);
                continue;
            }
            if results.push(index, output) {
                engine.abort_continuation(id, which);
            }
            if results.is_finished(index) {
                serving.remove(&id);
            }
        }
        results.show_ready()?;
        if last_told.elapsed() >= INTERVAL {
            last_told = Instant::now();
            results.tell_speed(engine.stats().num_generated_tokens, start.elapsed());
        }
    }
    stop(engine, serving);
    results.bar.finish_and_clear();
    say(results.summary(start.elapsed()));
    Ok(if results.num_shown < results.jobs.len() {
        ExitCode::from(interrupt::EXIT_CODE)
    } else if results.num_failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Gives up what the user doesn't wait for.
fn stop(engine: &mut Engine, serving: BTreeMap<RequestId, usize>) {
    for id in serving.into_keys() {
        engine.abort(id);
    }
}

/// What there is of each job, and how much of it has been shown.
struct Results<'a> {
    jobs: Vec<Job>,
    /// `None` for a job without a request.
    answers: Vec<Option<Answer>>,
    tokenizer: &'a Tokenizer,
    prints_json: bool,
    num_shown: usize,
    num_failed: usize,
    bar: ProgressBar,
}

impl<'a> Results<'a> {
    fn new(jobs: Vec<Job>, prints_json: bool, tokenizer: &'a Tokenizer) -> Self {
        let answer =
            |job: &Job| job.request.as_ref().ok().map(|asked| Answer::new(asked, tokenizer));
        let answers = jobs.iter().map(answer).collect();
        let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len} requests {msg} ({eta})");
        // Hidden by itself where stderr is no terminal.
        let bar =
            ProgressBar::with_draw_target(Some(jobs.len() as u64), ProgressDrawTarget::stderr())
                .with_style(style.expect("the template is valid"));
        Self { jobs, answers, tokenizer, prints_json, num_shown: 0, num_failed: 0, bar }
    }

    /// Ends a job with an error.
    fn fail(&mut self, index: usize, error: Error) {
        self.jobs[index].request = Err(error);
        self.answers[index] = None;
        self.bar.inc(1);
    }

    /// Goes on with a job; returns whether a stop string has ended the continuation.
    fn push(&mut self, index: usize, output: nano_vllm_rs::engine::RequestOutput) -> bool {
        let Some(answer) = &mut self.answers[index] else { return false };
        let is_stopped = answer.push(output);
        if answer.is_finished() {
            self.bar.inc(1);
        }
        is_stopped
    }

    fn is_finished(&self, index: usize) -> bool {
        self.answers[index].as_ref().is_none_or(Answer::is_finished)
    }

    /// Prints the results before which none is missing.
    fn show_ready(&mut self) -> io::Result<()> {
        while self.num_shown < self.jobs.len() && self.is_finished(self.num_shown) {
            let index = self.num_shown;
            let job = &self.jobs[index];
            let line = match (&self.answers[index], &job.request) {
                (Some(answer), _) if self.prints_json => {
                    format!("{}\n", answer.to_json(index, self.tokenizer))
                }
                (Some(answer), _) => job.to_text(answer),
                (None, Err(error)) => {
                    let message = format!("{}: {error:#}", job.place);
                    self.num_failed += 1;
                    if self.prints_json {
                        format!("{}\n", json!({ "index": index, "error": message }))
                    } else {
                        self.bar.suspend(|| say(format_args!("error: {message}")));
                        String::new()
                    }
                }
                (None, Ok(_)) => unreachable!("a job without an answer has an error"),
            };
            self.bar.suspend(|| {
                let mut out = io::stdout().lock();
                out.write_all(line.as_bytes()).and_then(|()| out.flush())
            })?;
            self.num_shown += 1;
        }
        Ok(())
    }

    fn tell_speed(&self, num_tokens: u64, time: Duration) {
        self.bar.set_message(format!("{:.1} tok/s", num_tokens as f64 / time.as_secs_f64()));
    }

    /// What was done, and at what speed.
    fn summary(&self, time: Duration) -> String {
        let answers = || self.answers.iter().flatten();
        let sum = |count: fn(&Answer) -> usize| answers().map(count).sum::<usize>();
        let num_tokens = sum(Answer::num_tokens);
        let mut summary = format!(
            "{}; prompts: {}, {} cached; generated: {}, {:.1} tok/s",
            plural(self.jobs.len(), "request"),
            plural(sum(Answer::num_prompt_tokens), "token"),
            grouped(sum(|answer| answer.num_cached_tokens) as u64),
            plural(num_tokens, "token"),
            num_tokens as f64 / time.as_secs_f64(),
        );
        if self.num_failed > 0 {
            summary.extend(["; ", &grouped(self.num_failed as u64), " failed"]);
        }
        if self.num_shown < self.jobs.len() {
            summary.extend(["; interrupted after ", &grouped(self.num_shown as u64)]);
        }
        summary
    }
}
