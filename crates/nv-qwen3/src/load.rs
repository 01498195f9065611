//! From named tensors to checked weights: what a config implies, and whether a checkpoint has it.
//!
//! Knows names and shapes; knows nothing of what the graph computes with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use nv_config::{ConfigWarning, Qwen3Config};
use nv_kernels::Format;
use nv_weights::Checkpoint;

use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::preset::Preset;
use crate::sources::{
    CheckpointSource, Located, PackedFormats, QuantizingSource, VarBuilderSource, WeightSource,
    drop_equal_head, locate, report,
};
use crate::spec::{LM_HEAD, TensorSpec};
use crate::weight::Weight;

/// Compares names, shapes and dtypes of `checkpoint` with those that `config` implies, reading no weight.
///
/// Two kinds of tensors may be there though the config doesn't imply them: the `lm_head.weight` of a tied model, which is
/// used then, and the `rotary_emb.inv_freq` buffers of old exports, which are not.
///
/// # Errors
/// [`Error::Tensors`](crate::Error::Tensors) with every missing, misshapen and unexpected tensor, and those of an
/// unsupported dtype; [`Error::UnknownFormat`](crate::Error::UnknownFormat) if the config names a format that there isn't.
pub fn check_tensors(config: &Qwen3Config, checkpoint: &Checkpoint) -> Result<()> {
    let tensors = locate(config, |name| checkpoint.get(name).is_some());
    report(checkpoint, &PackedFormats::of(config)?, &tensors).into_result()
}

/// The matrices that `checkpoint` stores packed, as the kernels stream them, in the order of the graph. Reads no weight.
///
/// # Errors
/// [`Error::UnknownFormat`](crate::Error::UnknownFormat) if `config` names a format that there isn't.
pub fn packed_matrices(config: &Qwen3Config, checkpoint: &Checkpoint) -> Result<Vec<LoadedMatrix>> {
    let packed = PackedFormats::of(config)?;
    let tensors = locate(config, |name| checkpoint.get(name).is_some());
    let matrices = tensors.into_iter().filter_map(|Located { spec, stored_as }| {
        let view = checkpoint.get(&stored_as)?;
        let format = packed.format(&spec, &view)?;
        Some(LoadedMatrix { spec, format, num_bytes: view.bytes().len() })
    });
    Ok(matrices.collect())
}

/// What `config` leaves open or says in vain, and `checkpoint` doesn't settle.
pub fn config_warnings<'a>(
    config: &'a Qwen3Config,
    checkpoint: &Checkpoint,
) -> impl Iterator<Item = &'a ConfigWarning> {
    let has_head = checkpoint.get(LM_HEAD).is_some();
    config.warnings.iter().filter(move |warning| match warning {
        ConfigWarning::Guessed { field, .. } => !has_head || *field != "tie_word_embeddings",
        _ => true,
    })
}

/// A matrix of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedMatrix {
    /// Its name, shape, and what the graph does with it.
    pub spec: TensorSpec,
    /// What it is multiplied as.
    pub format: Format,
    /// The bytes that reading it once takes.
    pub num_bytes: usize,
}

/// The weights of one model, all present and well-shaped, taken by name while the graph is built.
pub(crate) struct Weights {
    /// Linear weights and the embedding.
    matrices: BTreeMap<String, Weight>,
    /// Norm weights and biases, in float32.
    vectors: BTreeMap<String, Tensor>,
    /// What the matrices are, in the order of the graph.
    loaded: Vec<LoadedMatrix>,
    ops: Ops,
}

impl Weights {
    /// Loads every tensor that `config` implies from `vb`, matrices in its dtype.
    ///
    /// # Errors
    /// `Error::Tensors` with every missing, misshapen and unexpected tensor; `Error::Candle` if one can't be read.
    pub(crate) fn from_var_builder(
        config: &Qwen3Config,
        vb: &VarBuilder<'_>,
        ops: Ops,
    ) -> Result<Self> {
        if config.quantization_config.is_some() {
            return Err(Error::QuantizedVarBuilder);
        }
        Self::load(config, VarBuilderSource::new(vb, ops.takes_bytes()), ops)
    }

    /// Takes every tensor that `config` implies from `checkpoint`. Where kernels compute, bfloat16 matrices stay where
    /// they are; all others are copied, in `dtype`, but an `lm_head.weight` that is equal to the embedding.
    ///
    /// # Errors
    /// As [`check_tensors`]; `Error::Candle` if a tensor can't be read.
    pub(crate) fn from_checkpoint(
        config: &Qwen3Config,
        checkpoint: &Arc<Checkpoint>,
        dtype: DType,
        ops: &Ops,
    ) -> Result<Self> {
        let packed = PackedFormats::of(config)?;
        let device = (!ops.takes_bytes()).then_some(ops.device());
        let pool = ops.pool()?;
        let source = CheckpointSource::new(checkpoint, packed, dtype, device, &pool);
        Self::load(config, source, ops.clone())
    }

    /// As [`Self::from_checkpoint`], but quantises matrices as `preset` says, in memory of the model's own. `progress` is told of
    /// the bytes that were read.
    ///
    /// # Errors
    /// As [`Self::from_checkpoint`]; `Error::AlreadyQuantized`, `Error::Quantize` for a number that isn't finite.
    pub(crate) fn quantized(
        config: &Qwen3Config,
        checkpoint: &Arc<Checkpoint>,
        dtype: DType,
        ops: &Ops,
        preset: Preset,
        progress: &dyn Fn(usize),
    ) -> Result<Self> {
        if config.quantization_config.is_some() {
            return Err(Error::AlreadyQuantized);
        }
        let pool = ops.pool()?;
        let device = (!ops.takes_bytes()).then_some(ops.device());
        let source = QuantizingSource::new(checkpoint, dtype, device, preset, &pool, progress);
        Self::load(config, source, ops.clone())
    }

    fn load(config: &Qwen3Config, mut source: impl WeightSource, ops: Ops) -> Result<Self> {
        let mut tensors = locate(config, |name| source.contains(name));
        source.report(config, &tensors)?.into_result()?;
        drop_equal_head(&mut tensors, |head, embedding| source.are_equal_copies(head, embedding))?;
        let (mut matrices, mut vectors) = (BTreeMap::new(), BTreeMap::new());
        let mut loaded = Vec::new();
        for tensor in tensors {
            if tensor.spec.role.is_matrix() {
                let matrix = source.matrix(&tensor)?;
                let (format, num_bytes) = matrix.size();
                matrices.insert(tensor.spec.name.clone(), matrix);
                loaded.push(LoadedMatrix { spec: tensor.spec, format, num_bytes });
            } else {
                let vector = source.vector(&tensor)?;
                vectors.insert(tensor.spec.name, vector);
            }
        }
        let is_quantized = loaded.iter().any(|matrix: &LoadedMatrix| matrix.format.is_portable());
        let ops = if is_quantized { ops.portable() } else { ops };
        Ok(Self { matrices, vectors, loaded, ops })
    }

    /// Where and how the model computes.
    pub(crate) fn ops(&self) -> &Ops {
        &self.ops
    }

    /// What the matrices are, in the order of the graph.
    pub(crate) fn loaded(&self) -> &[LoadedMatrix] {
        &self.loaded
    }

    /// Takes the matrix `name`, which [`tensor_specs`](crate::tensor_specs) lists.
    pub(crate) fn take_matrix(&mut self, name: &str) -> Weight {
        self.matrices
            .remove(name)
            .unwrap_or_else(|| panic!("the graph asks for `{name}`, which no config implies"))
    }

    /// Whether there is an `lm_head.weight` of its own.
    pub(crate) fn has_head(&self) -> bool {
        self.matrices.contains_key(LM_HEAD)
    }

    /// Takes the vector `name`, which [`tensor_specs`](crate::tensor_specs) lists.
    pub(crate) fn take_vector(&mut self, name: &str) -> Tensor {
        self.take_optional_vector(name)
            .unwrap_or_else(|| panic!("the graph asks for `{name}`, which no config implies"))
    }

    /// Takes the vector `name` if [`tensor_specs`](crate::tensor_specs) lists it for this config.
    pub(crate) fn take_optional_vector(&mut self, name: &str) -> Option<Tensor> {
        self.vectors.remove(name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use candle_core::Device;
    use nv_kernels::Precision;
    use nv_testing::Random;

    use super::*;
    use crate::copies::copied_weights;
    use crate::error::{Error, Misshapen, TensorReport};
    use crate::model::Qwen3ForCausalLM;
    use crate::ops::Cpu;
    use crate::spec::{EMBED_TOKENS, tensor_shapes};

    fn config(extra: &str) -> Qwen3Config {
        serde_json::from_str(&format!(
            r#"{{"model_type": "qwen3", "vocab_size": 5, "hidden_size": 4, "intermediate_size": 6,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                "head_dim": 2{extra}}}"#
        ))
        .unwrap()
    }

    /// Loads zeros of the shapes that `config("")` implies, after `change`.
    fn report_after(change: impl FnOnce(&mut Vec<(String, Vec<usize>)>)) -> TensorReport {
        let mut shapes = tensor_shapes(&config(""));
        change(&mut shapes);
        let tensors = shapes
            .into_iter()
            .map(|(name, shape)| (name, Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()))
            .collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        match Weights::from_var_builder(&config(""), &vb, Ops::Candle(Device::Cpu)) {
            Ok(_) => TensorReport::default(),
            Err(Error::Tensors(report)) => *report,
            Err(other) => panic!("{other}"),
        }
    }

    type Stored = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

    /// Tensors of the shapes that `config` implies, of values that bfloat16 holds exactly.
    fn stored(config: &Qwen3Config) -> Stored {
        let mut random = Random::new(1);
        let tensors = tensor_shapes(config).into_iter().map(|(name, shape)| {
            let values = (0..shape.iter().product())
                .map(|_| random.below(256) as f32 / 256.0 - 0.5)
                .collect();
            (name, (shape, values))
        });
        tensors.collect()
    }

    /// A checkpoint of one file, whose elements are bfloat16 or float32.
    fn checkpoint(tensors: &Stored, metadata: &str, is_bf16: bool) -> Arc<Checkpoint> {
        let (mut entries, mut data) = (vec![format!(r#""__metadata__":{metadata}"#)], Vec::new());
        for (name, (shape, values)) in tensors {
            let begin = data.len();
            for value in values {
                let bytes = value.to_le_bytes();
                // A bfloat16 is the upper half of a float32.
                data.extend_from_slice(if is_bf16 { &bytes[2..] } else { &bytes });
            }
            let dtype = if is_bf16 { "BF16" } else { "F32" };
            let end = data.len();
            entries.push(format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
            ));
        }
        let mut header = format!("{{{}}}", entries.join(","));
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let len = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&len, header.as_bytes(), &data].concat()).unwrap();
        Arc::new(Checkpoint::read(&[path]).unwrap())
    }

    fn logits(mut model: Qwen3ForCausalLM) -> Vec<f32> {
        let ids = Tensor::new(&[[0u32, 3, 1, 4]], &Device::Cpu).unwrap();
        model.forward_all(&ids, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The logits of a model from a mapped and from a copied checkpoint and from a `VarBuilder`, which are the same.
    fn logits_of(config: &Qwen3Config, tensors: &Stored, metadata: &str) -> Vec<f32> {
        let (dtype, device) = (DType::F32, Device::Cpu);
        let mapped = checkpoint(tensors, metadata, true);
        let copied = checkpoint(tensors, metadata, false);
        let [first, others @ ..] = [
            Qwen3ForCausalLM::from_checkpoint(config, &mapped, dtype, &device),
            Qwen3ForCausalLM::from_checkpoint(config, &copied, dtype, &device),
            Qwen3ForCausalLM::new(config, copied.var_builder(dtype, &device)),
        ]
        .map(|model| logits(model.unwrap()));
        for other in others {
            assert_eq!(first, other);
        }
        first
    }

    fn without(tensors: &Stored, name: &str) -> Stored {
        let mut tensors = tensors.clone();
        tensors.remove(name).unwrap();
        tensors
    }

    /// As in transformers 5.24: the stored head is the head, and stands in for an embedding that isn't stored.
    #[test]
    fn a_head_that_is_stored_is_used_whatever_the_config_says() {
        let untied = config(r#", "tie_word_embeddings": false"#);
        let tied = config(r#", "tie_word_embeddings": true"#);
        let silent = config("");
        let tensors = stored(&untied);
        let alone = without(&tensors, LM_HEAD);

        let own_head = logits_of(&untied, &tensors, "null");
        let tied_head = logits_of(&tied, &alone, "null");
        assert_ne!(own_head, tied_head);
        for config in [&tied, &silent] {
            assert_eq!(logits_of(config, &tensors, "null"), own_head);
            assert_eq!(logits_of(config, &alone, "null"), tied_head);
        }

        let mut equal = tensors.clone();
        equal.insert(LM_HEAD.into(), tensors[EMBED_TOKENS].clone());
        let head_alone = without(&equal, EMBED_TOKENS);
        // What safetensors' `save_model` writes for a tied model.
        let alias = r#"{"model.embed_tokens.weight": "lm_head.weight"}"#;
        for config in [&untied, &tied, &silent] {
            assert_eq!(logits_of(config, &equal, "null"), tied_head);
            assert_eq!(logits_of(config, &head_alone, alias), tied_head);
        }
        assert_eq!(logits_of(&tied, &head_alone, "null"), tied_head);
    }

    #[test]
    fn an_equal_head_is_held_once() {
        let untied = config(r#", "tie_word_embeddings": false"#);
        let mut tensors = stored(&untied);
        let has_head = |tensors: &Stored, is_bf16: bool| {
            let tied = config(r#", "tie_word_embeddings": true"#);
            let checkpoint = checkpoint(tensors, "null", is_bf16);
            let copied = copied_weights(&tied, &checkpoint, DType::F32);
            let ops = || Ops::Kernels(Cpu::new(1).unwrap(), Precision::F32);
            let vb = checkpoint.var_builder(DType::F32, &Device::Cpu);
            [
                Weights::from_checkpoint(&tied, &checkpoint, DType::F32, &ops())
                    .unwrap()
                    .has_head(),
                copied.iter().any(|weight| weight.name == LM_HEAD),
                Weights::from_var_builder(&tied, &vb, ops()).unwrap().has_head(),
            ]
        };
        assert_eq!(has_head(&tensors, false), [true, true, true]);
        tensors.insert(LM_HEAD.into(), tensors[EMBED_TOKENS].clone());
        assert_eq!(has_head(&tensors, false), [false, false, false]);
        // Where it is mapped, comparing would cost more than using it.
        assert_eq!(has_head(&tensors, true), [true, false, false]);
        // One element is enough, even the last.
        *tensors.get_mut(LM_HEAD).unwrap().1.last_mut().unwrap() += 0.25;
        assert_eq!(has_head(&tensors, false), [true, true, true]);
    }

    #[test]
    fn any_tensor_may_be_stored_under_another_name() {
        let config = config(r#", "num_hidden_layers": 2"#);
        let (kept, dropped) =
            ("model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight");
        let (matrix, same) =
            ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight");
        let mut tensors = stored(&config);
        tensors.insert(dropped.into(), tensors[kept].clone());
        tensors.insert(same.into(), tensors[matrix].clone());
        let expected = logits_of(&config, &tensors, "null");
        let shared = without(&without(&tensors, dropped), same);
        let metadata =
            format!(r#"{{"format": "pt", "{dropped}": "{kept}", "{same}": "{matrix}"}}"#);
        assert_eq!(logits_of(&config, &shared, &metadata), expected);
        let copied = copied_weights(&config, &checkpoint(&shared, &metadata, false), DType::F32);
        assert_eq!(
            copied.iter().filter(|weight| weight.name.ends_with("up_proj.weight")).count(),
            1
        );

        let report = |metadata: &str| {
            let checkpoint = checkpoint(&without(&tensors, dropped), metadata, true);
            check_tensors(&config, &checkpoint).unwrap_err().to_string()
        };
        let title = "the checkpoint does not match its config:\n ";
        assert_eq!(report("null"), format!("{title} 1 missing: `{dropped}`"));
        assert_eq!(
            report(&format!(r#"{{"{dropped}": "gone"}}"#)),
            format!("{title} 1 missing: `{dropped}` (stored as `gone`)")
        );
        assert_eq!(
            report(&format!(r#"{{"{dropped}": "{dropped}"}}"#)),
            format!("{title} 1 missing: `{dropped}` (stored as `{dropped}`)")
        );
        assert_eq!(
            report(&format!(r#"{{"{dropped}": "{matrix}"}}"#)),
            format!(
                "{title} 1 of another shape: `{dropped}` (stored as `{matrix}`) (expected [4], found [6, 4])"
            )
        );
    }

    #[test]
    fn heads_that_cannot_be_are_refused() {
        let untied = config(r#", "tie_word_embeddings": false"#);
        let tied = config(r#", "tie_word_embeddings": true"#);
        let tensors = stored(&untied);
        let report = |config: &Qwen3Config, tensors: &Stored| {
            check_tensors(config, &checkpoint(tensors, "null", true)).unwrap_err().to_string()
        };
        let title = "the checkpoint does not match its config:\n ";
        let neither = without(&without(&tensors, LM_HEAD), EMBED_TOKENS);
        assert_eq!(report(&tied, &neither), format!("{title} 1 missing: `{EMBED_TOKENS}`"));
        let head_alone = without(&tensors, EMBED_TOKENS);
        assert_eq!(report(&untied, &head_alone), format!("{title} 1 missing: `{EMBED_TOKENS}`"));
        let mut small = tensors.clone();
        small.insert(LM_HEAD.into(), (vec![4, 4], vec![0.0; 16]));
        let expected =
            format!("{title} 1 of another shape: `{LM_HEAD}` (expected [5, 4], found [4, 4])");
        assert_eq!(report(&tied, &small), expected);
        small.remove(EMBED_TOKENS);
        assert_eq!(report(&tied, &small), expected);

        let mut more = tensors;
        more.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (vec![1], vec![1.0]));
        more.insert("rotary_emb.inv_freq".into(), (vec![1], vec![1.0]));
        check_tensors(&tied, &checkpoint(&more, "null", true)).unwrap();
        more.insert("model.layers.0.self_attn.q_proj.bias".into(), (vec![4], vec![1.0; 4]));
        let bias = "`model.layers.0.self_attn.q_proj.bias`";
        assert_eq!(
            check_tensors(&tied, &checkpoint(&more, "null", true)).unwrap_err().to_string(),
            format!("{title} 1 unexpected: {bias}")
        );
    }

    #[test]
    fn a_guess_that_the_checkpoint_settles_is_no_warning() {
        let silent = config(r#", "rope_theta": 1e6, "max_position_embeddings": 64"#);
        let tensors = stored(&config(r#", "tie_word_embeddings": false"#));
        let warnings = |tensors: &Stored| -> Vec<String> {
            let checkpoint = checkpoint(tensors, "null", true);
            config_warnings(&silent, &checkpoint).map(ToString::to_string).collect()
        };
        assert!(warnings(&tensors).is_empty());
        assert_eq!(
            warnings(&without(&tensors, LM_HEAD)),
            [
                "field `tie_word_embeddings` is missing: true is assumed, where transformers assumes false; \
              add the field if that is wrong"
            ]
        );
    }

    #[test]
    fn every_difference_is_reported_at_once() {
        assert!(report_after(|_| ()).is_empty());
        let report = report_after(|shapes| {
            shapes.retain(|(name, _)| {
                name != "model.norm.weight" && !name.ends_with("k_norm.weight")
            });
            shapes[0].1 = vec![6, 4];
            shapes.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![4]));
            shapes.push(("model.layers.1.mlp.up_proj.weight".into(), vec![6, 4]));
        });
        assert_eq!(
            report,
            TensorReport {
                missing: vec![
                    "model.layers.0.self_attn.k_norm.weight".into(),
                    "model.norm.weight".into()
                ],
                misshapen: vec![Misshapen {
                    name: "model.embed_tokens.weight".into(),
                    expected: vec![5, 4],
                    found: vec![6, 4],
                }],
                unexpected: vec![
                    "model.layers.0.self_attn.q_proj.bias".into(),
                    "model.layers.1.mlp.up_proj.weight".into()
                ],
                ..TensorReport::default()
            }
        );
    }
}
