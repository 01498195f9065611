//! Requests at random: what they ask and when they come. The same for the same seed.

use std::ops::RangeInclusive;
use std::time::Duration;

use nano_vllm_rs::engine::TokenId;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::args::RequestArgs;

/// When requests arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Arrivals {
    /// So many are under way: one arrives when another ends.
    Concurrency(usize),
    /// At random, so many a second on average.
    Rate(f64),
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Planned {
    /// From the start, if it does not wait for others.
    pub(super) arrival: Duration,
    pub(super) prompt: Vec<TokenId>,
    pub(super) num_output_tokens: usize,
}

impl Arrivals {
    /// As `args` ask, of `num_requests`.
    pub(super) fn new(args: &RequestArgs, num_requests: usize) -> Self {
        match args.rate {
            Some(rate) => Self::Rate(rate),
            None => Self::Concurrency(args.concurrency.unwrap_or(num_requests).min(num_requests)),
        }
    }
}

/// `num_requests` as `args` ask, in the order in which they arrive, for a model of `vocab_size` tokens.
pub(super) fn plan(
    args: &RequestArgs,
    num_requests: usize,
    arrivals: Arrivals,
    vocab_size: usize,
) -> Vec<Planned> {
    let mut random = ChaCha8Rng::seed_from_u64(args.seed);
    let prefix = token_ids(args.shared_prefix, vocab_size, &mut random);
    let mut time = 0.0;
    let planned = |_| {
        if let Arrivals::Rate(rate) = arrivals {
            // Times between arrivals of a Poisson process.
            time -= (1.0 - unit(&mut random)).ln() / rate;
        }
        let num_prompt_tokens = within(&args.input_len, &mut random).max(prefix.len() + 1);
        let mut prompt = prefix.clone();
        prompt.extend(token_ids(num_prompt_tokens - prefix.len(), vocab_size, &mut random));
        let num_output_tokens = within(&args.output_len, &mut random);
        Planned { arrival: Duration::from_secs_f64(time), prompt, num_output_tokens }
    };
    (0..num_requests).map(planned).collect()
}

/// From 0 to below 1.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Below `end`, which is at least 1.
fn below(end: usize, random: &mut ChaCha8Rng) -> usize {
    // The high half of a product: no division, and no bias that could be seen.
    let product = u128::from(random.next_u64()) * end as u128;
    usize::try_from(product >> 64).unwrap_or(0)
}

fn within(range: &RangeInclusive<usize>, random: &mut ChaCha8Rng) -> usize {
    range.start() + below(range.end() - range.start() + 1, random)
}

fn token_ids(len: usize, vocab_size: usize, random: &mut ChaCha8Rng) -> Vec<TokenId> {
    (0..len).map(|_| TokenId::try_from(below(vocab_size, random)).unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RequestArgs {
        RequestArgs {
            requests: Some(400),
            concurrency: None,
            rate: None,
            input_len: 10..=20,
            output_len: 5..=5,
            shared_prefix: 4,
            seed: 7,
        }
    }

    #[test]
    fn lengths_and_tokens_are_in_their_ranges_and_prompts_begin_alike() {
        let planned = plan(&args(), 400, Arrivals::Concurrency(4), 100);
        let prefix = planned[0].prompt[..4].to_vec();
        for one in &planned {
            assert!((10..=20).contains(&one.prompt.len()));
            assert_eq!((&one.prompt[..4], one.num_output_tokens), (&prefix[..], 5));
            assert!(one.prompt.iter().all(|&id| id < 100));
            assert!(one.arrival.is_zero());
        }
        let lengths = |len| planned.iter().any(|one| one.prompt.len() == len);
        assert!(lengths(10) && lengths(20));
        assert_ne!(planned[0].prompt[4..], planned[1].prompt[4..]);
    }

    #[test]
    fn a_prompt_is_longer_than_what_it_shares() {
        let args = RequestArgs { shared_prefix: 50, ..args() };
        let planned = plan(&args, 3, Arrivals::Concurrency(4), 100);
        assert!(planned.iter().all(|one| one.prompt.len() == 51));
    }

    #[test]
    fn arrivals_have_the_rate_that_is_asked_for_and_are_no_clockwork() {
        let planned = plan(&args(), 400, Arrivals::Rate(20.0), 100);
        assert!(planned.is_sorted_by_key(|one| one.arrival));
        let last = planned[399].arrival.as_secs_f64();
        assert!((18.0..22.0).contains(&last), "{last}");
        let gaps = planned
            .windows(2)
            .map(|two| two[1].arrival.as_secs_f64() - two[0].arrival.as_secs_f64());
        // The deviation of an exponential distribution is its mean.
        let square = gaps.map(|gap| gap * gap).sum::<f64>() / 399.0;
        assert!((1.5..2.6).contains(&(square * 20.0 * 20.0)), "{square}");
    }

    #[test]
    fn a_seed_says_it_all() {
        let of = |seed| plan(&RequestArgs { seed, ..args() }, 20, Arrivals::Rate(1.0), 100);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }
}
