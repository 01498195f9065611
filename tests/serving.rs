//! The engine gives what the model gives alone, to the bit, in whatever way it serves.

use std::fs;
use std::time::Instant;

use candle_core::DType;
use nv_engine::SamplingParams;
use nv_weights::ModelFiles;
use serde_json::Value;
use tempfile::TempDir;
use xtask::cases::references_dir;
use xtask::synth::Recipe;
use xtask::verify::{Preemption, Serving, ways};

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
