//! The graph on the demo checkpoint: tokens per second of prompts and of generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, SamplingMode, Throughput};
use nv_config::load_config;
use nv_qwen3::Qwen3ForCausalLM;
use nv_weights::Checkpoint;
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
    for num_tokens in [CONTEXT, 256] {
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
