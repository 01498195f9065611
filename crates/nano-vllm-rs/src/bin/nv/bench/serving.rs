//! Requests through the engine: how fast they are served together, and how long each waits.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nano_vllm_rs::engine::{Engine, EngineStats, Request, RequestId, SamplingParams};

use super::floor::{Costs, Work};
use super::limits::{Limits, Machine};
use super::patience::check;
use super::timing::median;
use super::traffic::{Arrivals, Planned};

/// How often limits are measured before, and again after.
const NUM_LIMITS: usize = 3;

/// The longest sleep while nothing is under way: bounds the wait for Ctrl-C.
const NAP: Duration = Duration::from_millis(20);

/// What was measured.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) arrivals: Arrivals,
    pub(crate) num_requests: usize,
    pub(crate) num_input_tokens: usize,
    pub(crate) num_output_tokens: usize,
    pub(crate) seconds: f64,
    /// In seconds, each in ascending order.
    pub(crate) time_to_first_token: Vec<f64>,
    pub(crate) inter_token: Vec<f64>,
    pub(crate) end_to_end: Vec<f64>,
    pub(crate) stats: EngineStats,
    pub(crate) limits: Limits,
    /// The least time that it could have taken; `None` if arrivals say when it ends.
    pub(crate) floor_seconds: Option<f64>,
}

/// A request under way.
#[derive(Debug)]
struct UnderWay {
    arrival: Instant,
    last_token: Option<Instant>,
    num_prompt_tokens: usize,
    num_cached_tokens: usize,
    num_tokens: usize,
}

/// Serves `planned` with `engine`, between measurements of the limits of `machine`.
pub(super) fn serve(
    engine: &mut Engine,
    planned: Vec<Planned>,
    arrivals: Arrivals,
    machine: &Machine,
    costs: &Costs,
    interrupted: &AtomicBool,
) -> Result<Served> {
    let mut limits: Vec<Limits> = (0..NUM_LIMITS).map(|_| machine.limits()).collect();
    let (mut run, seconds) = Run::serve(engine, planned, arrivals, interrupted)?;
    limits.extend((0..NUM_LIMITS).map(|_| machine.limits()));
    let limits = Limits {
        read_bandwidth: median(limits.iter().map(|limits| limits.read_bandwidth)),
        product_peak: median(limits.iter().map(|limits| limits.product_peak)),
    };
    for times in [&mut run.time_to_first_token, &mut run.inter_token, &mut run.end_to_end] {
        times.sort_by(f64::total_cmp);
    }
    let floor_seconds = match arrivals {
        Arrivals::Concurrency(width) => {
            let width = width.min(engine.scheduler_config().max_num_seqs);
            Some(floor_seconds(&run.ended, width, costs, limits))
        }
        Arrivals::Rate(_) => None,
    };
    let sum = |count: fn(&UnderWay) -> usize| run.ended.iter().map(count).sum();
    Ok(Served {
        arrivals,
        num_requests: run.ended.len(),
        num_input_tokens: sum(|request| request.num_prompt_tokens),
        num_output_tokens: sum(|request| request.num_tokens),
        seconds,
        time_to_first_token: run.time_to_first_token,
        inter_token: run.inter_token,
        end_to_end: run.end_to_end,
        stats: engine.stats(),
        limits,
        floor_seconds,
    })
}

/// The time that prompts take to compute, as far as they were not found, and then their continuations, `width` of them a
/// step.
fn floor_seconds(ended: &[UnderWay], width: usize, costs: &Costs, limits: Limits) -> f64 {
    let mut prefill = Work { bytes: 0, operations: 0 };
    let (mut num_tokens, mut num_attended) = (0, 0);
    for request in ended {
        let prompt = costs.prefill_from(request.num_cached_tokens, request.num_prompt_tokens);
        // Weights are read meanwhile, for many prompts at once.
        prefill.operations += prompt.operations;
        let first = request.num_prompt_tokens + 1;
        // The first token comes with the prompt.
        let decoded = request.num_tokens.saturating_sub(1);
        num_tokens += decoded;
        num_attended += (first..first + decoded).sum::<usize>();
    }
    let decode = costs.decode_steps(num_tokens.div_ceil(width), num_tokens, num_attended);
    prefill.floor(limits).seconds + decode.floor(limits).seconds
}

/// What is under way, and what was.
#[derive(Debug, Default)]
struct Run {
    under_way: BTreeMap<RequestId, UnderWay>,
    ended: Vec<UnderWay>,
    time_to_first_token: Vec<f64>,
    inter_token: Vec<f64>,
    end_to_end: Vec<f64>,
}

impl Run {
    /// Serves all of `planned`; returns how many seconds that took, too.
    fn serve(
        engine: &mut Engine,
        planned: Vec<Planned>,
        arrivals: Arrivals,
        interrupted: &AtomicBool,
    ) -> Result<(Self, f64)> {
        let mut run = Self::default();
        let mut planned = planned.into_iter().peekable();
        let start = Instant::now();
        while planned.peek().is_some() || !run.under_way.is_empty() {
            check(interrupted)?;
            let has_arrived = |run: &Self, next: &Planned| match arrivals {
                Arrivals::Concurrency(most) => run.under_way.len() < most,
                Arrivals::Rate(_) => next.arrival <= start.elapsed(),
            };
            while let Some(next) = planned.next_if(|next| has_arrived(&run, next)) {
                let arrival = match arrivals {
                    Arrivals::Concurrency(_) => Instant::now(),
                    // It may have come in the middle of a step.
                    Arrivals::Rate(_) => start + next.arrival,
                };
                run.add(engine, next, arrival)?;
            }
            match planned.peek() {
                Some(next) if run.under_way.is_empty() => {
                    thread::sleep(next.arrival.saturating_sub(start.elapsed()).min(NAP));
                }
                _ => run.step(engine)?,
            }
        }
        Ok((run, start.elapsed().as_secs_f64()))
    }

    fn add(&mut self, engine: &mut Engine, next: Planned, arrival: Instant) -> Result<()> {
        let num_prompt_tokens = next.prompt.len();
        let params = SamplingParams::default().with_max_tokens(next.num_output_tokens)?;
        let id = engine.add_request(Request::new(next.prompt, params))?;
        let request = UnderWay {
            arrival,
            last_token: None,
            num_prompt_tokens,
            num_cached_tokens: 0,
            num_tokens: 0,
        };
        self.under_way.insert(id, request);
        Ok(())
    }

    fn step(&mut self, engine: &mut Engine) -> Result<()> {
        let outputs = engine.step();
        let now = Instant::now();
        for output in outputs {
            let is_over = output.finished.transpose()?.is_some();
            let Some(request) = self.under_way.get_mut(&output.request_id) else { continue };
            let num_new = output.token_ids.len();
            request.num_cached_tokens = output.num_cached_tokens;
            request.num_tokens += num_new;
            match request.last_token.replace(now) {
                None => self.time_to_first_token.push((now - request.arrival).as_secs_f64()),
                Some(last) => {
                    // Tokens that come together share the time since the one before.
                    let each = (now - last).as_secs_f64() / num_new.max(1) as f64;
                    self.inter_token.extend(std::iter::repeat_n(each, num_new));
                }
            }
            if is_over {
                self.end_to_end.push((now - request.arrival).as_secs_f64());
                self.ended.extend(self.under_way.remove(&output.request_id));
            }
        }
        Ok(())
    }
}

/// The value that a share `q` of `sorted` is not above; `None` if there are none.
pub(super) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the length"
    )]
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::floor::tests::costs_of;

    #[test]
    fn a_quantile_is_the_least_value_with_enough_below() {
        let check = |sorted: &[f64], q, expected| assert_eq!(quantile(sorted, q), expected);
        check(&[], 0.5, None);
        check(&[3.0], 0.99, Some(3.0));
        check(&[1.0, 2.0, 3.0, 4.0], 0.5, Some(2.0));
        check(&[1.0, 2.0, 3.0, 4.0], 0.51, Some(3.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        check(&hundred, 0.99, Some(99.0));
        check(&hundred, 1.0, Some(100.0));
    }

    #[test]
    fn the_floor_is_the_prompts_arithmetic_and_then_steps_of_full_width() {
        let config = r#"{"vocab_size": 100, "hidden_size": 64, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}"#;
        let costs = costs_of(config);
        let request = |num_cached_tokens| UnderWay {
            arrival: Instant::now(),
            last_token: None,
            num_prompt_tokens: 8,
            num_cached_tokens,
            num_tokens: 4,
        };
        let limits = Limits { read_bandwidth: 10.0, product_peak: 1000.0 };
        let found = floor_seconds(&[request(0), request(5)], 2, &costs, limits);
        let prompts = costs.prefill(8).operations + costs.prefill_from(5, 8).operations;
        // Three steps of both, which hold 8, 9 and 10 tokens before; reading takes longer.
        let decode = [8, 9, 10].map(|context| costs.decode(2, context).bytes).iter().sum::<u64>();
        let expected = prompts as f64 / 1000.0 + decode as f64 / 10.0;
        assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
        // One after the other, weights are read twice as often.
        let alone = floor_seconds(&[request(0), request(5)], 1, &costs, limits);
        let more = 3.0 * costs.weight_bytes() as f64 / 10.0;
        assert!((alone - found - more).abs() < 1e-9 * alone);
    }
}
