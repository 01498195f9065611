//! Starting up: config, headers, index, weights.

use std::fs;
use std::hint::black_box;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use criterion::{Criterion, Throughput};
use nv_config::load_config;
use nv_qwen3::tensor_shapes;
use nv_weights::{Checkpoint, ModelFiles, load_safetensors};
use xtask::synth::Recipe;

use crate::demo;

pub(crate) fn benches(criterion: &mut Criterion) {
    config(criterion);
    open(criterion);
    headers(criterion);
    index(criterion);
    var_builder(criterion);
}

fn config(criterion: &mut Criterion) {
    let path = demo("config.json");
    assert_eq!(load_config(&path).unwrap().num_hidden_layers, 6);
    criterion.bench_function("config/load", |b| b.iter(|| load_config(black_box(&path)).unwrap()));
}

/// Opening reads and checks headers, so its cost goes with the number of tensors and not with their size.
fn open(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let single = many_tensors(dir.path(), "single", usize::MAX);
    let sharded = many_tensors(dir.path(), "sharded", 20_000);
    assert_eq!((single.len(), sharded.len()), (1, 8));

    let mut group = criterion.benchmark_group("checkpoint/open");
    for (name, paths, num_tensors) in [
        ("demo", vec![demo("model.safetensors")], 68),
        ("deep", single, 1_410),
        ("deep, 8 shards", sharded, 1_410),
    ] {
        assert_eq!(Checkpoint::open(&paths).unwrap().tensors().len(), num_tensors);
        group.throughput(Throughput::Elements(num_tensors as u64));
        group.bench_function(name, |b| b.iter(|| Checkpoint::open(black_box(&paths)).unwrap()));
    }
    group.finish();
}

/// A checkpoint of 128 tiny layers.
fn many_tensors(dir: &Path, name: &str, max_shard_bytes: usize) -> Vec<PathBuf> {
    let config = dir.join("config.json");
    let json = r#"{"model_type": "qwen3", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}"#;
    fs::write(&config, json).unwrap();
    Recipe { config, seed: 1, max_shard_bytes }.write(&dir.join(name)).unwrap()
}

/// How the cost of a header grows with its tensors.
fn headers(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let mut group = criterion.benchmark_group("checkpoint/header");
    group.sample_size(10);
    for num_tensors in [1, 100, 10_000, 100_000] {
        let path = dir.path().join(format!("{num_tensors}.safetensors"));
        fs::write(&path, bytes_of(0..num_tensors)).unwrap();
        let paths = [path];
        assert_eq!(Checkpoint::open(&paths).unwrap().tensors().len(), num_tensors);
        group.throughput(Throughput::Elements(num_tensors as u64));
        group.bench_function(num_tensors.to_string(), |b| {
            b.iter(|| Checkpoint::open(black_box(&paths)).unwrap());
        });
    }
    group.finish();
}

/// Finding the shards of a folder: the index is compared with all their headers.
fn index(criterion: &mut Criterion) {
    const NUM_SHARDS: usize = 10;
    let mut group = criterion.benchmark_group("model_files/index");
    group.sample_size(10);
    for num_tensors in [100, 1_000, 10_000] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        let mut weight_map = serde_json::Map::new();
        for shard in 0..NUM_SHARDS {
            let name = format!("model-{:05}-of-{NUM_SHARDS:05}.safetensors", shard + 1);
            let size = num_tensors / NUM_SHARDS;
            let tensors = shard * size..(shard + 1) * size;
            weight_map.extend(tensors.clone().map(|i| (tensor_name(i), name.clone().into())));
            fs::write(dir.path().join(name), bytes_of(tensors)).unwrap();
        }
        let index = serde_json::json!({ "weight_map": weight_map });
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        assert_eq!(ModelFiles::from_dir(dir.path()).unwrap().weights.len(), NUM_SHARDS);
        group.throughput(Throughput::Elements(num_tensors as u64));
        group.bench_function(num_tensors.to_string(), |b| {
            b.iter(|| ModelFiles::from_dir(black_box(dir.path())).unwrap());
        });
    }
    group.finish();
}

fn tensor_name(number: usize) -> String {
    format!("model.layers.{}.weight_{number}", number / 100)
}

/// A file of tensors of one element each.
fn bytes_of(tensors: Range<usize>) -> Vec<u8> {
    let num_tensors = tensors.len();
    let mut header = serde_json::Map::new();
    for (i, number) in tensors.enumerate() {
        let tensor = serde_json::json!({ "dtype": "U8", "shape": [1], "data_offsets": [i, i + 1] });
        header.insert(tensor_name(number), tensor);
    }
    let header = serde_json::Value::Object(header).to_string();
    let length = u64::try_from(header.len()).unwrap().to_le_bytes();
    [&length[..], header.as_bytes(), &vec![0; num_tensors]].concat()
}

fn var_builder(criterion: &mut Criterion) {
    let paths = [demo("model.safetensors")];
    let shapes = tensor_shapes(&load_config(demo("config.json")).unwrap());
    let num_bytes = fs::metadata(&paths[0]).unwrap().len();

    let mut group = criterion.benchmark_group("var_builder/load");
    group.throughput(Throughput::Bytes(num_bytes));
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        let load = || {
            let vb = load_safetensors(&paths, dtype, &Device::Cpu).unwrap();
            for (name, shape) in &shapes {
                black_box(vb.get(shape.as_slice(), name).unwrap());
            }
        };
        group.bench_function(name, |b| b.iter(load));
    }
    group.finish();
}
