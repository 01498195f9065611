//! The graph: tokens per second of prompts and of generation, on the demo checkpoint and in one layer of Qwen3-0.6B's size;
//! on all its layers, with random weights, if `NV_BENCH_FULL` is set.

use std::env;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, SamplingMode, Throughput};
use nv_config::load_config;
use nv_qwen3::Qwen3ForCausalLM;
use nv_synth::{PublishedSize, Recipe};
use nv_weights::Checkpoint;
use serde_json::Value;
use xtask::cases::CASES;
use xtask::reference::Reference;
use xtask::verify::Distance;

use crate::demo;

const DTYPES: [(&str, DType); 2] = [("f32", DType::F32), ("bf16", DType::BF16)];
const CONTEXT: usize = 128;
const NUM_NEW_TOKENS: usize = 16;

pub(crate) fn benches(criterion: &mut Criterion) {
    load(criterion);
    let case = CASES.iter().find(|case| case.name == "demo").expect("the demo has a reference");
    let reference = Reference::read(&case.reference_path()).unwrap();
    let models = DTYPES.map(|(name, dtype)| (name, checked_model(dtype, &reference)));
    for (name, mut model) in models {
        prefill(criterion, name, &mut model, &reference.input_ids);
        decode(criterion, name, &mut model, &reference.input_ids);
    }
    let ids: Vec<u32> = (0..512).map(|i| i * 7 % 64).collect();
    synthetic(criterion, "one layer", &one_layer(), &ids);
    if env::var_os("NV_BENCH_FULL").is_some() {
        let config = smallest();
        synthetic(criterion, "0.6b", &config, &ids);
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
fn synthetic(criterion: &mut Criterion, name: &str, config: &str, ids: &[u32]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    fs::write(&path, config).unwrap();
    let recipe = Recipe { config: path.clone(), seed: 1, max_shard_bytes: usize::MAX };
    let weights = recipe.write(&dir.path().join("model")).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&weights).unwrap());
    let config = load_config(&path).unwrap();
    let mut model =
        Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, DType::BF16, &Device::Cpu).unwrap();
    let logits = model.forward(&input_ids(ids), 0).unwrap().flatten_all().unwrap();
    assert!(logits.to_vec1::<f32>().unwrap().iter().all(|logit| logit.is_finite()));
    prefill(criterion, name, &mut model, ids);
    decode(criterion, name, &mut model, ids);
}

fn demo_model(dtype: DType) -> Qwen3ForCausalLM {
    let config = load_config(demo("config.json")).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&[demo("model.safetensors")]).unwrap());
    Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, dtype, &Device::Cpu).unwrap()
}

/// The demo model, whose logits were compared with transformers'.
fn checked_model(dtype: DType, reference: &Reference) -> Qwen3ForCausalLM {
    let mut model = demo_model(dtype);
    let logits = model.forward_all(&input_ids(&reference.input_ids), 0).unwrap();
    let logits = logits.flatten_all().unwrap().to_vec1().unwrap();
    let top1 = Distance::between(&reference.logits_f32, &logits, reference.vocab_size).top1;
    assert!(top1 > 0.97, "the model computes something else");
    model
}

/// `[1, seq_len]`
fn input_ids(ids: &[u32]) -> Tensor {
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

fn load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("model/load");
    for (name, dtype) in DTYPES {
        group.bench_function(name, |b| b.iter(|| demo_model(dtype)));
    }
    group.finish();
}

fn prefill(criterion: &mut Criterion, name: &str, model: &mut Qwen3ForCausalLM, ids: &[u32]) {
    let mut group = criterion.benchmark_group("model/prefill");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for num_tokens in [CONTEXT, ids.len()] {
        let prompt = input_ids(&ids[..num_tokens]);
        group.throughput(Throughput::Elements(num_tokens as u64));
        group.bench_function(format!("{name}/{num_tokens}"), |b| {
            b.iter(|| model.forward(&prompt, 0).unwrap());
        });
    }
    group.finish();
}

/// One token at a time after a prompt, which isn't timed.
fn decode(criterion: &mut Criterion, name: &str, model: &mut Qwen3ForCausalLM, ids: &[u32]) {
    let mut group = criterion.benchmark_group("model/decode");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    let prompt = input_ids(&ids[..CONTEXT]);
    let steps: Vec<Tensor> =
        ids[CONTEXT..][..NUM_NEW_TOKENS].iter().map(|&id| input_ids(&[id])).collect();
    group.throughput(Throughput::Elements(NUM_NEW_TOKENS as u64));
    group.bench_function(format!("{name}/context {CONTEXT}"), |b| {
        b.iter_custom(|num_iterations| {
            let mut time = Duration::ZERO;
            for _ in 0..num_iterations {
                model.forward(&prompt, 0).unwrap();
                let start = Instant::now();
                for (i, step) in steps.iter().enumerate() {
                    model.forward(step, CONTEXT + i).unwrap();
                }
                time += start.elapsed();
            }
            time
        });
    });
    group.finish();
}
