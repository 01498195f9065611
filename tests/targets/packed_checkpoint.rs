//! A quantised checkpoint as it was written, and then damaged: what still loads has the same bits in every tier.

use std::fs;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use nv_config::{PackedConfig, Qwen3Config, load_config};
use nv_kernels::{Format, Isa, Kernels};
use nv_qwen3::{
    Cpu, Preset, Qwen3ForCausalLM, TensorSpec, check_tensors, copied_weights, packed_matrices,
    tensor_specs, tier_dependences,
};
use nv_synth::Recipe;
use nv_weights::{Checkpoint, ModelFiles};
use serde_json::{Map, Value, json};

use super::{Choices, scratch};

/// What the whole checkpoints are of: a tied head, biases and a head of its own, heads that kernels don't attend.
const CONFIGS: [&str; 3] = [
    r#"{"vocab_size": 21, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": true, "max_position_embeddings": 64}"#,
    r#"{"vocab_size": 16, "hidden_size": 130, "intermediate_size": 33, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": false, "attention_bias": true}"#,
    r#"{"vocab_size": 9, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": true}"#,
];

/// What formats are given by, and a module that has no matrix.
const MODULES: [&str; 10] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "embed_tokens",
    "lm_head",
    "input_layernorm",
];

/// A tensor as its file has it, or says that it has.
#[derive(Debug, Clone)]
struct Stored {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// A checkpoint that is to be written.
#[derive(Debug, Clone)]
struct Files {
    config: Map<String, Value>,
    tensors: Vec<Stored>,
    /// What the model has under their names.
    specs: Vec<TensorSpec>,
    metadata: Map<String, Value>,
    /// Spaces behind the header: where the first tensor stands follows from it.
    padding: usize,
    /// Bytes that are missing at the end of the file.
    cut: usize,
}

/// Writes one of some quantised checkpoints, does to it what the bytes say, and loads it.
///
/// Tensors are taken apart and put together again, so that damage reaches what is behind the header's checks: sizes, names, dtypes,
/// scales, formats. Whatever loads has to be computed, and if it says that its bits are those of every machine, it has to have the
/// same in every tier that this one has, mapped and copied.
pub fn packed_checkpoint(data: &[u8]) {
    let mut choices = Choices(data);
    let whole = whole();
    let base = usize::from(choices.next().unwrap_or(0)) % whole.len();
    let mut files = whole[base].clone();
    let is_whole = choices.0.is_empty();
    while !choices.0.is_empty() {
        files.damage(&mut choices);
    }
    files.write();
    let is_loaded = load();
    assert!(is_loaded || !is_whole, "{base}: what was written is not read");
}

/// Every preset's checkpoint of every config.
fn whole() -> &'static [Files] {
    static WHOLE: OnceLock<Vec<Files>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let cpu = Cpu::new(1).expect("one thread, which is this one");
        let mut whole = Vec::new();
        for preset in Preset::ALL {
            for (seed, config) in (0..).zip(CONFIGS) {
                let dir = tempfile::tempdir().expect("a folder for temporary files");
                let (path, out) = (dir.path().join("config.json"), dir.path().join("out"));
                fs::write(&path, config).expect("a file in a temporary folder");
                let recipe = Recipe { config: path, seed, max_shard_bytes: usize::MAX };
                let paths = recipe.write_quantized(&out, preset, &cpu, || false);
                whole.push(Files::read(&paths.expect("a checkpoint"), &out.join("config.json")));
            }
        }
        whole
    })
}

impl Files {
    fn read(weights: &[std::path::PathBuf], config: &std::path::Path) -> Self {
        let config = fs::read(config).expect("it was written");
        let checkpoint = Checkpoint::open(weights).expect("it was written");
        let tensors = checkpoint.tensors().map(|view| Stored {
            name: view.name().to_owned(),
            dtype: view.dtype().to_string(),
            shape: view.shape().iter().map(|&size| size as u64).collect(),
            bytes: view.bytes().to_vec(),
        });
        let parsed = serde_json::from_slice(&config).expect("a valid config");
        Self {
            config: serde_json::from_slice(&config).expect("a JSON object"),
            tensors: tensors.collect(),
            specs: tensor_specs(&parsed),
            metadata: Map::new(),
            padding: 0,
            cut: 0,
        }
    }

    /// One change, which a byte chooses and further bytes say.
    fn damage(&mut self, choices: &mut Choices<'_>) {
        match choices.below(15) {
            kind @ 0..=4 => self.damage_config(kind, choices),
            13 => match choices.below(2) {
                0 => self.padding = usize::from(choices.below(72)),
                _ => self.cut = usize::try_from(number(choices).min(1 << 20)).expect("small"),
            },
            14 => self.store_otherwise(choices),
            kind => self.damage_tensors(kind, choices),
        }
    }

    fn damage_config(&mut self, kind: u8, choices: &mut Choices<'_>) {
        match kind {
            0 => {
                const FIELDS: [&str; 9] = [
                    "vocab_size",
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "num_key_value_heads",
                    "head_dim",
                    "max_position_embeddings",
                    "rms_norm_eps",
                ];
                let field = *pick(&FIELDS, choices);
                self.config.insert(field.to_owned(), number(choices).into());
            }
            1 => {
                let field = *pick(&["tie_word_embeddings", "attention_bias"], choices);
                self.config.insert(field.to_owned(), (choices.below(2) == 0).into());
            }
            2 => {
                let version = [Value::from(number(choices)), Value::Null, "1".into()];
                self.quantization()["version"] = pick(&version, choices).clone();
            }
            3 => {
                let methods = [PackedConfig::METHOD, "gptq", ""];
                self.quantization()["quant_method"] = (*pick(&methods, choices)).into();
            }
            _ => {
                let formats = ["q8", "q8g32", "q4", "bf16", "f32", "q9", ""].map(Value::from);
                let module = *pick(&MODULES, choices);
                match choices.below(9) {
                    0 => self.quantization()["formats"] = Value::Null,
                    1 => self.quantization()["formats"][module] = Value::Null,
                    _ => self.quantization()["formats"][module] = pick(&formats, choices).clone(),
                }
            }
        }
    }

    fn damage_tensors(&mut self, kind: u8, choices: &mut Choices<'_>) {
        match kind {
            5 => {
                const DTYPES: [&str; 8] =
                    ["U8", "I8", "F8_E4M3", "BF16", "F16", "F32", "F64", "BOOL"];
                self.tensor(choices).dtype = (*pick(&DTYPES, choices)).to_owned();
            }
            6 => {
                let shape = (0..choices.below(4)).map(|_| number(choices)).collect();
                self.tensor(choices).shape = shape;
            }
            7 => {
                let (at, new) = (number(choices), choices.next().map_or(0, usize::from));
                let bytes = choices.take(new).to_vec();
                let tensor = self.tensor(choices);
                overwrite(&mut tensor.bytes, at, &bytes);
            }
            8 => {
                // Also the largest scale, the least, and elements that no encoder writes.
                let pattern = choices.take(2).to_vec();
                let tensor = self.tensor(choices);
                for (byte, new) in tensor.bytes.iter_mut().zip(pattern.iter().cycle()) {
                    *byte = *new;
                }
            }
            9 => {
                let len = number(choices).min(1 << 18);
                let len = usize::try_from(len).expect("a small number");
                let tensor = self.tensor(choices);
                tensor.bytes.resize(len, 0x80);
                // As a header that agrees, or as one that doesn't.
                if choices.below(4) > 0 {
                    tensor.shape = vec![len as u64];
                }
            }
            10 => {
                let name = self.tensor(choices).name.clone();
                let other = self.tensor(choices);
                other.name = name;
            }
            11 => {
                let at = usize::from(choices.next().unwrap_or(0)) % self.tensors.len();
                if self.tensors.len() > 1 {
                    self.tensors.remove(at);
                }
            }
            _ => {
                let names = ["lm_head.weight", "model.embed_tokens.weight", "x"];
                let (name, stored) = (*pick(&names, choices), self.tensor(choices).clone());
                if choices.below(2) == 0 {
                    self.tensors.push(Stored { name: name.to_owned(), ..stored });
                } else {
                    self.metadata.insert(name.to_owned(), stored.name.into());
                }
            }
        }
    }

    /// Stores the matrices of a module in another format, or as plain numbers, in as many bytes as these are.
    fn store_otherwise(&mut self, choices: &mut Choices<'_>) {
        let module = *pick(&MODULES, choices);
        let plain = pick(&["BF16", "F32", "F16", "F64"], choices);
        let format = *pick(&["q8", "q8g32", "q4", "bf16", "f32", ""], choices);
        let specs = self.specs.iter().filter(|spec| spec.module() == module);
        for TensorSpec { name, shape, .. } in specs.filter(|spec| spec.role.is_matrix()) {
            let is_same = |tensor: &&mut Stored| tensor.name == *name;
            let Some(tensor) = self.tensors.iter_mut().find(is_same) else { continue };
            if let Some(format) = Format::from_name(format) {
                let len = format.matrix_bytes(shape[0], shape[1]).expect("a small matrix");
                tensor.bytes.resize(len, 0x11);
                (tensor.dtype, tensor.shape) = ("U8".to_owned(), vec![len as u64]);
            } else {
                let size = match *plain {
                    "F64" => 8,
                    "F32" => 4,
                    _ => 2,
                };
                tensor.bytes.resize(size * shape[0] * shape[1], 0x11);
                tensor.shape = shape.iter().map(|&size| size as u64).collect();
                (*plain).clone_into(&mut tensor.dtype);
            }
        }
        if Format::from_name(format).is_some() {
            self.quantization()["formats"][module] = format.into();
        }
    }

    fn quantization(&mut self) -> &mut Value {
        let config = self.config.entry("quantization_config").or_insert_with(|| json!({}));
        if config["formats"].is_null() {
            config["formats"] = json!({});
        }
        config
    }

    fn tensor(&mut self, choices: &mut Choices<'_>) -> &mut Stored {
        let at = usize::from(choices.next().unwrap_or(0)) % self.tensors.len();
        &mut self.tensors[at]
    }

    fn write(&self) {
        let config = Value::Object(self.config.clone()).to_string();
        scratch::write("config.json", config.as_bytes());
        let (mut entries, mut data) = (Map::new(), Vec::new());
        if !self.metadata.is_empty() {
            entries.insert("__metadata__".to_owned(), self.metadata.clone().into());
        }
        for Stored { name, dtype, shape, bytes } in &self.tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
            // The later of two that bear a name is the one: the others' bytes are a gap then.
            entries.insert(name.clone(), entry);
            data.extend_from_slice(bytes);
        }
        let mut header = Value::Object(entries).to_string().into_bytes();
        header.resize((8 + header.len()).next_multiple_of(64) - 8 + self.padding, b' ');
        let mut file = [&(header.len() as u64).to_le_bytes(), &*header, &data].concat();
        file.truncate(file.len().saturating_sub(self.cut));
        scratch::write("model.safetensors", &file);
    }
}

/// One of some.
fn pick<'a, T>(all: &'a [T], choices: &mut Choices<'_>) -> &'a T {
    &all[usize::from(choices.next().unwrap_or(0)) % all.len()]
}

/// A small number, one near a power of two, or a huge one.
fn number(choices: &mut Choices<'_>) -> u64 {
    let (kind, byte) = (choices.below(4), u64::from(choices.next().unwrap_or(0)));
    match kind {
        0 | 1 => byte,
        2 => byte << 4 | u64::from(choices.below(16)),
        _ => (1u64 << (byte % 64)).wrapping_sub(u64::from(choices.below(2))),
    }
}

/// Writes `new` over `bytes`, from `at` on or, where there is no such place, somewhere.
fn overwrite(bytes: &mut [u8], at: u64, new: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let at = usize::try_from(at % bytes.len() as u64).expect("a place in memory");
    for (byte, new) in bytes[at..].iter_mut().zip(new) {
        *byte = *new;
    }
}

/// Loads what was written in every tier; answers whether that is possible.
fn load() -> bool {
    let files = ModelFiles::from_dir(scratch::dir()).expect("both files are there");
    let Ok(config) = load_config(&files.config) else { return false };
    let Ok(mapped) = Checkpoint::open(&files.weights).map(Arc::new) else { return false };
    let copied = Arc::new(Checkpoint::read(&files.weights).expect("what is mapped can be read"));
    let is_sound = check_tensors(&config, &mapped).is_ok();
    let mut first: Option<Result<(bool, Vec<u32>), String>> = None;
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for checkpoint in [&mapped, &copied] {
            let found = logits(&config, checkpoint, isa);
            match (&first, &found) {
                (None, _) => first = Some(found),
                (Some(Ok((is_portable, first))), Ok((again, found))) => {
                    assert_eq!(is_portable, again, "{isa}");
                    assert!(!is_portable || first == found, "{isa} has other bits");
                }
                (Some(first), found) => {
                    let errors = (first.as_ref().err(), found.as_ref().err());
                    assert_eq!(errors.0, errors.1, "{isa} and another tier");
                }
            }
        }
    }
    let loaded = matches!(first, Some(Ok(_)));
    assert!(is_sound || !loaded, "what was refused is loaded");
    loaded
}

/// The bits of some logits, with whether they are those of every machine; or why the model can't be loaded.
fn logits(
    config: &Qwen3Config,
    checkpoint: &Arc<Checkpoint>,
    isa: Isa,
) -> Result<(bool, Vec<u32>), String> {
    let kernels = Kernels::for_isa(isa).expect("a tier that the machine has");
    let cpu = Cpu::with_kernels(kernels, 1).expect("one thread, which is this one");
    let model = Qwen3ForCausalLM::from_checkpoint_on(config, checkpoint, DType::BF16, cpu);
    let mut model = model.map_err(|error| error.to_string())?;
    // What says so of the headers alone agrees.
    let dependences = tier_dependences(config, checkpoint).expect("known formats");
    assert_eq!(dependences.is_empty(), model.is_portable(), "{dependences:?}");
    let packed = packed_matrices(config, checkpoint).expect("known formats").len();
    assert!(packed.max(copied_weights(config, checkpoint, DType::BF16).len()) <= 64);
    let last = u32::try_from(config.vocab_size - 1).expect("a config's sizes fit in 32 bits");
    let num_tokens = config.max_position_embeddings.min(3);
    let input_ids = &[last, 0, last / 2][..num_tokens];
    let input_ids = Tensor::new(input_ids, &Device::Cpu).and_then(|ids| ids.unsqueeze(0));
    let input_ids = input_ids.expect("a few elements"); // [1, seq_len]
    let logits = model.forward_all(&input_ids, 0).expect("what was loaded can be computed");
    assert_eq!(logits.dims(), [1, num_tokens, config.vocab_size]);
    let logits = logits.flatten_all().and_then(|logits| logits.to_vec1::<f32>());
    // NaNs are told apart by bits that IEEE 754 leaves open.
    let bits = |logit: f32| if logit.is_nan() { f32::NAN.to_bits() } else { logit.to_bits() };
    Ok((model.is_portable(), logits.expect("numbers").into_iter().map(bits).collect()))
}
