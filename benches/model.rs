//! The graph: tokens per second of prompts and of generation, by length and by batch, on the demo checkpoint and in one layer of
//! Qwen3-0.6B's size; on all its layers, with random weights, if `NV_BENCH_FULL` is set.

use std::env;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use nv_config::load_config;
use nv_qwen3::Qwen3ForCausalLM;
use nv_synth::{PublishedSize, Recipe};
use nv_weights::Checkpoint;
use serde_json::Value;
use xtask::bench::FULL;
use xtask::cases::CASES;
use xtask::reference::Reference;
use xtask::verify::Distance;

use crate::demo;

const DTYPES: [(&str, DType); 2] = [("f32", DType::F32), ("bf16", DType::BF16)];
const PROMPT_LENS: [usize; 5] = [16, 64, 128, 256, 512];
/// Of generation.
const CONTEXTS: [usize; 3] = [128, 512, 992];
/// More than the demo can hold.
const LONG_CONTEXTS: [usize; 3] = [128, 512, 2048];
/// Sequences that are computed together, of so many tokens each.
const BATCHES: [usize; 3] = [1, 4, 16];
const BATCH_LEN: usize = 128;
const NUM_NEW_TOKENS: usize = 16;

pub(crate) fn benches(criterion: &mut Criterion) {
    load(criterion);
    let case = CASES.iter().find(|case| case.name == "demo").expect("the demo has a reference");
    let reference = Reference::read(&case.reference_path()).unwrap();
    let models = DTYPES.map(|(name, dtype)| (name, checked_model(dtype, &reference)));
    for (name, mut model) in models {
        prefill(criterion, name, &mut model);
        decode(criterion, name, &mut model, &CONTEXTS);
    }
    synthetic(criterion, "one layer", &one_layer(), &CONTEXTS);
    if env::var_os(FULL).is_some() {
        synthetic(criterion, "0.6b", &smallest(), &LONG_CONTEXTS);
    }
}

/// The config of Qwen3-0.6B.
fn smallest() -> String {
    let size: PublishedSize = "qwen3-0.6b".parse().unwrap();
    size.config_json()
}

/// A decoder layer of Qwen3-0.6B, and next to nothing around it.
fn one_layer() -> String {
    let config = smallest();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["num_hidden_layers"] = 1.into();
    config["vocab_size"] = 64.into();
    for token in ["bos_token_id", "eos_token_id"] {
        config[token] = 0.into();
    }
    config.to_string()
}

/// A model of this config with random weights, in bfloat16.
fn synthetic(criterion: &mut Criterion, name: &str, config: &str, contexts: &[usize]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    fs::write(&path, config).unwrap();
    let recipe = Recipe { config: path.clone(), seed: 1, max_shard_bytes: usize::MAX };
    let weights = recipe.write(&dir.path().join("model")).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&weights).unwrap());
    let config = load_config(&path).unwrap();
    let mut model =
        Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, DType::BF16, &Device::Cpu).unwrap();
    let logits = model.forward(&tokens(1, 0, 512), 0).unwrap().flatten_all().unwrap();
    assert!(logits.to_vec1::<f32>().unwrap().iter().all(|logit| logit.is_finite()));
    prefill(criterion, name, &mut model);
    decode(criterion, name, &mut model, contexts);
}

fn demo_model(dtype: DType) -> Qwen3ForCausalLM {
    let config = load_config(demo("config.json")).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&[demo("model.safetensors")]).unwrap());
    Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, dtype, &Device::Cpu).unwrap()
}

/// The demo model, whose logits were compared with transformers'.
fn checked_model(dtype: DType, reference: &Reference) -> Qwen3ForCausalLM {
    let mut model = demo_model(dtype);
    let input_ids = Tensor::new(&*reference.input_ids, &Device::Cpu).unwrap();
    let logits = model.forward_all(&input_ids.unsqueeze(0).unwrap(), 0).unwrap();
    let logits = logits.flatten_all().unwrap().to_vec1().unwrap();
    let top1 = Distance::between(&reference.logits_f32, &logits, reference.vocab_size).top1;
    assert!(top1 > 0.97, "the model computes something else");
    model
}

/// Tokens that every vocabulary has, at `start_pos` and after: `[batch, seq_len]`.
fn tokens(batch: usize, start_pos: usize, seq_len: usize) -> Tensor {
    let ids = (0u32..).skip(start_pos).take(seq_len).map(|i| i * 7 % 64);
    let ids: Vec<u32> = ids.collect::<Vec<u32>>().repeat(batch);
    Tensor::from_vec(ids, (batch, seq_len), &Device::Cpu).unwrap()
}

fn load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("model/load");
    for (name, dtype) in DTYPES {
        group.bench_function(name, |b| b.iter(|| demo_model(dtype)));
    }
    group.finish();
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group
}

fn prefill(criterion: &mut Criterion, name: &str, model: &mut Qwen3ForCausalLM) {
    let mut bench = |group: &mut BenchmarkGroup<'_, WallTime>, name, batch, seq_len| {
        let prompts = tokens(batch, 0, seq_len);
        group.throughput(Throughput::Elements((batch * seq_len) as u64));
        group.bench_function(name, |b| b.iter(|| model.forward(&prompts, 0).unwrap()));
    };
    let mut lens = group(criterion, "model/prefill");
    for num_tokens in PROMPT_LENS {
        bench(&mut lens, format!("{name}/{num_tokens}"), 1, num_tokens);
    }
    lens.finish();
    let mut batches = group(criterion, &format!("model/prefill of {BATCH_LEN}"));
    for batch in BATCHES {
        bench(&mut batches, format!("{name}/batch {batch}"), batch, BATCH_LEN);
    }
    batches.finish();
}

/// One token at a time after prompts, which aren't timed.
fn decode(criterion: &mut Criterion, name: &str, model: &mut Qwen3ForCausalLM, contexts: &[usize]) {
    let mut bench = |group: &mut BenchmarkGroup<'_, WallTime>, name, batch, context| {
        let prompts = tokens(batch, 0, context);
        let steps: Vec<Tensor> =
            (context..).take(NUM_NEW_TOKENS).map(|position| tokens(batch, position, 1)).collect();
        group.throughput(Throughput::Elements((batch * NUM_NEW_TOKENS) as u64));
        group.bench_function(name, |b| {
            b.iter_custom(|num_iterations| {
                let mut time = Duration::ZERO;
                for _ in 0..num_iterations {
                    model.forward(&prompts, 0).unwrap();
                    let start = Instant::now();
                    for (step, position) in steps.iter().zip(context..) {
                        model.forward(step, position).unwrap();
                    }
                    time += start.elapsed();
                }
                time
            });
        });
    };
    let mut lens = group(criterion, "model/decode");
    for &context in contexts {
        bench(&mut lens, format!("{name}/context {context}"), 1, context);
    }
    lens.finish();
    let mut batches = group(criterion, &format!("model/decode at {BATCH_LEN}"));
    for batch in BATCHES {
        bench(&mut batches, format!("{name}/batch {batch}"), batch, BATCH_LEN);
    }
    batches.finish();
}
