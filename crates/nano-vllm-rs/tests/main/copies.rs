//! `-v`: which weights have to be copied, and that the model is the same for it.

use std::collections::HashMap;
use std::fs;

use candle_core::safetensors::save;
use nano_vllm_rs::model::{DType, Device, load_safetensors};
use nano_vllm_rs::weights::Checkpoint;
use tempfile::TempDir;

use crate::nv::{greedy, model_with, nv, stderr, stdout, str};

/// A copy of the demo with its tensors in other dtypes.
fn demo_stored_as(dtype_of: impl Fn(&str) -> DType) -> TempDir {
    let dir = model_with(&[]);
    let paths = [dir.path().join("model.safetensors")];
    let checkpoint = Checkpoint::open(&paths).unwrap();
    let vb = load_safetensors(&paths, DType::F32, &Device::Cpu).unwrap();
    let tensor = |name| vb.get_unchecked_dtype(name, dtype_of(name)).unwrap();
    let tensors: HashMap<_, _> =
        checkpoint.tensors().map(|view| (view.name(), tensor(view.name()))).collect();
    // Under another name first: the file is mapped.
    let converted = dir.path().join("converted");
    save(&tensors, &converted).unwrap();
    fs::rename(&converted, &paths[0]).unwrap();
    dir
}

/// A copy of the demo whose data begin one byte later, which makes every address odd.
fn demo_at_odd_addresses() -> TempDir {
    let dir = model_with(&[]);
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    bytes[..8].copy_from_slice(&(length + 1).to_le_bytes());
    bytes.insert(8 + usize::try_from(length).unwrap(), b' ');
    fs::write(&path, bytes).unwrap();
    dir
}

/// The copies that every command tells of the model in `dir`, as lines without blanks at their ends.
fn copies(dir: &TempDir) -> Vec<String> {
    let lines = |text: &str| -> Vec<String> {
        let found = text.lines().skip_while(|line| !line.starts_with("weights copied"));
        let (title, rows) = (found.clone().take(1), found.skip(1));
        title.chain(rows.take_while(|line| line.starts_with("  "))).map(str::to_owned).collect()
    };
    let model = str(dir.path());
    let inspect = lines(&stdout(&["inspect", "-v", model]));
    let options = ["In the beginning", "--max-tokens", "1", "--model", model];
    let generate = nv(&[&["generate", "--verbose"], &options[..]].concat());
    let bench = nv(&["bench", "--quick", "--only", "load", "-v", "--model", model]);
    for output in [generate, bench] {
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(lines(&stderr(&output)), inspect);
    }
    assert!(lines(&stdout(&["inspect", model])).is_empty());
    assert!(lines(&stderr(&nv(&[&["generate"], &options[..]].concat()))).is_empty());
    inspect
}

#[test]
fn a_bf16_checkpoint_is_not_copied() {
    let title = "weights copied to memory: none; every matrix is read where its file is mapped";
    assert_eq!(copies(&model_with(&[])), [title]);
}

#[test]
fn matrices_at_odd_addresses_are_copied_and_named() {
    let dir = demo_at_odd_addresses();
    let copies = copies(&dir);
    assert_eq!(copies[0], "weights copied to memory: 43 tensors, 7.5 MiB in bf16");
    assert_eq!(copies.len(), 1 + 8, "{copies:#?}");
    let row = "  model.layers.{0..5}.mlp.up_proj.weight       stored at an odd address    1.4 MiB";
    assert!(copies.iter().any(|line| line == row), "{copies:#?}");

    let prompt = "In the beginning";
    assert_eq!(greedy(&[prompt, "--model", str(dir.path())]), greedy(&[prompt]));
}

#[test]
fn matrices_of_other_dtypes_are_copied_and_named() {
    let dir = demo_stored_as(|name| match name {
        "model.layers.3.self_attn.q_proj.weight" => DType::F16,
        name if name.ends_with("mlp.up_proj.weight") => DType::F32,
        _ => DType::BF16,
    });
    assert_eq!(
        copies(&dir),
        [
            "weights copied to memory: 7 tensors, 1.5 MiB in bf16",
            "  model.layers.{0..5}.mlp.up_proj.weight  stored in F32    1.4 MiB",
            "  model.layers.3.self_attn.q_proj.weight  stored in F16  128.0 KiB",
        ]
    );

    let dir = demo_stored_as(|_| DType::F32);
    let prompt = "In the beginning";
    // float32 that was bfloat16 rounds to the same.
    assert_eq!(greedy(&[prompt, "--model", str(dir.path()), "--dtype", "bf16"]), greedy(&[prompt]));
}

#[test]
fn where_the_config_names_no_dtype_the_weights_do() {
    let check = |dir: TempDir, expected: &str| {
        let path = dir.path().join("config.json");
        let config = fs::read_to_string(&path).unwrap();
        let silent = config.replace(r#""torch_dtype": "bfloat16""#, r#""torch_dtype": "auto""#);
        assert_ne!(silent, config);
        fs::write(&path, silent).unwrap();
        assert_eq!(copies(&dir)[0], format!("weights copied to memory: 43 tensors, {expected}"));
    };
    check(demo_at_odd_addresses(), "7.5 MiB in bf16");
    check(demo_stored_as(|_| DType::F32), "14.9 MiB in f32");
}
