//! The engine gives what the model gives alone, to the bit, in whatever way it serves.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device};
use nv_config::load_config;
use nv_engine::{
    Engine, EngineConfig, Generation, KvCacheMemory, Request, SamplingParams, TokenId,
};
use nv_kernels::Isa;
use nv_qwen3::{Preset, Qwen3ForCausalLM};
use nv_weights::{Checkpoint, ModelFiles};
use tempfile::TempDir;
use xtask::verify::{
    Invariance, NUM_ALL_WAYS, Serving, passed, random_checkpoint, verify_serving, ways,
};

use crate::copies::start_of;

fn demo() -> ModelFiles {
    ModelFiles::from_dir(xtask::root().join("assets/demo")).unwrap()
}

fn random(name: &str) -> (TempDir, ModelFiles) {
    let dir = tempfile::tempdir().unwrap();
    let files = random_checkpoint(name, dir.path()).unwrap();
    (dir, files)
}

#[test]
#[expect(clippy::print_stdout, reason = "a run says what it covered")]
fn every_way_of_serving_gives_the_bits_of_the_model_alone() {
    let start = Instant::now();
    let rows = verify_serving(Isa::detect()).unwrap();
    // Two checkpoints, in float32, bfloat16 and each preset.
    assert_eq!(rows.len(), 2 * (2 + Preset::ALL.len()));
    for row in &rows {
        assert!(row.passed(), "{row}");
        assert_eq!(row.num_runs, 3 * ways().len());
    }
    assert!(passed(&rows));
    let sum = |count: fn(&Invariance) -> usize| rows.iter().map(count).sum::<usize>();
    let num_accepted_tokens: u64 = rows.iter().map(|row| row.num_accepted_tokens).sum();
    println!(
        "{} runs: {} of {NUM_ALL_WAYS} ways in which every two choices meet, on 2 checkpoints, in 2 dtypes and \
         quantised, greedy, seeded, and seeded among two tokens: {} rows of logits in {:?}; {num_accepted_tokens} guessed tokens were right",
        sum(|row| row.num_runs),
        ways().len(),
        sum(|row| row.num_rows),
        start.elapsed(),
    );
}

/// Settings under which requests take each other's old blocks.
fn small() -> EngineConfig {
    EngineConfig {
        kv_cache_memory: KvCacheMemory::Tokens(128),
        block_size: 8,
        ..EngineConfig::default()
    }
}

fn engine(files: &ModelFiles, dtype: DType) -> Engine {
    engine_with(files, dtype, small())
}

fn engine_with(files: &ModelFiles, dtype: DType, engine_config: EngineConfig) -> Engine {
    let config = load_config(&files.config).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&files.weights).unwrap());
    let model = Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, dtype, &Device::Cpu);
    Engine::new(model.unwrap(), engine_config).unwrap()
}

fn request(seed: u32, len: u32, params: &SamplingParams) -> Request {
    let prompt = (0..len).map(|i| (i * i * 31 + i * seed + seed) % 200).collect();
    Request::new(prompt, params.clone())
}

fn token_ids(generation: nv_engine::Result<Generation>) -> Vec<Vec<TokenId>> {
    generation.unwrap().completions.into_iter().map(|completion| completion.token_ids).collect()
}

/// A token whose embedding is NaN in [`poisoned`].
const POISON: TokenId = 300;

/// A checkpoint that gives NaN for [`POISON`].
struct Poisoned {
    _dir: TempDir,
    files: ModelFiles,
    /// What it gives for `request(3, 50, params)`.
    expected: [(DType, Vec<Vec<TokenId>>); 2],
}

fn poisoned(params: &SamplingParams) -> Poisoned {
    let (dir, files) = random("untied-gqa2-bias");
    let expected = [DType::F32, DType::BF16].map(|dtype| {
        let alone = engine(&files, dtype).generate(vec![request(3, 50, params)]).remove(0);
        (dtype, token_ids(alone))
    });
    let path = &files.weights[0];
    let mut bytes = fs::read(path).unwrap();
    let start = start_of("model.embed_tokens.weight", &bytes) + 2 * 64 * POISON as usize;
    bytes[start..start + 2].copy_from_slice(&[0xff, 0x7f]);
    fs::write(path, bytes).unwrap();
    Poisoned { _dir: dir, files, expected }
}

#[test]
fn what_a_nan_left_in_a_block_is_not_seen_by_its_next_owner() {
    let params = SamplingParams::default().with_max_tokens(40).unwrap();
    let Poisoned { _dir, files, expected } = poisoned(&params);
    for (dtype, expected) in expected {
        let mut engine = engine(&files, dtype);
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

#[test]
fn a_nan_is_not_seen_by_those_who_share_what_comes_before_it() {
    let params = SamplingParams::default().with_max_tokens(40).unwrap();
    let Poisoned { _dir, files, expected } = poisoned(&params);
    for (dtype, expected) in expected {
        let config = EngineConfig { max_num_seqs: 8, max_num_batched_tokens: 40, ..small() };
        let mut engine = engine_with(&files, dtype, config);
        let mut shared = request(3, 27, &params);
        // In the same chunk, which samples nothing, so that the blocks before it are there to be shared.
        shared.prompt_token_ids.extend([POISON; 30]);
        assert!(engine.generate(vec![shared]).remove(0).is_err());
        let generation = engine.generate(vec![request(3, 50, &params)]).remove(0);
        assert_eq!(generation.as_ref().unwrap().num_cached_tokens, 24, "{dtype:?}");
        assert_eq!(token_ids(generation), expected, "{dtype:?}");
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
        let serving = Serving::open(files.clone(), dtype, None, Isa::detect()).unwrap();
        let expected = serving.alone(&params).unwrap();
        let (served, _) = serving.serve(&ways()[0], &params).unwrap();
        assert_eq!(served.token_ids, expected.token_ids, "{dtype:?}");
    }
}

#[test]
fn guesses_save_steps_and_change_no_token() {
    let files = demo();
    let params = SamplingParams::default().with_max_tokens(70).unwrap();
    let warm = params.clone().with_temperature(0.4).unwrap().with_seed(3);
    for params in [params, warm] {
        let run = |num_speculative_tokens| {
            let config = EngineConfig { num_speculative_tokens, ..small() };
            let mut engine = engine_with(&files, DType::F32, config);
            let token_ids = token_ids(engine.generate(vec![request(3, 40, &params)]).remove(0));
            (token_ids, engine.stats().scheduler)
        };
        let ((expected, without), (found, with)) = (run(0), run(4));
        assert_eq!(found, expected);
        assert_eq!(without.num_steps, with.num_steps + with.num_accepted_tokens);
        // Chance makes a text harder to guess.
        let at_least = if params.is_greedy() { 10 } else { 1 };
        assert!(with.num_accepted_tokens >= at_least, "{with:?}");
        assert!(with.num_accepted_tokens <= with.num_draft_tokens);
    }
}
