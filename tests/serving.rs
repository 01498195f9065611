//! The engine gives what the model gives alone, to the bit, in whatever way it serves.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device};
use nv_config::load_config;
use nv_engine::{
    Engine, EngineConfig, Generation, KvCacheMemory, Request, SamplingParams, TokenId,
};
use nv_qwen3::Qwen3ForCausalLM;
use nv_weights::{Checkpoint, ModelFiles};
use serde_json::Value;
use tempfile::TempDir;
use xtask::cases::references_dir;
use xtask::synth::Recipe;
use xtask::verify::{Preemption, Serving, ways};

use crate::copies::start_of;

fn demo() -> ModelFiles {
    ModelFiles::from_dir(xtask::root().join("assets/demo")).unwrap()
}

/// A random checkpoint of the config of that name, with a context that holds a long queue.
fn random(name: &str) -> (TempDir, ModelFiles) {
    let dir = tempfile::tempdir().unwrap();
    let config = fs::read(references_dir().join(format!("{name}.config.json"))).unwrap();
    let mut json: Value = serde_json::from_slice(&config).unwrap();
    json["max_position_embeddings"] = 1024.into();
    let config = dir.path().join("config.json");
    fs::write(&config, json.to_string()).unwrap();
    let out = dir.path().join("checkpoint");
    Recipe { config, seed: 5, max_shard_bytes: usize::MAX }.write(&out).unwrap();
    let files = ModelFiles::from_dir(out).unwrap();
    (dir, files)
}

#[test]
#[expect(clippy::print_stdout, reason = "a run says what it covered")]
fn every_way_of_serving_gives_the_bits_of_the_model_alone() {
    let start = Instant::now();
    let greedy = SamplingParams::default();
    let warm = SamplingParams::default().with_temperature(0.9).unwrap().with_seed(11);
    let warm = warm.with_top_p(0.95).unwrap().with_repetition_penalty(1.05).unwrap();
    let (_dir, synthetic) = random("untied-gqa2-bias");
    let ways = ways();
    let (mut num_runs, mut num_accepted_tokens) = (0, 0);
    for (name, files) in [("demo", demo()), ("synthetic", synthetic)] {
        for dtype in [DType::F32, DType::BF16] {
            let serving = Serving::open(files.clone(), dtype).unwrap();
            for params in [&greedy, &warm] {
                let expected = serving.alone(params).unwrap();
                for way in &ways {
                    let (served, found) = serving.serve(way, params).unwrap();
                    assert_eq!(served.token_ids, expected.token_ids, "{name}, {dtype:?}, {way}");
                    assert!(served.logits == expected.logits, "{name}, {dtype:?}, {way}");
                    assert_eq!(found.num_cached_tokens > 0, way.hits_prefix, "{way}");
                    let is_right = match way.preemption {
                        Preemption::Never => found.num_preemptions == 0,
                        Preemption::Once => found.num_preemptions == 1,
                        Preemption::Often => found.num_preemptions >= 3,
                    };
                    assert!(is_right, "{found:?}, {way}");
                    num_runs += 1;
                    num_accepted_tokens += found.num_accepted_tokens;
                }
            }
        }
    }
    assert!(num_accepted_tokens > 0);
    println!(
        "{num_runs} runs: {} of 1152 ways in which every two choices meet, on 2 checkpoints, in 2 dtypes, greedy and \
         seeded, in {:?}; {num_accepted_tokens} guessed tokens were right",
        ways.len(),
        start.elapsed(),
    );
}

/// An engine over the checkpoint in `files`, small enough for requests to take each other's old blocks.
fn engine(files: &ModelFiles, dtype: DType) -> Engine {
    let config = load_config(&files.config).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&files.weights).unwrap());
    let model = Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, dtype, &Device::Cpu);
    let config = EngineConfig {
        kv_cache_memory: KvCacheMemory::Tokens(128),
        block_size: 8,
        ..EngineConfig::default()
    };
    Engine::new(model.unwrap(), config).unwrap()
}

fn request(seed: u32, len: u32, params: &SamplingParams) -> Request {
    let prompt = (0..len).map(|i| (i * i * 31 + i * seed + seed) % 200).collect();
    Request::new(prompt, params.clone())
}

fn token_ids(generation: nv_engine::Result<Generation>) -> Vec<Vec<TokenId>> {
    generation.unwrap().completions.into_iter().map(|completion| completion.token_ids).collect()
}

#[test]
fn what_a_nan_left_in_a_block_is_not_seen_by_its_next_owner() {
    const POISON: TokenId = 300;
    let (_dir, files) = random("untied-gqa2-bias");
    let clean = |dtype| {
        let params = SamplingParams::default().with_max_tokens(40).unwrap();
        engine(&files, dtype).generate(vec![request(3, 50, &params)]).remove(0)
    };
    let expected = [DType::F32, DType::BF16].map(|dtype| token_ids(clean(dtype)));

    // The last row of 64 elements of the embedding that the poison is looked up in.
    let path = &files.weights[0];
    let mut bytes = fs::read(path).unwrap();
    let start = start_of("model.embed_tokens.weight", &bytes) + 2 * 64 * POISON as usize;
    bytes[start..start + 2].copy_from_slice(&[0xff, 0x7f]);
    fs::write(path, bytes).unwrap();
    for (dtype, expected) in [DType::F32, DType::BF16].into_iter().zip(expected) {
        let mut engine = engine(&files, dtype);
        let params = SamplingParams::default().with_max_tokens(40).unwrap();
        // Fills all blocks.
        let poisoned = Request::new(vec![POISON; 80], params.clone());
        for _ in 0..3 {
            let mut generations =
                engine.generate(vec![poisoned.clone(), request(3, 50, &params), poisoned.clone()]);
            for generation in [generations.remove(2), generations.remove(0)] {
                assert_eq!(
                    generation.unwrap_err().to_string(),
                    "the logit of token 0 is NaN: expected a finite number or -inf"
                );
            }
            assert_eq!(token_ids(generations.remove(0)), expected, "{dtype:?}");
        }
    }
}

/// Where the kernels don't attend, bits may differ; tokens of a random model hang on them less.
#[test]
fn heads_that_the_kernels_do_not_take_are_served_too() {
    let (_dir, files) = random("untied-gqa1-narrow-heads");
    let params = SamplingParams::default().with_max_tokens(30).unwrap();
    let warm = params.clone().with_temperature(0.8).unwrap().with_n(3).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let requests =
            || vec![request(3, 21, &params), request(5, 21, &warm), request(7, 9, &params)];
        let alone = requests()
            .into_iter()
            .map(|request| token_ids(engine(&files, dtype).generate(vec![request]).remove(0)));
        let mut together = engine(&files, dtype);
        let found = together.generate(requests()).into_iter().map(token_ids);
        assert_eq!(found.collect::<Vec<_>>(), alone.collect::<Vec<_>>(), "{dtype:?}");

        // The first ones are the contiguous cache's.
        let serving = Serving::open(files.clone(), dtype).unwrap();
        let expected = serving.alone(&params).unwrap();
        let (served, _) = serving.serve(&ways()[0], &params).unwrap();
        assert_eq!(served.token_ids, expected.token_ids, "{dtype:?}");
    }
}
