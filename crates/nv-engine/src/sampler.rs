//! From logits to a token.
//!
//! The choice is a function of the logits, the parameters and (seed, sequence, position): nothing that shares a
//! batch with a sequence, and nothing that was sampled before, has a part in it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::TokenId;
use crate::error::{Error, Result};
use crate::sampling_params::SamplingParams;

/// Chooses tokens. Holds buffers only; one sampler serves any number of sequences.
#[derive(Debug, Default)]
pub struct Sampler {
    /// The tokens that may be chosen.
    candidates: Vec<Candidate>,
}

/// A token that may be chosen.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token_id: TokenId,
    logit: f32,
    /// Proportional to the probability: exact in sums, so that no order of summation changes a choice.
    weight: u64,
}

impl Sampler {
    /// A sampler.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token for place `position` of the sequence number `sequence` that grows under `params.seed()`.
    ///
    /// In this order: greedy if the temperature is 0; else the logits are divided by the temperature; the `top_k`
    /// largest are kept; of these, by their softmax, the smallest set of likeliest ones that reach `top_p`
    /// together, the one that crosses it included; one of the rest is drawn. Among equal logits the lower id is
    /// the likelier.
    ///
    /// Shapes: `logits` one a token. Dtypes: weights of tokens in f64, their sums exact.
    /// Source: vLLM's `Sampler` and `TopKTopPSampler`, but for ties with the last of `top_k`, which vLLM keeps.
    ///
    /// ```
    /// use nv_engine::{Sampler, SamplingParams};
    ///
    /// let logits = [1.0, 3.0, 2.0, 3.0];
    /// let mut sampler = Sampler::new();
    /// assert_eq!(sampler.sample(&logits, &SamplingParams::default(), 0, 7)?, 1);
    ///
    /// let params = SamplingParams::default().with_temperature(0.8)?.with_top_k(2).with_seed(42);
    /// let token_id = sampler.sample(&logits, &params, 0, 7)?;
    /// assert!([1, 3].contains(&token_id));
    /// assert_eq!(sampler.sample(&logits, &params, 0, 7)?, token_id);
    /// # Ok::<(), nv_engine::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Logit`] for NaN or infinity; [`Error::NoChoice`] if there are no logits or all are -inf.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        sequence: u64,
        position: usize,
    ) -> Result<TokenId> {
        let (likeliest, max_logit) = argmax(logits)?;
        if params.is_greedy() {
            return Ok(likeliest);
        }
        self.take_top_k(logits, params.top_k().unwrap_or(logits.len()));
        let total = self.weigh(max_logit, params.temperature());
        let total = self.keep_top_p(total, params.top_p());
        Ok(self.pick(scale(random(params.seed(), sequence, position), total)))
    }

    /// Makes candidates of the `k` largest logits above -inf.
    fn take_top_k(&mut self, logits: &[f32], k: usize) {
        let candidates = &mut self.candidates;
        candidates.clear();
        let mut floor = f32::NEG_INFINITY;
        for (token_id, &logit) in (0..).zip(logits) {
            // Of equal logits the earlier stays.
            if logit > floor {
                let logit = logit + 0.0; // -0 becomes 0: they are equal
                candidates.push(Candidate { token_id, logit, weight: 0 });
                // Twice as many as needed: halving them costs a constant for each that was pushed.
                if candidates.len() >= k.saturating_mul(2) {
                    floor = keep_top_k(candidates, k);
                }
            }
        }
        if candidates.len() > k {
            keep_top_k(candidates, k);
        }
    }

    /// Weighs the candidates in proportion to their softmax at `temperature`; returns the sum.
    fn weigh(&mut self, max_logit: f32, temperature: f64) -> u64 {
        // The likeliest token's weight: a power of two, small enough that no sum overflows.
        let unit = (1u64 << (62 - self.candidates.len().ilog2())) as f64;
        let mut total = 0;
        for candidate in &mut self.candidates {
            let exponent = (f64::from(candidate.logit) - f64::from(max_logit)) / temperature;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "exp of what is at most 0 lies between 0 and 1; the fraction is to be dropped"
            )]
            let weight = (exponent.exp() * unit) as u64;
            candidate.weight = weight;
            total += weight;
        }
        total
    }

    /// Keeps the likeliest candidates that have `top_p` of `total` together; returns what they have.
    fn keep_top_p(&mut self, total: u64, top_p: f64) -> u64 {
        if top_p >= 1.0 {
            return total;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 0 and at most `total`"
        )]
        let target = (total as f64 * top_p).ceil() as u64;
        let num_kept = smallest_prefix(&mut self.candidates, target.clamp(1, total));
        self.candidates.truncate(num_kept);
        sum(&self.candidates)
    }

    /// The candidate in whose part of the line `point` lies, all weights laid end to end in order of the ids.
    fn pick(&mut self, point: u64) -> TokenId {
        self.candidates.sort_unstable_by_key(|candidate| candidate.token_id);
        let mut end = 0;
        self.candidates
            .iter()
            .find(|candidate| {
                end += candidate.weight;
                point < end
            })
            .expect("the point lies below the sum of all weights")
            .token_id
    }
}

/// The largest logit and the lowest id that has it.
fn argmax(logits: &[f32]) -> Result<(TokenId, f32)> {
    let (mut likeliest, mut max_logit) = (None, f32::NEG_INFINITY);
    for (token_id, &logit) in (0..).zip(logits) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(Error::Logit { token_id, found: logit });
        }
        if logit > max_logit {
            (likeliest, max_logit) = (Some(token_id), logit);
        }
    }
    let token_id = likeliest.ok_or(Error::NoChoice { num_logits: logits.len() })?;
    Ok((token_id, max_logit))
}

/// Drops all but the `k` likeliest; returns the least logit that is left.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, |a, b| {
        b.logit.total_cmp(&a.logit).then(a.token_id.cmp(&b.token_id))
    });
    let floor = last.logit;
    candidates.truncate(k);
    floor
}

/// Brings to the front the fewest heaviest candidates whose weights reach `target`; returns their number.
///
/// `target` is at least 1 and at most the sum of all weights. Takes linear time: each round halves what is left.
fn smallest_prefix(candidates: &mut [Candidate], target: u64) -> usize {
    // candidates[..low] are the heaviest and don't reach the target; candidates[..high] do.
    let (mut low, mut high) = (0, candidates.len());
    let mut missing = target;
    while high - low > 1 {
        let middle = low.midpoint(high);
        candidates[low..high].select_nth_unstable_by(middle - low, |a, b| {
            b.weight.cmp(&a.weight).then(a.token_id.cmp(&b.token_id))
        });
        let weight = sum(&candidates[low..middle]);
        if weight >= missing {
            high = middle;
        } else {
            missing -= weight;
            low = middle;
        }
    }
    high
}

fn sum(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
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

    use super::*;

    fn params(temperature: f64, top_k: usize, top_p: f64) -> SamplingParams {
        let params = SamplingParams::default().with_top_k(top_k);
        params.with_temperature(temperature).unwrap().with_top_p(top_p).unwrap()
    }

    /// Ids and probabilities of the tokens that may be chosen, by sorting: the definition.
    fn distribution(logits: &[f32], params: &SamplingParams) -> Vec<(TokenId, f64)> {
        let mut tokens: Vec<(TokenId, f64)> = (0..)
            .zip(logits)
            .map(|(id, &logit)| (id, f64::from(logit) / params.temperature()))
            .collect();
        tokens.sort_by(|(a_id, a), (b_id, b)| b.total_cmp(a).then(a_id.cmp(b_id)));
        tokens.retain(|(_, logit)| *logit > f64::NEG_INFINITY);
        tokens.truncate(params.top_k().unwrap_or(usize::MAX));

        let max = tokens[0].1;
        normalise(&mut tokens, |logit| (logit - max).exp());
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

    /// The sampler's own distribution, sorted by id.
    fn sampled_distribution(logits: &[f32], params: &SamplingParams) -> Vec<(TokenId, f64)> {
        let mut sampler = Sampler::new();
        sampler.sample(logits, params, 0, 0).unwrap();
        let total = sum(&sampler.candidates) as f64;
        sampler.candidates.iter().map(|c| (c.token_id, c.weight as f64 / total)).collect()
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
        assert!(chi_squared < degrees + 6.0 * (2.0 * degrees).sqrt(), "χ² = {chi_squared}");
    }

    const LOGITS: [f32; 8] = [0.3, -1.2, 2.0, f32::NEG_INFINITY, 1.9, 0.0, -0.4, 1.0];

    #[test]
    fn draws_follow_the_distribution_over_positions_sequences_and_seeds() {
        for params in
            [params(1.0, 0, 1.0), params(0.7, 5, 1.0), params(1.5, 0, 0.8), params(2.0, 6, 0.9)]
        {
            let distribution = distribution(&LOGITS, &params);
            let mut sampler = Sampler::new();
            let mut draw = |seed, sequence, position| {
                let params = params.clone().with_seed(seed);
                sampler.sample(&LOGITS, &params, sequence, position).unwrap()
            };
            assert_distributed((0..20_000).map(|i| draw(1, 2, i)), &distribution);
            assert_distributed((0..20_000).map(|i| draw(1, i, 2)), &distribution);
            assert_distributed((0..20_000).map(|i| draw(i, 1, 2)), &distribution);
        }
    }

    #[test]
    fn neighbouring_positions_are_independent() {
        let params = params(1.0, 0, 1.0);
        let one = distribution(&LOGITS, &params);
        let pairs: Vec<(TokenId, f64)> = one
            .iter()
            .flat_map(|(a, p)| one.iter().map(move |(b, q)| (a * 8 + b, p * q)))
            .collect();
        let mut sampler = Sampler::new();
        let mut draw = |position| sampler.sample(&LOGITS, &params, 0, position).unwrap();
        assert_distributed((0..40_000).map(|i| draw(2 * i) * 8 + draw(2 * i + 1)), &pairs);
    }

    #[test]
    fn a_draw_depends_on_nothing_but_seed_sequence_and_position() {
        let params = params(1.0, 0, 0.9);
        let draw = |sampler: &mut Sampler, position: usize| {
            sampler.sample(&LOGITS, &params, (position % 3) as u64, position).unwrap()
        };
        let fresh = |position| draw(&mut Sampler::new(), position);
        let expected: Vec<TokenId> = (0..100).map(fresh).collect();
        let mut used = Sampler::new();
        for position in (0..100).rev() {
            used.sample(&[1.0; 50], &params, 9, 9).unwrap();
            assert_eq!(draw(&mut used, position), expected[position]);
        }
    }

    #[test]
    fn greedy_takes_the_largest_and_of_equals_the_lowest_id() {
        let check = |logits: &[f32], expected| {
            let token_id = Sampler::new().sample(logits, &SamplingParams::default(), 0, 0).unwrap();
            assert_eq!(token_id, expected, "{logits:?}");
            // A top_k of 1 leaves no other choice.
            assert_eq!(
                Sampler::new().sample(logits, &params(9.0, 1, 1.0), 0, 0).unwrap(),
                expected
            );
        };
        check(&[0.5], 0);
        check(&[-3.0, -1.0, -2.0], 1);
        check(&[1.0, 2.0, 2.0, 2.0], 1);
        check(&[f32::NEG_INFINITY, f32::MIN, f32::NEG_INFINITY], 1);
        check(&[-0.0, 0.0], 0);
    }

    #[test]
    fn the_token_that_crosses_top_p_is_kept() {
        let check = |top_p, expected: &[TokenId]| {
            let kept: Vec<TokenId> = sampled_distribution(&[0.0; 4], &params(1.0, 0, top_p))
                .iter()
                .map(|t| t.0)
                .collect();
            assert_eq!(kept, expected, "{top_p}");
        };
        check(1e-9, &[0]);
        check(0.25, &[0]);
        check(0.26, &[0, 1]);
        check(0.5, &[0, 1]);
        check(0.75, &[0, 1, 2]);
        check(1.0, &[0, 1, 2, 3]);
    }

    #[test]
    fn extreme_temperatures_and_logits_stay_in_range() {
        for logits in [&[f32::MAX, f32::MIN, 0.0][..], &[1e-30, 0.0], &[-5.0]] {
            for temperature in [f64::MIN_POSITIVE, 1e-6, 1e6, f64::MAX] {
                let token_id = Sampler::new().sample(logits, &params(temperature, 0, 0.9), 0, 0);
                assert!((token_id.unwrap() as usize) < logits.len());
            }
        }
        let coldest = params(f64::MIN_POSITIVE, 0, 1.0);
        assert_eq!(sampled_distribution(&[1.0, 2.0], &coldest), [(0, 0.0), (1, 1.0)]);
    }

    #[test]
    fn what_is_no_logit_is_an_error() {
        let check = |logits: &[f32], expected: &str| {
            for params in [SamplingParams::default(), params(1.0, 2, 0.5)] {
                let error = Sampler::new().sample(logits, &params, 0, 0).unwrap_err();
                assert_eq!(error.to_string(), expected);
            }
        };
        let expected = "expected a finite number or -inf";
        check(&[0.0, f32::NAN], &format!("the logit of token 1 is NaN: {expected}"));
        check(&[f32::INFINITY], &format!("the logit of token 0 is inf: {expected}"));
        let expected = "none of the 2 logits is above -inf: expected at least one";
        check(&[f32::NEG_INFINITY; 2], expected);
        check(&[], "none of the 0 logits is above -inf: expected at least one");
    }

    proptest! {
        #[test]
        fn top_k_and_top_p_equal_their_definition(
            // Few different values, so that ties are common.
            logits in prop::collection::vec((-12i8..12).prop_map(|i| f32::from(i) / 3.0), 1..300),
            masked in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
            temperature in 0.1..3.0f64,
            top_k in 0usize..80,
            top_p in 0.01..=1.0f64,
        ) {
            let mut logits = logits;
            for index in masked {
                let index = index.index(logits.len());
                if index > 0 {
                    logits[index] = f32::NEG_INFINITY;
                }
            }
            let params = params(temperature, top_k, top_p);
            let mut expected = distribution(&logits, &params);
            expected.sort_by_key(|(id, _)| *id);
            let found = sampled_distribution(&logits, &params);
            let ids = |tokens: &[(TokenId, f64)]| tokens.iter().map(|t| t.0).collect::<Vec<_>>();
            prop_assert_eq!(ids(&found), ids(&expected));
            for ((_, found), (_, expected)) in found.into_iter().zip(expected) {
                prop_assert!((found - expected).abs() < 1e-12, "{found} against {expected}");
            }
        }

        #[test]
        fn every_number_scales_below_the_bound(bits: u64, bound in 1..u64::MAX) {
            prop_assert!(scale(bits, bound) < bound);
        }
    }
}
