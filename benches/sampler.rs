//! Choosing a token from a full vocabulary.

use std::hint::black_box;

use criterion::Criterion;
use nv_engine::{Sampler, SamplingParams, SamplingState, TokenLogprobs};
use nv_testing::Random;

/// Logits of every published Qwen3 size.
const VOCAB_SIZE: usize = 151_936;

pub(crate) fn benches(criterion: &mut Criterion) {
    let warm = || SamplingParams::default().with_temperature(0.6).unwrap().with_seed(1);
    let hot = || warm().with_temperature(1.0).unwrap();
    let logits = logits();
    let best = (0..VOCAB_SIZE).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });

    let mut group = criterion.benchmark_group("sampler/151936");
    for (name, params) in [
        ("greedy", SamplingParams::default()),
        ("temperature 1", hot()),
        ("top_k 20", warm().with_top_k(20)),
        ("top_k 50000", hot().with_top_k(50_000)),
        ("top_p 0.95", hot().with_top_p(0.95).unwrap()),
        (
            "top_p 0.95, temperature 100",
            hot().with_temperature(100.0).unwrap().with_top_p(0.95).unwrap(),
        ),
        ("min_p 0.05", hot().with_min_p(0.05).unwrap()),
        ("top_k 20, top_p 0.95", warm().with_top_k(20).with_top_p(0.95).unwrap()),
        ("penalties, greedy", SamplingParams::default().with_repetition_penalty(1.1).unwrap()),
        (
            "penalties, top_p 0.95",
            hot()
                .with_top_p(0.95)
                .and_then(|params| params.with_repetition_penalty(1.1))
                .and_then(|params| params.with_presence_penalty(0.5))
                .and_then(|params| params.with_frequency_penalty(0.5))
                .unwrap(),
        ),
    ] {
        let mut sampler = Sampler::new();
        let mut state = SamplingState::new(&params, 0, &prompt());
        let first = sampler.sample(&logits, &params, &state).unwrap();
        assert_eq!(first, sampler.sample(&logits, &params, &state).unwrap());
        assert!(
            logits[first as usize] <= logits[best] && (name != "greedy" || first as usize == best)
        );
        group.bench_function(name, |b| {
            b.iter(|| {
                state.push(1);
                sampler.sample(black_box(&logits), &params, &state).unwrap()
            });
        });
    }
    let row = TokenLogprobs::new(&logits, 7, 20).unwrap();
    assert_eq!((row.token.token_id, row.top[0].token_id as usize, row.top.len()), (7, best, 20));
    group.bench_function("logprobs, top 20", |b| {
        b.iter(|| TokenLogprobs::new(black_box(&logits), 7, 20).unwrap());
    });
    group.finish();
}

/// A peaked distribution in no order, as a language model's is.
fn logits() -> Vec<f32> {
    let mut random = Random::new(1);
    (0..VOCAB_SIZE).map(|_| -4.0 * (random.unit() + 1e-5).ln()).collect()
}

/// Some thousand tokens, most of them different.
fn prompt() -> Vec<u32> {
    (0..4096).map(|i| (i * 7919) % 151_936).collect()
}
