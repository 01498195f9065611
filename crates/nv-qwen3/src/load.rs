//! From named tensors to checked weights: what a config implies, and whether a checkpoint has it.
//!
//! Knows names and shapes; knows nothing of what the graph computes with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use nv_config::Qwen3Config;
use nv_weights::Checkpoint;

use crate::error::{Error, Misshapen, Result, TensorReport};
use crate::ops::Ops;
use crate::weight::Weight;

/// The tensors that a checkpoint of `config` holds, with their shapes, in the order of the graph.
///
/// Names and shapes are those of transformers' `Qwen3ForCausalLM.state_dict()`; linear weights are
/// `[out_features, in_features]`. A tied model has no `lm_head.weight` of its own.
pub fn tensor_shapes(config: &Qwen3Config) -> Vec<(String, Vec<usize>)> {
    let hidden_size = config.hidden_size;
    let q_size = config.num_attention_heads * config.head_dim;
    let kv_size = config.num_key_value_heads * config.head_dim;
    let projections = [
        ("q_proj", q_size, hidden_size),
        ("k_proj", kv_size, hidden_size),
        ("v_proj", kv_size, hidden_size),
        ("o_proj", hidden_size, q_size),
    ];

    let mut shapes =
        vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden_size])];
    for layer in 0..config.num_hidden_layers {
        let mut push = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        push("input_layernorm.weight", &[hidden_size]);
        for (name, out_features, in_features) in projections {
            push(&format!("self_attn.{name}.weight"), &[out_features, in_features]);
            if config.attention_bias {
                push(&format!("self_attn.{name}.bias"), &[out_features]);
            }
        }
        push("self_attn.q_norm.weight", &[config.head_dim]);
        push("self_attn.k_norm.weight", &[config.head_dim]);
        push("post_attention_layernorm.weight", &[hidden_size]);
        push("mlp.gate_proj.weight", &[config.intermediate_size, hidden_size]);
        push("mlp.up_proj.weight", &[config.intermediate_size, hidden_size]);
        push("mlp.down_proj.weight", &[hidden_size, config.intermediate_size]);
    }
    shapes.push(("model.norm.weight".to_owned(), vec![hidden_size]));
    if !config.tie_word_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden_size]));
    }
    shapes
}

/// Compares the names and shapes of `checkpoint` with those that `config` implies, reading no weight.
///
/// Two kinds of tensors may be there without being used: the `lm_head.weight` of a tied model
/// (transformers writes it, and drops it at load) and the `rotary_emb.inv_freq` buffers of old exports.
///
/// # Errors
/// [`Error::Tensors`] with every missing, misshapen and unexpected tensor.
pub fn check_tensors(config: &Qwen3Config, checkpoint: &Checkpoint) -> Result<()> {
    let expected: BTreeMap<String, Vec<usize>> = tensor_shapes(config).into_iter().collect();
    let mut report = TensorReport::default();
    for (name, shape) in &expected {
        match checkpoint.get(name) {
            None => report.missing.push(name.clone()),
            Some(view) if view.shape() != shape.as_slice() => report.misshapen.push(Misshapen {
                name: name.clone(),
                expected: shape.clone(),
                found: view.shape().to_vec(),
            }),
            Some(_) => {}
        }
    }
    report.unexpected = checkpoint
        .tensors()
        .map(|view| view.name().to_owned())
        .filter(|name| !expected.contains_key(name) && !is_redundant(config, name))
        .collect();
    if report.is_empty() { Ok(()) } else { Err(Error::Tensors(report)) }
}

fn is_redundant(config: &Qwen3Config, name: &str) -> bool {
    (config.tie_word_embeddings && name == "lm_head.weight")
        || name.ends_with(".rotary_emb.inv_freq")
}

/// The weights of one model, all present and well-shaped, taken by name while the graph is built.
pub(crate) struct Weights {
    /// Linear weights and the embedding.
    matrices: BTreeMap<String, Weight>,
    /// Norm weights and biases, in float32.
    vectors: BTreeMap<String, Tensor>,
    ops: Ops,
}

impl Weights {
    /// Loads every tensor that `config` implies from `vb`, matrices in its dtype.
    ///
    /// A `VarBuilder` cannot list its names, so here unexpected tensors are looked for where a wrong config would
    /// leave them: biases, and one more layer.
    ///
    /// # Errors
    /// [`Error::Tensors`] with every missing, misshapen and unexpected tensor; [`Error::Candle`] if one can't be read.
    pub(crate) fn from_var_builder(
        config: &Qwen3Config,
        vb: &VarBuilder<'_>,
        ops: Ops,
    ) -> Result<Self> {
        let expected = tensor_shapes(config);
        let mut report = TensorReport {
            unexpected: stray_names(config, &expected)
                .into_iter()
                .filter(|name| vb.contains_tensor(name))
                .collect(),
            ..TensorReport::default()
        };
        let mut weights = Self::empty(ops);
        for (name, shape) in expected {
            if !vb.contains_tensor(&name) {
                report.missing.push(name);
                continue;
            }
            let tensor = vb.get_unchecked_dtype(&name, dtype_of(&shape, vb.dtype()))?;
            if tensor.dims() == shape {
                weights.insert(name, tensor);
            } else {
                report.misshapen.push(Misshapen {
                    name,
                    expected: shape,
                    found: tensor.dims().to_vec(),
                });
            }
        }
        if report.is_empty() { Ok(weights) } else { Err(Error::Tensors(report)) }
    }

    /// Takes every tensor that `config` implies from `checkpoint`. Where kernels compute, bfloat16 matrices stay where
    /// they are; all others are copied, in `dtype`.
    ///
    /// # Errors
    /// As [`check_tensors`]; [`Error::Candle`] if a tensor can't be read.
    pub(crate) fn from_checkpoint(
        config: &Qwen3Config,
        checkpoint: &Arc<Checkpoint>,
        dtype: DType,
        ops: Ops,
    ) -> Result<Self> {
        check_tensors(config, checkpoint)?;
        let vb = checkpoint.var_builder(dtype, ops.device());
        let mut weights = Self::empty(ops);
        for (name, shape) in tensor_shapes(config) {
            if let (Ops::Kernels(..), [_, _]) = (&weights.ops, shape.as_slice())
                && let Some(mapped) = Weight::mapped(checkpoint.shared_tensor(&name)?)
            {
                weights.matrices.insert(name, mapped);
                continue;
            }
            let tensor = vb.get_unchecked_dtype(&name, dtype_of(&shape, dtype))?;
            weights.insert(name, tensor);
        }
        Ok(weights)
    }

    fn empty(ops: Ops) -> Self {
        Self { matrices: BTreeMap::new(), vectors: BTreeMap::new(), ops }
    }

    fn insert(&mut self, name: String, tensor: Tensor) {
        if tensor.rank() == 2 {
            self.matrices.insert(name, Weight::Tensor(tensor));
        } else {
            self.vectors.insert(name, tensor);
        }
    }

    /// Where and how the model computes.
    pub(crate) fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Takes the matrix `name`, which [`tensor_shapes`] lists.
    pub(crate) fn take_matrix(&mut self, name: &str) -> Weight {
        self.matrices
            .remove(name)
            .unwrap_or_else(|| panic!("the graph asks for `{name}`, which no config implies"))
    }

    /// Takes the vector `name`, which [`tensor_shapes`] lists.
    pub(crate) fn take_vector(&mut self, name: &str) -> Tensor {
        self.take_optional_vector(name)
            .unwrap_or_else(|| panic!("the graph asks for `{name}`, which no config implies"))
    }

    /// Takes the vector `name` if [`tensor_shapes`] lists it for this config.
    pub(crate) fn take_optional_vector(&mut self, name: &str) -> Option<Tensor> {
        self.vectors.remove(name)
    }
}

/// What a tensor is loaded as in a model that computes in `dtype`: norm weights and biases act on float32 values.
fn dtype_of(shape: &[usize], dtype: DType) -> DType {
    if shape.len() == 2 { dtype } else { DType::F32 }
}

/// Names that a Qwen3 checkpoint of a neighbouring config would hold, less the `expected` ones.
fn stray_names(config: &Qwen3Config, expected: &[(String, Vec<usize>)]) -> BTreeSet<String> {
    let neighbour = Qwen3Config {
        num_hidden_layers: config.num_hidden_layers + 1,
        attention_bias: true,
        layer_types: Vec::new(),
        ..config.clone()
    };
    let mut names: BTreeSet<String> =
        tensor_shapes(&neighbour).into_iter().map(|(name, _)| name).collect();
    for (name, _) in expected {
        names.remove(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

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
            Err(Error::Tensors(report)) => report,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn shapes_add_up_to_the_parameter_count() {
        for extra in ["", r#", "tie_word_embeddings": false"#, r#", "attention_bias": true"#] {
            let config = config(extra);
            let elements: usize = tensor_shapes(&config)
                .iter()
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum();
            assert_eq!(elements as u64, config.num_parameters(), "{extra}");
        }
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
            }
        );
    }
}
