//! Different ways to the same logits, which agree to the bit.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use nv_config::load_config;
use nv_qwen3::Qwen3ForCausalLM;
use nv_weights::{Checkpoint, ModelFiles, load_safetensors};
use xtask::cases::references_dir;
use xtask::synth::Recipe;

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn demo() -> ModelFiles {
    ModelFiles::from_dir(xtask::root().join("assets/demo")).unwrap()
}

fn load(files: &ModelFiles, dtype: DType) -> Qwen3ForCausalLM {
    let config = load_config(&files.config).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&files.weights).unwrap());
    Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, dtype, &Device::Cpu).unwrap()
}

/// Ids of a vocabulary of at least 256, in no order; `row` tells prompts apart.
fn prompt(row: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (i * i * 31 + i * 7 + row * 101) % 256).collect()
}

/// The logits of `rows`, which have equal lengths, in one call: `[batch, seq_len, vocab_size]`.
fn logits(model: &mut Qwen3ForCausalLM, rows: &[Vec<u32>]) -> Tensor {
    let shape = (rows.len(), rows[0].len());
    let input_ids = Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap();
    model.forward_all(&input_ids, 0).unwrap()
}

fn bits(logits: &Tensor) -> Vec<u32> {
    let values = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn shards_and_a_single_file_give_equal_bits() {
    let dir = tempfile::tempdir().unwrap();
    let files = |name, max_shard_bytes| {
        let config = references_dir().join("untied-gqa5-sharded.config.json");
        let out = dir.path().join(name);
        Recipe { config, seed: 11, max_shard_bytes }.write(&out).unwrap();
        ModelFiles::from_dir(out).unwrap()
    };
    let (single, sharded) = (files("single", usize::MAX), files("sharded", 50_000));
    assert_eq!(single.weights.len(), 1);
    assert!(sharded.weights.len() > 5);
    for dtype in DTYPES {
        let [a, b] =
            [&single, &sharded].map(|files| logits(&mut load(files, dtype), &[prompt(0, 20)]));
        assert_eq!(bits(&a), bits(&b), "{dtype:?}");
    }
}

#[test]
fn a_var_builder_and_a_checkpoint_give_equal_bits() {
    let files = demo();
    let config = load_config(&files.config).unwrap();
    for dtype in DTYPES {
        let vb = load_safetensors(&files.weights, dtype, &Device::Cpu).unwrap();
        let mut built = Qwen3ForCausalLM::new(&config, vb).unwrap();
        let expected = logits(&mut load(&files, dtype), &[prompt(0, 20)]);
        assert_eq!(bits(&logits(&mut built, &[prompt(0, 20)])), bits(&expected), "{dtype:?}");
    }
}

#[test]
fn a_new_sequence_gives_the_bits_of_a_new_model() {
    for dtype in DTYPES {
        let mut model = load(&demo(), dtype);
        let first = bits(&logits(&mut model, &[prompt(0, 20)]));
        logits(&mut model, &[prompt(1, 33), prompt(2, 33)]);
        assert_eq!(bits(&logits(&mut model, &[prompt(0, 20)])), first, "{dtype:?}");
    }
}

#[test]
fn rows_of_a_batch_have_the_bits_that_they_have_alone() {
    for dtype in DTYPES {
        let mut model = load(&demo(), dtype);
        let rows = [0, 1, 2].map(|row| prompt(row, 40));
        let batch = logits(&mut model, &rows);
        for (i, row) in rows.into_iter().enumerate() {
            let alone = bits(&logits(&mut model, &[row]));
            assert_eq!(bits(&batch.narrow(0, i, 1).unwrap()), alone, "{dtype:?}, row {i}");
        }
    }
}

#[test]
fn a_prompt_in_chunks_has_the_bits_of_the_whole() {
    for dtype in DTYPES {
        let mut model = load(&demo(), dtype);
        let ids = prompt(0, 100);
        let whole = bits(&logits(&mut model, std::slice::from_ref(&ids)));
        for chunk in [1, 13, 64] {
            let mut pieces = Vec::new();
            for (i, piece) in ids.chunks(chunk).enumerate() {
                let piece = Tensor::new(piece, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
                pieces.extend(bits(&model.forward_all(&piece, i * chunk).unwrap()));
            }
            assert_eq!(pieces, whole, "{dtype:?}, chunks of {chunk}");
        }
    }
}
