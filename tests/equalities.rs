//! Different ways to the same logits. Each test says whether they agree to the bit or to a tolerance.

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

fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.dims(), b.dims());
    let largest = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(largest <= tolerance, "differs by {largest}");
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

/// Candle's matrix product chooses its order of summation by the number of rows, so F32 has a tolerance.
#[test]
fn rows_of_a_batch_are_what_they_are_alone_within_1e_4() {
    let mut model = load(&demo(), DType::F32);
    let rows = [0, 1, 2].map(|row| prompt(row, 40));
    let batch = logits(&mut model, &rows);
    for (i, row) in rows.into_iter().enumerate() {
        let alone = logits(&mut model, &[row]);
        assert_close(&batch.narrow(0, i, 1).unwrap(), &alone, 1e-4);
    }
}

#[test]
fn a_prompt_in_chunks_is_what_it_is_whole_within_1e_4() {
    let mut model = load(&demo(), DType::F32);
    let ids = prompt(0, 100);
    let whole = logits(&mut model, std::slice::from_ref(&ids));
    for chunk in [1, 13, 64] {
        let mut pieces = Vec::new();
        for (i, piece) in ids.chunks(chunk).enumerate() {
            let piece = Tensor::new(piece, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            pieces.push(model.forward_all(&piece, i * chunk).unwrap());
        }
        assert_close(&Tensor::cat(&pieces, 1).unwrap(), &whole, 1e-4);
    }
}
