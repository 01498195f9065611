//! Choosing a token from a full vocabulary.

use std::hint::black_box;

use criterion::Criterion;
use nv_engine::{Sampler, SamplingParams};

/// Logits of every published Qwen3 size.
const VOCAB_SIZE: usize = 151_936;

pub(crate) fn benches(criterion: &mut Criterion) {
    let warm = || SamplingParams::default().with_temperature(0.6).unwrap().with_seed(1);
    let logits = logits();
    let best = (0..VOCAB_SIZE).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });

    let mut group = criterion.benchmark_group("sampler/151936");
    for (name, params) in [
        ("greedy", SamplingParams::default()),
        ("temperature", warm()),
        ("top_k 20", warm().with_top_k(20)),
        ("top_p 0.95", warm().with_top_p(0.95).unwrap()),
        ("top_k 20, top_p 0.95", warm().with_top_k(20).with_top_p(0.95).unwrap()),
    ] {
        let mut sampler = Sampler::new();
        let first = sampler.sample(&logits, &params, 0, 0).unwrap();
        assert_eq!(first, sampler.sample(&logits, &params, 0, 0).unwrap());
        assert!(
            logits[first as usize] <= logits[best] && (name != "greedy" || first as usize == best)
        );
        let mut position = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                position += 1;
                sampler.sample(black_box(&logits), &params, 0, position).unwrap()
            });
        });
    }
    group.finish();
}

/// A peaked distribution in no order, as a language model's is.
fn logits() -> Vec<f32> {
    let hash = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40; // 24 bits
    (0..VOCAB_SIZE).map(|i| -4.0 * (hash(i) as f32 / 16_777_216.0 + 1e-5).ln()).collect()
}
