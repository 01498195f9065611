//! From logits to a token.
//!
//! The choice is a function of the logits, the parameters, the sequence's own tokens and (seed, sequence, position):
//! nothing that shares a batch with a sequence, and nothing that was sampled for others, has a part in it.

pub(crate) mod cut;
pub(crate) mod softmax;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use self::cut::{CHUNK, Cut, Cutter, has_any};
use self::softmax::Softmax;
use crate::TokenId;
use crate::constraint::TokenMask;
use crate::error::{Error, Result};
use crate::logits_processors;
use crate::sampling_params::SamplingParams;
use crate::sampling_state::SamplingState;

/// Chooses tokens. Holds buffers only; one sampler serves any number of sequences.
#[derive(Debug, Default)]
pub struct Sampler {
    /// The logits as the request wants them.
    processed: Vec<f32>,
    survivors: Survivors,
}

impl Sampler {
    /// A sampler.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next token of the sequence of `state`, which grows under `params.seed()`.
    ///
    /// In this order: tokens that aren't allowed, that are banned, or that would end the text before `min_tokens`, are
    /// ruled out; biases are added; repetition, frequency and presence penalties are applied; greedy if the
    /// temperature is 0. Else the logits are divided by the temperature; tokens less likely than `min_p` of the
    /// likeliest are dropped, and all but the `top_k` likeliest; of the rest, by their softmax, the smallest set of
    /// likeliest ones that reach `top_p` together is kept, the one that crosses it included; one of these is drawn.
    /// Among equal logits the lower id is the likelier.
    ///
    /// Equal arguments give equal tokens, so that a guess of the next tokens (a draft) can be verified: it is right as
    /// far as it is what this function returns, token by token, each pushed to `state` before the next.
    ///
    /// Shapes: `logits` one a token. Dtypes: logits stay f32 up to the temperature; weights of tokens in f64, rounded
    /// to integers, their sums exact.
    /// Source: vLLM's `Sampler` and `TopKTopPSampler`, but for ties with the last of `top_k`, which vLLM keeps.
    ///
    /// ```
    /// use nv_engine::{Sampler, SamplingParams, SamplingState};
    ///
    /// let logits = [1.0, 3.0, 2.0, 3.0];
    /// let mut sampler = Sampler::new();
    /// let params = SamplingParams::default();
    /// let state = SamplingState::new(&params, 0, &[2, 0]);
    /// assert_eq!(sampler.sample(&logits, &params, &state)?, 1);
    ///
    /// let params = params.with_temperature(0.8)?.with_top_k(2).with_seed(42);
    /// let mut state = SamplingState::new(&params, 0, &[2, 0]);
    /// let token_id = sampler.sample(&logits, &params, &state)?;
    /// assert!([1, 3].contains(&token_id));
    /// assert_eq!(sampler.sample(&logits, &params, &state)?, token_id);
    /// state.push(token_id);
    /// # Ok::<(), nv_engine::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Logit`] for NaN or infinity; [`Error::NoChoice`] if there are no logits or all are -inf, or all others
    /// were ruled out.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        state: &SamplingState,
    ) -> Result<TokenId> {
        self.sample_masked(logits, params, state, None)
    }

    /// As [`Self::sample`], from the tokens alone that `mask` allows, if there is one: the others are ruled out first.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_masked(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        state: &SamplingState,
        mask: Option<&TokenMask>,
    ) -> Result<TokenId> {
        let (mut likeliest, mut max_logit) = argmax(logits)?;
        let mut logits = logits;
        if mask.is_some() || logits_processors::is_needed(params, state) {
            logits_processors::process(logits, params, state, mask, &mut self.processed);
            logits = &self.processed;
            (likeliest, max_logit) = argmax(logits)?;
        }
        if params.is_greedy() {
            return Ok(likeliest);
        }
        let bits = random(params.seed(), state.sequence(), state.position());
        Ok(self.survivors.draw(logits, max_logit, params, bits))
    }
}

/// The tokens among which chance decides.
#[derive(Debug, Default)]
struct Survivors {
    cutter: Cutter,
    /// In ascending order; empty if all are left.
    token_ids: Vec<TokenId>,
    /// Their logits, if not all are left.
    logits: Vec<f32>,
    /// Their probabilities, up to a factor.
    weights: Vec<u64>,
}

impl Survivors {
    /// The token that `bits`, all values of which are equally likely, stand for.
    fn draw(
        &mut self,
        logits: &[f32],
        max_logit: f32,
        params: &SamplingParams,
        bits: u64,
    ) -> TokenId {
        let softmax = Softmax::new(logits.len(), max_logit, params.temperature());
        let mut cut = Cut::at(min_p_floor(max_logit, params));
        if let Some(k) = params.top_k() {
            cut = cut.tighter(self.cutter.top_k(logits, max_logit, k));
        }
        self.token_ids.clear();
        let mut logits = logits;
        if cut != Cut::NONE {
            cut.gather(logits, &mut self.token_ids, &mut self.logits);
            logits = &self.logits;
        }
        let total = softmax.weigh(logits, &mut self.weights);
        let (cut, total) = if params.top_p() < 1.0 {
            self.cutter.top_p(&softmax, logits, &self.weights, total, params.top_p())
        } else {
            (Cut::NONE, total)
        };
        let index = pick(logits, &self.weights, cut, scale(bits, total));
        self.token_ids.get(index as usize).copied().unwrap_or(index)
    }
}

/// The logit of a token whose probability is `min_p` of the likeliest's.
#[expect(clippy::cast_possible_truncation, reason = "rounded once, and never above max_logit")]
fn min_p_floor(max_logit: f32, params: &SamplingParams) -> f32 {
    // Not `f64::ln`: a platform's own may keep a token that another's drops.
    (f64::from(max_logit) + params.temperature() * libm::log(params.min_p())) as f32
}

/// The token in whose part of the line `point` lies, the weights of all that `cut` keeps laid end to end in order.
fn pick(logits: &[f32], weights: &[u64], cut: Cut, mut point: u64) -> u32 {
    let kept = |(index, (&logit, &weight)): (u32, (&f32, &u64))| {
        if cut.keeps(logit, index) { weight } else { 0 }
    };
    let chunks = logits.chunks(CHUNK).zip(weights.chunks(CHUNK));
    for (first, (logits, weights)) in (0..).step_by(CHUNK).zip(chunks) {
        let tokens = || (first..).zip(logits.iter().zip(weights));
        let chunk: u64 = tokens().map(kept).sum();
        if point >= chunk {
            point -= chunk;
            continue;
        }
        for token in tokens() {
            let weight = kept(token);
            if point < weight {
                return token.0;
            }
            point -= weight;
        }
    }
    unreachable!("the point lies below the sum of all weights that are kept")
}

/// The largest logit and the lowest id that has it.
///
/// # Errors
/// [`Error::Logit`] for NaN or infinity; [`Error::NoChoice`] if nothing is above -inf.
pub(crate) fn argmax(logits: &[f32]) -> Result<(TokenId, f32)> {
    let mut max_logit = f32::NEG_INFINITY;
    let mut likeliest = None;
    for (first, chunk) in (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)) {
        if has_any(chunk, |logit| !is_logit(logit)) {
            let mut tokens = (first..).zip(chunk);
            let (token_id, &found) =
                tokens.find(|(_, logit)| !is_logit(**logit)).expect("there is one");
            return Err(Error::Logit { token_id, found });
        }
        if has_any(chunk, |logit| logit > max_logit) {
            for (token_id, &logit) in (first..).zip(chunk) {
                if logit > max_logit {
                    (likeliest, max_logit) = (Some(token_id), logit);
                }
            }
        }
    }
    let token_id = likeliest.ok_or(Error::NoChoice { num_logits: logits.len() })?;
    Ok((token_id, max_logit))
}

/// Whether a model may put this out: a finite number or -inf.
fn is_logit(logit: f32) -> bool {
    logit < f32::INFINITY
}

/// 64 random bits for one place of one sequence.
fn random(seed: u64, sequence: u64, position: usize) -> u64 {
    const WORDS: u128 = 2; // of 32 bits
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(sequence);
    rng.set_word_pos(position as u128 * WORDS);
    rng.next_u64()
}

/// Maps all 64-bit numbers evenly onto `0..bound`.
fn scale(bits: u64, bound: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn params(temperature: f64, top_k: usize, top_p: f64, min_p: f64) -> SamplingParams {
        SamplingParams::default()
            .with_top_k(top_k)
            .with_temperature(temperature)
            .and_then(|params| params.with_top_p(top_p))
            .and_then(|params| params.with_min_p(min_p))
            .unwrap()
    }

    /// The state of a sequence at some position.
    fn state(sequence: u64, position: usize) -> SamplingState {
        SamplingState::new(&SamplingParams::default(), sequence, &vec![0; position])
    }

    fn sample(logits: &[f32], params: &SamplingParams) -> Result<TokenId> {
        Sampler::new().sample(logits, params, &state(0, 0))
    }

    /// Ids and probabilities of the tokens that may be chosen, by sorting: the definition.
    fn distribution(logits: &[f32], params: &SamplingParams) -> Vec<(TokenId, f64)> {
        let mut tokens: Vec<(TokenId, f64)> = (0..)
            .zip(logits)
            .map(|(id, &logit)| (id, f64::from(logit) / params.temperature()))
            .collect();
        tokens.sort_by(|(a_id, a), (b_id, b)| b.total_cmp(a).then(a_id.cmp(b_id)));
        tokens.retain(|(_, logit)| *logit > f64::NEG_INFINITY);

        let max = tokens[0].1;
        normalise(&mut tokens, |logit| (logit - max).exp());
        let least = tokens[0].1 * params.min_p();
        tokens.retain(|(_, probability)| *probability >= least);
        tokens.truncate(params.top_k().unwrap_or(usize::MAX));
        normalise(&mut tokens, |probability| probability);
        let mut reached = 0.0;
        tokens.retain(|(_, probability)| {
            let keep = reached < params.top_p();
            reached += probability;
            keep
        });
        normalise(&mut tokens, |probability| probability);
        tokens
    }

    fn normalise(tokens: &mut [(TokenId, f64)], weight: impl Fn(f64) -> f64) {
        let total: f64 = tokens.iter().map(|(_, value)| weight(*value)).sum();
        for (_, value) in tokens {
            *value = weight(*value) / total;
        }
    }

    /// How often the sampler takes each token, if all random bits come once: `num_draws` of them, evenly spaced.
    fn sampled_distribution(
        logits: &[f32],
        max_logit: f32,
        params: &SamplingParams,
        num_draws: u32,
    ) -> Vec<f64> {
        let mut survivors = Survivors::default();
        let mut frequencies = vec![0.0; logits.len()];
        for draw in 0..num_draws {
            let bits = u64::MAX / u64::from(num_draws) * u64::from(draw);
            let token_id = survivors.draw(logits, max_logit, params, bits);
            frequencies[token_id as usize] += 1.0 / f64::from(num_draws);
        }
        frequencies
    }

    /// How far `draws` are from `distribution`, in units of what chance explains: a statistic that exceeds 6
    /// standard deviations of its χ² distribution is no chance.
    fn assert_distributed(draws: impl Iterator<Item = TokenId>, distribution: &[(TokenId, f64)]) {
        let draws: Vec<TokenId> = draws.collect();
        let mut num_known = 0;
        let mut chi_squared = 0.0;
        for &(id, probability) in distribution {
            let expected = probability * draws.len() as f64;
            assert!(expected >= 5.0, "too few draws to judge token {id}");
            let count = draws.iter().filter(|draw| **draw == id).count();
            num_known += count;
            chi_squared += (count as f64 - expected).powi(2) / expected;
        }
        assert_eq!(num_known, draws.len(), "tokens outside the distribution were drawn");
        let degrees = distribution.len() as f64 - 1.0;
        assert!(chi_squared <= degrees + 6.0 * (2.0 * degrees).sqrt(), "χ² = {chi_squared}");
    }

    const LOGITS: [f32; 8] = [0.3, -1.2, 2.0, f32::NEG_INFINITY, 1.9, 0.0, -0.4, 1.0];

    #[test]
    fn draws_follow_the_distribution_over_positions_sequences_and_seeds() {
        for params in [
            params(1.0, 0, 1.0, 0.0),
            params(0.7, 5, 1.0, 0.0),
            params(1.5, 0, 0.8, 0.0),
            params(1.2, 0, 1.0, 0.2),
            params(2.0, 6, 0.9, 0.1),
        ] {
            let distribution = distribution(&LOGITS, &params);
            let mut sampler = Sampler::new();
            let mut draw = |seed, sequence, position| {
                let params = params.clone().with_seed(seed);
                let token_id = sampler.sample(&LOGITS, &params, &state(sequence, position));
                token_id.unwrap()
            };
            // A sequence of its own, since a state counts its tokens one by one.
            let mut growing = state(2, 0);
            let mut own = Sampler::new();
            let positions = (0..100_000).map(|_| {
                let token_id = own.sample(&LOGITS, &params, &growing).unwrap();
                growing.push(token_id);
                token_id
            });
            assert_distributed(positions, &distribution);
            assert_distributed((0..20_000).map(|i| draw(1, i, 2)), &distribution);
            assert_distributed((0..20_000).map(|i| draw(i, 1, 2)), &distribution);
        }
    }

    #[test]
    fn neighbouring_positions_are_independent() {
        let params = params(1.0, 0, 1.0, 0.0);
        let one = distribution(&LOGITS, &params);
        let pairs: Vec<(TokenId, f64)> = one
            .iter()
            .flat_map(|(a, p)| one.iter().map(move |(b, q)| (a * 8 + b, p * q)))
            .collect();
        let mut sampler = Sampler::new();
        let mut state = state(0, 0);
        let mut draw = || {
            let token_id = sampler.sample(&LOGITS, &params, &state).unwrap();
            state.push(token_id);
            token_id
        };
        assert_distributed((0..40_000).map(|_| draw() * 8 + draw()), &pairs);
    }

    #[test]
    fn draws_are_the_same_on_every_platform() {
        let logits: Vec<f32> = (0u16..500).map(|i| f32::from(i * 97 % 501) / 32.0).collect();
        let mut sampler = Sampler::new();
        let mut draws = |params: SamplingParams| -> Vec<TokenId> {
            let params = params.with_seed(7);
            let mut draw =
                |position| sampler.sample(&logits, &params, &state(3, position)).unwrap();
            (0..10).map(&mut draw).collect()
        };
        assert_eq!(
            draws(params(0.7, 0, 1.0, 0.0)),
            [108, 67, 475, 196, 216, 227, 470, 196, 67, 253]
        );
        assert_eq!(
            draws(params(1.3, 0, 1.0, 0.05)),
            [103, 51, 480, 191, 196, 211, 459, 190, 51, 232]
        );
        assert_eq!(
            draws(params(0.9, 40, 0.8, 0.0)),
            [160, 67, 475, 222, 227, 253, 470, 222, 67, 258]
        );
    }

    #[test]
    fn a_draw_depends_on_nothing_but_seed_sequence_and_position() {
        let params = params(1.0, 0, 0.9, 0.0);
        let draw = |sampler: &mut Sampler, position: usize| {
            let state = state((position % 3) as u64, position);
            sampler.sample(&LOGITS, &params, &state).unwrap()
        };
        let fresh = |position| draw(&mut Sampler::new(), position);
        let expected: Vec<TokenId> = (0..100).map(fresh).collect();
        let other = params.clone().with_top_k(9).with_banned_token_ids(vec![4]);
        let mut used = Sampler::new();
        for position in (0..100).rev() {
            used.sample(&[1.0; 50], &other, &state(9, 9)).unwrap();
            assert_eq!(draw(&mut used, position), expected[position]);
        }
    }

    #[test]
    fn greedy_takes_the_largest_and_of_equals_the_lowest_id() {
        let check = |logits: &[f32], expected| {
            let greedy = SamplingParams::default();
            // None of these leaves another choice.
            let alone = [params(9.0, 1, 1.0, 0.0), params(9.0, 0, 1e-9, 0.0)];
            for params in alone.iter().chain([&greedy]) {
                assert_eq!(sample(logits, params).unwrap(), expected, "{logits:?}");
            }
        };
        check(&[0.5], 0);
        check(&[-3.0, -1.0, -2.0], 1);
        check(&[1.0, 2.0, 2.0, 2.0], 1);
        check(&[f32::NEG_INFINITY, f32::MIN, f32::NEG_INFINITY], 1);
        check(&[-0.0, 0.0], 0);
        let mut many = vec![0.0; 1000];
        (many[700], many[701], many[999]) = (1.0, 2.0, 2.0);
        check(&many, 701);
    }

    #[test]
    fn greedy_heeds_what_the_request_changes() {
        let logits = [3.0, 2.9, 2.8, 2.7];
        let check = |params: Result<SamplingParams>, expected| {
            let params = params.unwrap();
            let mut state = SamplingState::new(&params, 0, &[0]);
            state.push(1);
            assert_eq!(Sampler::new().sample(&logits, &params, &state).unwrap(), expected);
        };
        let params = SamplingParams::default;
        check(Ok(params()), 0);
        check(params().with_repetition_penalty(2.0), 2);
        check(params().with_presence_penalty(-1.0), 1);
        check(params().with_logit_bias([(3, 1.0)]), 3);
        check(params().with_allowed_token_ids(vec![2, 3]), 2);
        check(Ok(params().with_banned_token_ids(vec![0])), 1);
        check(Ok(params().with_eos_token_ids(vec![0]).with_min_tokens(2)), 1);
    }

    #[test]
    fn the_token_that_crosses_top_p_is_kept() {
        let check = |top_p, num_kept| {
            let found = sampled_distribution(&[0.0; 4], 0.0, &params(1.0, 0, top_p, 0.0), 1000);
            let kept = found.iter().take_while(|&&frequency| frequency > 0.0).count();
            assert_eq!(kept, num_kept, "{top_p}");
            assert!(found[num_kept..].iter().all(|&frequency| frequency <= 0.0));
        };
        check(0.0, 1);
        check(1e-9, 1);
        check(0.25, 1);
        check(0.26, 2);
        check(0.5, 2);
        check(0.75, 3);
        check(1.0, 4);
    }

    #[test]
    fn extreme_temperatures_and_logits_stay_in_range() {
        for logits in [&[f32::MAX, f32::MIN, 0.0][..], &[1e-30, 0.0], &[-5.0]] {
            for temperature in [f64::MIN_POSITIVE, 1e-40, 1e-6, 1e6, f64::MAX] {
                for (top_k, min_p) in [(0, 0.0), (2, 1e-300), (0, 0.5)] {
                    let token_id = sample(logits, &params(temperature, top_k, 0.9, min_p));
                    assert!((token_id.unwrap() as usize) < logits.len());
                }
            }
        }
        let coldest = params(f64::MIN_POSITIVE, 0, 1.0, 0.0);
        let found = sampled_distribution(&[1.0, 2.0], 2.0, &coldest, 10);
        assert!(found[0] <= 0.0, "{found:?}");
    }

    #[test]
    fn what_is_no_logit_is_an_error() {
        let check = |logits: &[f32], expected: &str| {
            let biased = SamplingParams::default().with_logit_bias([(0, 1.0)]).unwrap();
            for params in [SamplingParams::default(), params(1.0, 2, 0.5, 0.1), biased] {
                assert_eq!(sample(logits, &params).unwrap_err().to_string(), expected);
            }
        };
        let expected = "expected a finite number or -inf";
        check(&[0.0, f32::NAN], &format!("the logit of token 1 is NaN: {expected}"));
        check(&[f32::INFINITY], &format!("the logit of token 0 is inf: {expected}"));
        let expected = "none of the 2 logits is above -inf: expected at least one";
        check(&[f32::NEG_INFINITY; 2], expected);
        check(&[], "none of the 0 logits is above -inf: expected at least one");

        let banned = SamplingParams::default().with_banned_token_ids(vec![0, 1]);
        assert_eq!(sample(&[1.0; 2], &banned).unwrap_err().to_string(), expected);
    }

    /// The parameters of a case of `tests/logits_processors/cases.json`.
    fn case_params(case: &Value, eos_token_ids: &[TokenId]) -> SamplingParams {
        let ids = |value: &Value| serde_json::from_value::<Vec<TokenId>>(value.clone()).unwrap();
        let mut params = SamplingParams::default().with_eos_token_ids(eos_token_ids.to_vec());
        for (name, value) in case["params"].as_object().unwrap() {
            let number = value.as_f64();
            let integer = || usize::try_from(value.as_u64().unwrap()).unwrap();
            params = match name.as_str() {
                "allowed_token_ids" => params.with_allowed_token_ids(ids(value)),
                "banned_token_ids" => Ok(params.with_banned_token_ids(ids(value))),
                "min_tokens" => Ok(params.with_min_tokens(integer())),
                "logit_bias" => params.with_logit_bias(
                    serde_json::from_value::<Vec<(TokenId, f64)>>(value.clone()).unwrap(),
                ),
                "repetition_penalty" => params.with_repetition_penalty(number.unwrap()),
                "presence_penalty" => params.with_presence_penalty(number.unwrap()),
                "frequency_penalty" => params.with_frequency_penalty(number.unwrap()),
                "temperature" => params.with_temperature(number.unwrap()),
                "min_p" => params.with_min_p(number.unwrap()),
                "top_k" => Ok(params.with_top_k(integer())),
                "top_p" => params.with_top_p(number.unwrap()),
                _ => panic!("unknown parameter {name}"),
            }
            .unwrap();
        }
        if params.is_greedy() { params.with_temperature(1.0).unwrap() } else { params }
    }

    #[test]
    fn transformers_processors_give_the_same_scores_and_probabilities() {
        const NUM_DRAWS: u32 = 10_000;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/logits_processors/cases.json");
        let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let ids = |name: &str| serde_json::from_value::<Vec<u32>>(file[name].clone()).unwrap();
        let numbers = |value: &Value| -> Vec<f64> {
            let number = |value: &Value| value.as_f64().unwrap_or(f64::NEG_INFINITY);
            value.as_array().unwrap().iter().map(number).collect()
        };
        let cases = file["cases"].as_array().unwrap();
        assert!(cases.len() > 50);
        for case in cases {
            let params = case_params(case, &ids("eos_token_ids"));
            let mut state = SamplingState::new(&params, 0, &ids("prompt"));
            for token_id in ids("output") {
                state.push(token_id);
            }
            let logits = case["logits"].as_array().unwrap();
            let logits: Vec<f32> =
                logits.iter().map(|logit| logit.to_string().parse().unwrap()).collect();

            let mut processed = Vec::new();
            logits_processors::process(&logits, &params, &state, None, &mut processed);
            for (&found, expected) in processed.iter().zip(numbers(&case["processed"])) {
                // Of two that are -inf the distance is no number.
                let differ = (f64::from(found) - expected).abs() > 1e-6 * expected.abs();
                let same = found.is_finite() == expected.is_finite() && !differ;
                assert!(same, "{}: {found} {expected}", case["params"]);
            }

            let (_, max_logit) = argmax(&processed).unwrap();
            let found = sampled_distribution(&processed, max_logit, &params, NUM_DRAWS);
            for (token_id, (found, expected)) in
                found.into_iter().zip(numbers(&case["probabilities"])).enumerate()
            {
                let close = (found - expected).abs() <= 2.0 / f64::from(NUM_DRAWS);
                assert!(close, "{}, token {token_id}: {found} {expected}", case["params"]);
            }
        }
    }

    proptest! {
        #[test]
        fn every_parameter_equals_its_definition(
            // Few different values, so that ties are common.
            logits in prop::collection::vec((-12i8..12).prop_map(|i| f32::from(i) / 3.0), 1..300),
            masked in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
            temperature in 0.1..3.0f64,
            top_k in 0usize..80,
            top_p in 0.01..=1.0f64,
            min_p in prop_oneof![Just(0.0), 0.0..0.5f64],
        ) {
            const NUM_DRAWS: u32 = 1000;
            let mut logits = logits;
            for index in masked {
                let index = index.index(logits.len());
                if index > 0 {
                    logits[index] = f32::NEG_INFINITY;
                }
            }
            let params = params(temperature, top_k, top_p, min_p);
            let (_, max_logit) = argmax(&logits).unwrap();
            let mut missing = sampled_distribution(&logits, max_logit, &params, NUM_DRAWS);
            for (token_id, expected) in distribution(&logits, &params) {
                missing[token_id as usize] -= expected;
            }
            let tolerance = 2.0 / f64::from(NUM_DRAWS);
            prop_assert!(missing.iter().all(|missing| missing.abs() <= tolerance), "{missing:?}");
        }

        #[test]
        fn no_logits_and_no_parameters_panic(
            logits in prop::collection::vec(prop::num::f32::ANY, 0..100),
            temperature in prop_oneof![Just(0.0), 0.0..f64::MAX],
            top_k in 0usize..120,
            top_p in f64::MIN_POSITIVE..=1.0,
            min_p in 0.0..=1.0f64,
            penalty in 1e-30..1e30f64,
            presence in -2.0..2.0f64,
            token_ids in prop::collection::vec(0..120u32, 0..20),
        ) {
            let params = params(temperature, top_k, top_p, min_p)
                .with_repetition_penalty(penalty)
                .and_then(|params| params.with_presence_penalty(presence))
                .and_then(|params| params.with_logit_bias(token_ids.iter().map(|&id| (id, 9.0))))
                .unwrap()
                .with_banned_token_ids(token_ids.iter().take(3).copied().collect())
                .with_stop_token_ids(token_ids.iter().rev().take(3).copied().collect())
                .with_min_tokens(1);
            let state = SamplingState::new(&params, 1, &token_ids);
            let bad = logits.iter().position(|&logit| !is_logit(logit));
            match Sampler::new().sample(&logits, &params, &state) {
                Ok(token_id) => {
                    prop_assert_eq!(bad, None);
                    prop_assert!(logits[token_id as usize] > f32::NEG_INFINITY);
                    prop_assert!(!params.banned_token_ids().contains(&token_id));
                    prop_assert!(!params.stops_at(token_id));
                }
                Err(Error::Logit { token_id, .. }) => prop_assert_eq!(Some(token_id as usize), bad),
                Err(Error::NoChoice { .. }) => prop_assert_eq!(bad, None),
                Err(error) => prop_assert!(false, "{}", error),
            }
        }

        #[test]
        fn every_number_scales_below_the_bound(bits: u64, bound in 1..u64::MAX) {
            prop_assert!(scale(bits, bound) < bound);
        }
    }
}
