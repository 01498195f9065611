//! Quantised models: the same bits on every machine, in whatever way they were made; and what can't be quantised.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use nv_config::{Qwen3Config, load_config};
use nv_kernels::{Isa, Kernels, Pool};
use nv_qwen3::{
    Cpu, LoadOptions, Preset, Quantizer, Qwen3ForCausalLM, check_tensors, copied_weights,
    packed_matrices, tier_dependences,
};
use nv_synth::Recipe;
use nv_weights::{Checkpoint, CheckpointWriter, ModelFiles, NewTensor, Shards};
use tempfile::TempDir;
use xtask::reference::sha256_of;
use xtask::verify::tiers;

use crate::copies::{demo_with, demo_with_nan, start_of};

/// SHA-256 of the bits of the demo's logits, by preset and by what keys and values are kept in. Every machine has these.
///
/// They change where the arithmetic of quantised models does, and only there: then users' answers change, and the changelog says so.
const DIGESTS: [(Preset, DType, &str); 4] = [
    (Preset::Q8, DType::F32, "e90a9fbad86ab0d699f14701b73b55a18b0f1380decdbf576504fdb2874c6efc"),
    (Preset::Q8, DType::BF16, "3bdf616657488a51f4aaf625aac88d4e019a962913c857068ca5af95f24daba2"),
    (Preset::Q4, DType::F32, "5be149688b99c3fca5946ee311fb4a119cb5e5bcc873e315f9d7c8fdaac51a74"),
    (Preset::Q4, DType::BF16, "cdf66c7e09a78d37088aa9c859161916ecf4c9b8024554e3af50cbcc4b4a6e16"),
];

const NUM_TOKENS: usize = 70;

struct Model {
    config: Qwen3Config,
    config_json: String,
    checkpoint: Arc<Checkpoint>,
}

impl Model {
    fn open(files: &ModelFiles) -> Self {
        let config = load_config(&files.config).unwrap();
        let config_json = fs::read_to_string(&files.config).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(&files.weights).unwrap());
        Self { config, config_json, checkpoint }
    }

    fn demo() -> Self {
        Self::open(&ModelFiles::from_dir(xtask::root().join("assets/demo")).unwrap())
    }

    fn load(&self, quantize: Option<Preset>, dtype: DType, cpu: Cpu) -> Qwen3ForCausalLM {
        let new = LoadOptions::new(dtype, &Device::Cpu);
        let options = LoadOptions { cpu: Some(cpu), quantize, ..new };
        Qwen3ForCausalLM::load(&self.config, &self.checkpoint, options).unwrap()
    }

    /// The bytes of the logits that follow each of some tokens, which come in chunks.
    fn logits(&self, quantize: Option<Preset>, dtype: DType, cpu: Cpu, chunk: usize) -> Vec<u8> {
        let mut model = self.load(quantize, dtype, cpu);
        let vocab_size = u32::try_from(self.config.vocab_size).unwrap();
        let ids: Vec<u32> =
            (0u32..).take(NUM_TOKENS).map(|i| (i * i * 7 + 5) % vocab_size).collect();
        let mut bytes = Vec::new();
        for (i, ids) in ids.chunks(chunk).enumerate() {
            let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap(); // [1, seq_len]
            let logits = model.forward_all(&ids, i * chunk).unwrap();
            let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            bytes.extend(logits.into_iter().flat_map(f32::to_le_bytes));
        }
        bytes
    }
}

fn best() -> Cpu {
    Cpu::with_kernels(Kernels::for_isa(Isa::detect()).unwrap(), 2).unwrap()
}

/// Promise 4.
#[test]
#[expect(clippy::print_stdout, reason = "a run says what it covered")]
fn every_tier_has_the_committed_bits_whatever_the_way() {
    let demo = Model::demo();
    println!("tiers whose bits were compared: {:?}", tiers());
    for (preset, dtype, expected) in DIGESTS {
        for kernels in tiers().into_iter().map(|isa| Kernels::for_isa(isa).unwrap()) {
            for (threads, chunk) in [(2, NUM_TOKENS), (1, 1), (3, 9)] {
                let cpu = Cpu::with_kernels(kernels, threads).unwrap();
                let bits = demo.logits(Some(preset), dtype, cpu, chunk);
                let isa = kernels.isa();
                let case =
                    format!("{preset}, keys in {dtype:?}, {isa}, {threads} threads, by {chunk}");
                assert_eq!(sha256_of(&bits), expected, "{case}");
            }
        }
    }
}

/// The logits of `model` in every tier of the machine.
fn in_all_tiers(model: &Model, quantize: Option<Preset>) -> Vec<Vec<u8>> {
    let of_tier = |isa| {
        let cpu = Cpu::with_kernels(Kernels::for_isa(isa).unwrap(), 2).unwrap();
        model.logits(quantize, DType::BF16, cpu, 16)
    };
    tiers().into_iter().map(of_tier).collect()
}

fn assert_finite(logits: &[u8]) {
    let (logits, _) = logits.as_chunks();
    assert!(logits.iter().all(|logit| f32::from_le_bytes(*logit).is_finite()));
}

/// `demo` or a variant of it, quantised into a folder.
fn write(model: &Model, preset: Preset, out: &Path) -> nv_qwen3::Result<ModelFiles> {
    let quantizer = Quantizer::new(&model.config, &model.checkpoint, preset)?;
    let config = quantizer.config_json(&model.config_json)?;
    let files = [("config.json".into(), config.into_bytes())];
    quantizer.write(out, &files, &Pool::new(2).unwrap(), |_| true)?;
    Ok(ModelFiles::from_dir(out).unwrap())
}

#[test]
fn a_written_model_is_the_one_that_is_quantised_at_load_and_is_read_in_place() {
    let demo = Model::demo();
    let dir = tempfile::tempdir().unwrap();
    for preset in Preset::ALL {
        let files = write(&demo, preset, &dir.path().join(preset.name())).unwrap();
        let written = Model::open(&files);
        check_tensors(&written.config, &written.checkpoint).unwrap();
        assert_eq!(copied_weights(&written.config, &written.checkpoint, DType::BF16), []);
        // Seven matrices a layer, and the embedding.
        let packed = packed_matrices(&written.config, &written.checkpoint).unwrap();
        assert_eq!(packed.len(), 6 * 7 + 1);
        for matrix in &packed {
            assert_eq!(preset.format(matrix.spec.role), Some(matrix.format));
        }
        let at_load = demo.logits(Some(preset), DType::BF16, best(), 16);
        assert_eq!(written.logits(None, DType::BF16, best(), 16), at_load);
        // From other addresses they are copied, and still the same.
        let (_dir, moved) = moved(&files);
        let copied = copied_weights(&moved.config, &moved.checkpoint, DType::BF16);
        for (copied, packed) in copied.iter().zip(&packed) {
            let expected = "stored at an address that is no multiple of 64";
            assert_eq!((&copied.name, copied.num_bytes), (&packed.spec.name, packed.num_bytes));
            assert_eq!(copied.reason.to_string(), expected);
        }
        assert_eq!(copied.len(), packed.len());
        assert_eq!(moved.logits(None, DType::BF16, best(), 16), at_load);
    }
}

/// Widths that no group divides, numbers of rows that no strip does: they are padded.
#[test]
fn matrices_of_any_size_are_quantised() {
    let dir = tempfile::tempdir().unwrap();
    let odd = xtask::cases::references_dir().join("tied-gqa5-bias-odd-sizes.config.json");
    let odd = fs::read_to_string(odd).unwrap().replace("\"head_dim\": 10", "\"head_dim\": 16");
    let config = dir.path().join("config.json");
    fs::write(&config, odd).unwrap();
    Recipe { config, seed: 3, max_shard_bytes: usize::MAX }.write(&dir.path().join("odd")).unwrap();
    let model = Model::open(&ModelFiles::from_dir(dir.path().join("odd")).unwrap());
    assert_eq!((model.config.hidden_size, model.config.vocab_size), (33, 257));
    for preset in Preset::ALL {
        let files = write(&model, preset, &dir.path().join(preset.name())).unwrap();
        let written = Model::open(&files);
        let bits = in_all_tiers(&model, Some(preset));
        assert_finite(&bits[0]);
        assert!(bits.iter().chain(&in_all_tiers(&written, None)).all(|other| *other == bits[0]));
    }
}

/// Groups without a scale.
#[test]
fn a_matrix_of_zeros_is_quantised() {
    let (name, len) = ("model.layers.2.mlp.down_proj.weight", 256 * 480);
    let (_dir, files) = demo_with(|bytes| {
        let start = start_of(name, bytes);
        bytes[start..start + 2 * len].fill(0);
    });
    let (model, demo) = (Model::open(&files), Model::demo());
    for preset in Preset::ALL {
        let bits = in_all_tiers(&model, Some(preset));
        assert_finite(&bits[0]);
        assert!(bits.iter().all(|other| *other == bits[0]));
        assert_ne!(bits[0], demo.logits(Some(preset), DType::BF16, best(), 16));
    }
}

/// `model`, with some tensors as `plain` has them.
fn partly_plain(model: &Model, plain: &Model, names: &[&str], dir: &Path) -> Model {
    let view = |name: &str| {
        let model = if names.contains(&name) { plain } else { model };
        model.checkpoint.tensor(name).unwrap()
    };
    // Packed matrices first: they are aligned.
    let mut tensors: Vec<_> = model.checkpoint.tensors().map(|found| view(found.name())).collect();
    tensors.sort_by_key(|view| view.dtype() != nv_weights::Dtype::U8);
    let new = tensors.iter().map(|view| NewTensor {
        name: view.name().into(),
        dtype: view.dtype(),
        shape: view.shape().into(),
    });
    let shards = Shards { max_bytes: usize::MAX, alignment: 64 };
    let mut writer = CheckpointWriter::create(dir, new.collect(), 0, shards).unwrap();
    writer.write_file("config.json", model.config_json.as_bytes()).unwrap();
    for view in tensors {
        writer.write(view.bytes()).unwrap();
    }
    writer.finish().unwrap();
    Model::open(&ModelFiles::from_dir(dir).unwrap())
}

/// Nothing writes such a model, but a file may be one.
#[test]
fn a_model_that_is_quantised_in_part_says_whether_its_bits_are_those_of_every_machine() {
    let dir = tempfile::tempdir().unwrap();
    let untied = demo_with_equal_head(&dir.path().join("untied"));
    for preset in Preset::ALL {
        let path = |of: &str| dir.path().join(format!("{preset}-{of}"));
        for (demo, of) in
            [(Model::demo(), "tied"), (demo_with_equal_head(&path("plain")), "untied")]
        {
            let written = Model::open(&write(&demo, preset, &path(of)).unwrap());
            let check = |names: &[&str], expected: &[&str]| {
                let out = path(&format!("{of}-{}", names.len()));
                let part = partly_plain(&written, &demo, names, &out);
                let found = tier_dependences(&part.config, &part.checkpoint).unwrap();
                let found: Vec<_> = found.iter().map(ToString::to_string).collect();
                assert_eq!(found, expected, "{preset}, {of}");
                let loaded = part.load(None, DType::BF16, best());
                assert_eq!(loaded.is_portable(), expected.is_empty());
                let bits = in_all_tiers(&part, None);
                assert_finite(&bits[0]);
                assert!(!expected.is_empty() || bits.iter().all(|other| *other == bits[0]));
            };
            let embedding = "model.embed_tokens.weight";
            let multiplied = "`model.embed_tokens.weight` is multiplied as floating-point numbers";
            check(&[], &[]);
            // Of a table rows are looked up: that is the same everywhere.
            let of_table = [multiplied];
            let first = usize::from(of == "untied");
            check(&[embedding], &of_table[first..]);
            let value = "model.layers.1.self_attn.v_proj.weight";
            let of_value = format!("`{value}` is multiplied as floating-point numbers");
            let expected = [multiplied, &of_value];
            check(&[embedding, value], &expected[first..]);
        }
        assert!(untied.load(Some(preset), DType::F32, best()).is_portable());
    }
    assert!(!untied.load(None, DType::F32, best()).is_portable());
}

/// The demo with the embedding once more, as the head of a config that ties nothing.
fn demo_with_equal_head(dir: &Path) -> Model {
    let demo = Model::demo();
    let view = |name| demo.checkpoint.tensor(name).unwrap();
    let names = demo.checkpoint.tensors().map(|view| (view.name(), view.name()));
    let names: Vec<_> = names.chain([("lm_head.weight", "model.embed_tokens.weight")]).collect();
    let tensors = names.iter().map(|&(name, from)| NewTensor {
        name: name.into(),
        dtype: view(from).dtype(),
        shape: view(from).shape().into(),
    });
    let shards = Shards { max_bytes: usize::MAX, alignment: 8 };
    let mut writer = CheckpointWriter::create(dir, tensors.collect(), 0, shards).unwrap();
    let untied = ("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    assert!(demo.config_json.contains(untied.0));
    let config = demo.config_json.replace(untied.0, untied.1);
    writer.write_file("config.json", config.as_bytes()).unwrap();
    for (_, from) in &names {
        writer.write(view(from).bytes()).unwrap();
    }
    writer.finish().unwrap();
    Model::open(&ModelFiles::from_dir(dir).unwrap())
}

#[test]
fn a_head_that_the_config_asks_for_is_written_though_it_is_equal_to_the_embedding() {
    let dir = tempfile::tempdir().unwrap();
    let untied = demo_with_equal_head(&dir.path().join("untied"));
    for preset in Preset::ALL {
        let files = write(&untied, preset, &dir.path().join(preset.name())).unwrap();
        let written = Model::open(&files);
        check_tensors(&written.config, &written.checkpoint).unwrap();
        let logits = written.logits(None, DType::BF16, best(), 16);
        assert_eq!(logits, Model::demo().logits(Some(preset), DType::BF16, best(), 16));
    }
}

/// The model with its tensors 8 bytes further, as other writers put them.
fn moved(files: &ModelFiles) -> (TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(&files.config, dir.path().join("config.json")).unwrap();
    let bytes = fs::read(&files.weights[0]).unwrap();
    let len = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    let (header, data) = bytes[8..].split_at(usize::try_from(len).unwrap());
    let moved = [&(len + 8).to_le_bytes(), header, &[b' '; 8], data].concat();
    fs::write(dir.path().join("model.safetensors"), moved).unwrap();
    let model = Model::open(&ModelFiles::from_dir(dir.path()).unwrap());
    (dir, model)
}

#[test]
fn what_cannot_be_quantised_is_refused_and_nothing_stays() {
    let (_dir, files) = demo_with_nan("model.layers.2.mlp.down_proj.weight", 3 * 480 + 17);
    let model = Model::open(&files);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let chain = |error: &dyn std::error::Error| format!("{error}: {}", error.source().unwrap());
    let expected = "tensor `model.layers.2.mlp.down_proj.weight`: row 3, column 17: expected a finite value, found NaN";

    let error = write(&model, Preset::Q8, &out).unwrap_err();
    assert!(chain(&error).ends_with(expected), "{}", chain(&error));
    let new = LoadOptions::new(DType::BF16, &Device::Cpu);
    let options = LoadOptions { quantize: Some(Preset::Q8), ..new };
    let error = Qwen3ForCausalLM::load(&model.config, &model.checkpoint, options).unwrap_err();
    assert!(chain(&error).ends_with(expected), "{}", chain(&error));

    let demo = Model::demo();
    let quantizer = Quantizer::new(&demo.config, &demo.checkpoint, Preset::Q8).unwrap();
    let pool = Pool::new(1).unwrap();
    let mut read = 0;
    let stopped = quantizer.write(&out, &[], &pool, |num_bytes| {
        read += num_bytes;
        read < quantizer.num_bytes() / 2
    });
    let expected = format!("stopped before {} was complete; nothing of it is left", out.display());
    assert_eq!(stopped.unwrap_err().to_string(), expected);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let written = Model::open(&write(&demo, Preset::Q8, &out).unwrap());
    let again = write(&demo, Preset::Q8, &out).unwrap_err().to_string();
    assert_eq!(again, format!("{} exists already", out.display()));
    let expected = "the model is quantised already: quantise the one that it was made from";
    let error = write(&written, Preset::Q8, &dir.path().join("other")).unwrap_err();
    assert_eq!(error.to_string(), expected);
    let options =
        LoadOptions { quantize: Some(Preset::Q8), ..LoadOptions::new(DType::BF16, &Device::Cpu) };
    let error = Qwen3ForCausalLM::load(&written.config, &written.checkpoint, options).unwrap_err();
    assert_eq!(error.to_string(), expected);
    let vb = written.checkpoint.var_builder(DType::F32, &Device::Cpu);
    assert_eq!(
        Qwen3ForCausalLM::new(&written.config, vb).unwrap_err().to_string(),
        "the model is quantised, which a `VarBuilder` can't give: load it from a `Checkpoint`"
    );
}

#[test]
fn a_damaged_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let files = write(&Model::demo(), Preset::Q8, &dir.path().join("q8")).unwrap();
    let whole = fs::read(&files.weights[0]).unwrap();
    let config = fs::read_to_string(&files.config).unwrap();
    let load = |bytes: &[u8], config: &str| -> Result<(), String> {
        fs::write(&files.weights[0], bytes).unwrap();
        fs::write(&files.config, config).unwrap();
        let config = load_config(&files.config).map_err(|error| format!("{error:?}"))?;
        let checkpoint = Checkpoint::open(&files.weights).map_err(|error| error.to_string())?;
        let new = LoadOptions::new(DType::BF16, &Device::Cpu);
        match Qwen3ForCausalLM::load(&config, &Arc::new(checkpoint), new) {
            Ok(_) => Ok(()),
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                Err(format!("{error}: {}", source.unwrap_or_default()))
            }
        }
    };
    let check = |bytes: &[u8], config: &str, expected: &str| {
        let error = load(bytes, config).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    load(&whole, &config).unwrap();
    let name = "model.layers.1.self_attn.v_proj.weight";
    let start = start_of(name, &whole);
    // The scale of the first row's first group.
    for (scale, shown) in [(0x7e00u16, "NaN"), (0x7c00, "inf"), (0xb000, "-0.125")] {
        let mut bytes = whole.clone();
        bytes[start..start + 2].copy_from_slice(&scale.to_le_bytes());
        let expected = format!(
            "tensor `{name}` is damaged: quantize the model again: row 0, group 0: expected a finite scale of 0 or more, found {shown}"
        );
        check(&bytes, &config, &expected);
    }
    check(&whole[..whole.len() - 5], &config, "bytes");
    check(
        &whole,
        &config.replace("\"version\": 1", "\"version\": 2"),
        "quantization_config.version",
    );
    check(
        &whole,
        &config.replace("\"q8\"", "\"q9\""),
        "`quantization_config.formats.down_proj`: `q9` is no format of quantised matrices; quantize the model again",
    );
    for plain in ["f32", "bf16"] {
        let expected = format!("`{plain}` is no format of quantised matrices");
        check(&whole, &config.replace("\"q8\"", &format!("\"{plain}\"")), &expected);
    }
    // Without the config's word it is bytes.
    let plain = config.replace("\"quantization_config\"", "\"other\"");
    check(&whole, &plain, "43 of another dtype than BF16, F16, F32 and F64");
    // Other sizes than the config's.
    check(
        &whole,
        &config.replace("\"vocab_size\": 2048", "\"vocab_size\": 2000"),
        "1 of another shape",
    );
}
