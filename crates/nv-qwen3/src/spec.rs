//! The tensors of a model: names, shapes, and what each is for.
//!
//! Made from the config alone. Whatever loads, writes, measures or lists a model's tensors reads this list.

use nv_config::{FeedForward, Qwen3Config};

pub(crate) const EMBED_TOKENS: &str = "model.embed_tokens.weight";
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// A tensor that the graph of a config has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in transformers' `Qwen3ForCausalLM.state_dict()`.
    pub name: String,
    /// What the graph does with it.
    pub role: Role,
    /// A matrix is `[out_features, in_features]`.
    pub shape: Vec<usize>,
}

/// What the graph does with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// A row for each token, looked up; in a tied model also the head.
    Embedding,
    /// The matrix of a linear layer.
    Projection(Projection),
    /// Added to a linear layer's result.
    Bias,
    /// The weight of a norm.
    Norm,
    /// The matrix that gives logits.
    Head,
}

/// A linear layer of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// From attended values to the residual stream.
    O,
    /// The gate of the feed-forward network.
    Gate,
    /// What the gate is multiplied by.
    Up,
    /// From the feed-forward network to the residual stream.
    Down,
}

impl TensorSpec {
    /// The last part of its module's name: `q_proj`.
    pub fn module(&self) -> &str {
        module(&self.name)
    }

    /// The rows and columns of a matrix.
    ///
    /// # Panics
    /// If it is none.
    pub(crate) fn matrix_shape(&self) -> (usize, usize) {
        match *self.shape {
            [out_features, in_features] => (out_features, in_features),
            _ => panic!("`{}` is no matrix", self.name),
        }
    }

    /// The number of its elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The last part of the name of a tensor's module.
pub(crate) fn module(name: &str) -> &str {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    module.rsplit_once('.').map_or(module, |(_, last)| last)
}

impl Role {
    /// Whether it is a matrix, which kernels multiply or take rows of; else it is a vector.
    pub fn is_matrix(self) -> bool {
        matches!(self, Self::Embedding | Self::Projection(_) | Self::Head)
    }
}

impl Projection {
    /// Its name within its module.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }
}

/// The tensors of the graph of `config`, in its order.
///
/// Names and shapes are those of transformers' `Qwen3ForCausalLM.state_dict()`. A tied model has no `lm_head.weight` of its
/// own, though its checkpoint may hold one.
pub fn tensor_specs(config: &Qwen3Config) -> Vec<TensorSpec> {
    let mut specs = Vec::new();
    let mut push = |name: String, role, shape: &[usize]| {
        specs.push(TensorSpec { name, role, shape: shape.to_vec() });
    };
    let (hidden_size, vocab_size) = (config.hidden_size, config.vocab_size);
    let (q_size, kv_size) = (config.q_size(), config.kv_size());

    push(EMBED_TOKENS.into(), Role::Embedding, &[vocab_size, hidden_size]);
    for layer in 0..config.num_hidden_layers {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
        push(name("input_layernorm"), Role::Norm, &[hidden_size]);
        for (projection, out_features, in_features) in [
            (Projection::Q, q_size, hidden_size),
            (Projection::K, kv_size, hidden_size),
            (Projection::V, kv_size, hidden_size),
            (Projection::O, hidden_size, q_size),
        ] {
            let module = format!("model.layers.{layer}.self_attn.{}", projection.name());
            let role = Role::Projection(projection);
            push(format!("{module}.weight"), role, &[out_features, in_features]);
            if config.attention_bias {
                push(format!("{module}.bias"), Role::Bias, &[out_features]);
            }
        }
        push(name("self_attn.q_norm"), Role::Norm, &[config.head_dim]);
        push(name("self_attn.k_norm"), Role::Norm, &[config.head_dim]);
        push(name("post_attention_layernorm"), Role::Norm, &[hidden_size]);
        match config.feed_forward() {
            FeedForward::Dense { intermediate_size } => {
                for (projection, out_features, in_features) in [
                    (Projection::Gate, intermediate_size, hidden_size),
                    (Projection::Up, intermediate_size, hidden_size),
                    (Projection::Down, hidden_size, intermediate_size),
                ] {
                    let name = name(&format!("mlp.{}", projection.name()));
                    push(name, Role::Projection(projection), &[out_features, in_features]);
                }
            }
        }
    }
    push("model.norm.weight".into(), Role::Norm, &[hidden_size]);
    if !config.tie_word_embeddings {
        push(LM_HEAD.into(), Role::Head, &[vocab_size, hidden_size]);
    }
    specs
}

/// The names and shapes of [`tensor_specs`].
pub fn tensor_shapes(config: &Qwen3Config) -> Vec<(String, Vec<usize>)> {
    tensor_specs(config).into_iter().map(|spec| (spec.name, spec.shape)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Qwen3Config {
        serde_json::from_str(&format!(
            r#"{{"model_type": "qwen3", "vocab_size": 5, "hidden_size": 4, "intermediate_size": 6,
                "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2{extra}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn shapes_add_up_to_the_parameter_count() {
        for extra in ["", r#", "tie_word_embeddings": false"#, r#", "attention_bias": true"#] {
            let config = config(extra);
            let elements: usize = tensor_specs(&config).iter().map(TensorSpec::num_elements).sum();
            assert_eq!(elements as u64, config.num_parameters(), "{extra}");
        }
    }

    #[test]
    fn roles_say_what_a_tensor_is_for() {
        let specs =
            tensor_specs(&config(r#", "tie_word_embeddings": false, "attention_bias": true"#));
        for TensorSpec { name, role, shape } in &specs {
            assert_eq!(role.is_matrix(), shape.len() == 2, "{name}");
            let expected = match role {
                Role::Embedding => EMBED_TOKENS,
                Role::Projection(projection) => &format!(".{}.weight", projection.name()),
                Role::Bias => "_proj.bias",
                Role::Norm => "norm.weight",
                Role::Head => LM_HEAD,
            };
            assert!(name.ends_with(expected), "{name} is a {role:?}");
        }
        let count = |role| specs.iter().filter(|spec| spec.role == role).count();
        assert_eq!([Role::Embedding, Role::Head, Role::Bias, Role::Norm].map(count), [1, 1, 8, 9]);
        for projection in [Projection::Q, Projection::V, Projection::Down] {
            assert_eq!(count(Role::Projection(projection)), 2, "{projection:?}");
        }
    }
}
