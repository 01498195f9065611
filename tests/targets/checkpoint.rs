//! Weights: an index of shards, the header of a file, a whole model.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use nv_config::load_config;
use nv_kernels::Kernels;
use nv_qwen3::{Cpu, Qwen3ForCausalLM, copied_weights};
use nv_weights::{Checkpoint, ModelFiles};

use super::scratch;

/// The shards that an index is about: their names and their tensors, of a byte each.
const SHARDS: [(&str, &[&str]); 2] = [("1.safetensors", &["a"]), ("2.safetensors", &["b", "c"])];

fn shard(tensors: &[&str]) -> Vec<u8> {
    let entries = tensors.iter().enumerate().map(|(at, name)| {
        format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#, at + 1)
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    let data = vec![0; tensors.len()];
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// `model.safetensors.index.json`: an index that is accepted names the two shards that are there, and nothing else.
pub fn shard_index(data: &[u8]) {
    scratch::write("config.json", b"{}");
    let _ = std::fs::remove_file(scratch::dir().join("model.safetensors"));
    let shards = SHARDS.map(|(name, tensors)| scratch::write(name, &shard(tensors)));
    // Were they not whole, no index would be looked at.
    Checkpoint::open(&shards).expect("the shards are whole");
    scratch::write("model.safetensors.index.json", data);
    match ModelFiles::from_dir(scratch::dir()) {
        // A shard that an index doesn't name is no part of the model.
        Ok(files) => assert!(files.weights.iter().all(|path| shards.contains(path))),
        // The index or a shard.
        Err(error) => scratch::assert_names(&error, &scratch::dir()),
    }
}

/// A file of weights: mapped and copied it has the same tensors, which fill it without gap or overlap.
pub fn safetensors_header(data: &[u8]) {
    let paths = [scratch::write("model.safetensors", data)];
    let (mapped, copied) = (Checkpoint::open(&paths), Checkpoint::read(&paths));
    let (mapped, copied) = match (mapped, copied) {
        (Ok(mapped), Ok(copied)) => (mapped, copied),
        (Err(mapped), Err(copied)) => {
            assert_eq!(mapped.to_string(), copied.to_string());
            return scratch::assert_names(&mapped, &paths[0]);
        }
        (mapped, copied) => panic!("mapped: {mapped:?}; copied: {copied:?}"),
    };
    for (a, b) in mapped.tensors().zip(copied.tensors()) {
        assert_eq!(
            (a.name(), a.dtype(), a.shape(), a.bytes()),
            (b.name(), b.dtype(), b.shape(), b.bytes())
        );
        let num_elements: usize = a.shape().iter().product();
        assert_eq!(a.bytes().len() * 8, num_elements * a.dtype().bitsize());
        assert!(mapped.get(a.name()).is_some());
    }
    let len = data.first_chunk().map_or(0, |len| u64::from_le_bytes(*len));
    assert_eq!(mapped.num_bytes() as u64 + 8 + len, data.len() as u64);
}

/// A folder with a config (up to the first zero byte) and a file of weights (all that follows): what loads can be computed.
pub fn checkpoint(data: &[u8]) {
    let config_len = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let (config, weights) = data.split_at(config_len);
    scratch::write("config.json", config);
    scratch::write("model.safetensors", weights.get(1..).unwrap_or_default());
    let files = ModelFiles::from_dir(scratch::dir()).expect("both files are there");
    let Ok(config) = load_config(&files.config) else { return };
    let Ok(checkpoint) = Checkpoint::open(&files.weights).map(Arc::new) else { return };
    for dtype in [DType::F32, DType::BF16] {
        let kernels = Kernels::best().expect("a tier that every machine has");
        let cpu = Cpu::with_kernels(kernels, 1).expect("one thread, which is this one");
        let Ok(mut model) = Qwen3ForCausalLM::from_checkpoint_on(&config, &checkpoint, dtype, cpu)
        else {
            continue;
        };
        let copied = copied_weights(&config, &checkpoint, dtype);
        assert!(copied.len() <= checkpoint.tensors().len());
        let device = candle_core::Device::Cpu;
        let input_ids = Tensor::new(&[[0_u32]], &device).expect("a tensor of one element");
        let logits = model.forward(&input_ids, 0).expect("what was loaded can be computed");
        assert_eq!(logits.dims(), [1, config.vocab_size]);
    }
}
