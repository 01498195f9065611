//! Whether a model's logits are the same bits on every machine, and if not, what they depend on.

use std::fmt;

use nv_config::Qwen3Config;
use nv_weights::Checkpoint;

use crate::cache::kernels_attend;
use crate::error::Result;
use crate::sources::{PackedFormats, locate};
use crate::spec::{Role, TensorSpec};

/// What has a model's bits depend on the machine's tier of kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TierDependence {
    /// Heads of this size are not the kernels': they are attended by candle.
    HeadDim {
        /// Elements a head.
        head_dim: usize,
    },
    /// A matrix that is multiplied as floating-point numbers, whose sums have an order of their own in each tier.
    PlainMatrix {
        /// The tensor's name.
        name: String,
    },
}

impl fmt::Display for TierDependence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeadDim { head_dim } => {
                write!(f, "head_dim {head_dim} is no multiple of 16, so candle attends")
            }
            Self::PlainMatrix { name } => {
                write!(f, "`{}` is multiplied as floating-point numbers", name.escape_debug())
            }
        }
    }
}

/// What has the logits of `checkpoint`, computed as it is stored, depend on the tier of kernels. Without any, they are the same
/// bits on the CPU of every machine. Reads no weight.
///
/// # Errors
/// [`Error::UnknownFormat`](crate::Error::UnknownFormat) if `config` names a format that there isn't.
pub fn tier_dependences(
    config: &Qwen3Config,
    checkpoint: &Checkpoint,
) -> Result<Vec<TierDependence>> {
    let packed = PackedFormats::of(config)?;
    let tensors = locate(config, |name| checkpoint.get(name).is_some());
    let matrices = tensors.iter().filter(|tensor| tensor.spec.role.is_matrix()).map(|tensor| {
        let view = checkpoint.get(&tensor.stored_as);
        let format = view.and_then(|view| packed.format(&tensor.spec, &view));
        (&tensor.spec, format.is_some_and(nv_kernels::Format::is_portable))
    });
    Ok(dependences(config, &matrices.collect::<Vec<_>>()))
}

/// What the logits of a model depend on whose matrices are `matrices`, each with whether multiplying it is portable.
pub(crate) fn dependences(
    config: &Qwen3Config,
    matrices: &[(&TensorSpec, bool)],
) -> Vec<TierDependence> {
    let head_dim = config.head_dim;
    let heads = (!kernels_attend(head_dim)).then_some(TierDependence::HeadDim { head_dim });
    // Of an embedding that isn't the head, rows are looked up and nothing else.
    let has_head = matrices.iter().any(|(spec, _)| spec.role == Role::Head);
    let is_multiplied = |spec: &TensorSpec| spec.role != Role::Embedding || !has_head;
    let plain = matrices.iter().filter(|(spec, is_portable)| !is_portable && is_multiplied(spec));
    let plain = plain.map(|(spec, _)| TierDependence::PlainMatrix { name: spec.name.clone() });
    heads.into_iter().chain(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset::Preset;
    use crate::spec::tensor_specs;

    fn config(extra: &str) -> Qwen3Config {
        serde_json::from_str(&format!(
            r#"{{"model_type": "qwen3", "vocab_size": 5, "hidden_size": 4, "intermediate_size": 6,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1{extra}}}"#
        ))
        .unwrap()
    }

    /// As messages, with the matrices of which `is_portable` says so.
    fn found(config: &Qwen3Config, is_portable: impl Fn(Role) -> bool) -> Vec<String> {
        let specs = tensor_specs(config);
        let matrices = specs.iter().filter(|spec| spec.role.is_matrix());
        let matrices: Vec<_> = matrices.map(|spec| (spec, is_portable(spec.role))).collect();
        dependences(config, &matrices).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_preset_makes_every_matrix_portable() {
        for preset in Preset::ALL {
            for extra in ["", r#", "tie_word_embeddings": false, "attention_bias": true"#] {
                let is_portable =
                    |role| preset.format(role).is_some_and(nv_kernels::Format::is_portable);
                assert!(found(&config(extra), is_portable).is_empty(), "{preset}{extra}");
            }
        }
    }

    #[test]
    fn what_is_multiplied_as_floating_point_numbers_is_named() {
        let (tied, untied) = (config(""), config(r#", "tie_word_embeddings": false"#));
        let is_table = |role| role == Role::Embedding;
        let expected = ["`model.embed_tokens.weight` is multiplied as floating-point numbers"];
        assert_eq!(found(&tied, |role| !is_table(role)), expected);
        assert!(found(&untied, |role| !is_table(role)).is_empty());
        let expected = ["`lm_head.weight` is multiplied as floating-point numbers"];
        assert_eq!(found(&untied, |role| role != Role::Head), expected);
        assert_eq!(found(&tied, |_| false).len(), 7 + 1);
        assert_eq!(found(&untied, |_| false).len(), 7 + 1);
    }

    #[test]
    fn heads_that_candle_attends_are_named() {
        let odd = config(r#", "head_dim": 24"#);
        let expected = ["head_dim 24 is no multiple of 16, so candle attends"];
        assert_eq!(found(&odd, |_| true), expected);
        assert!(found(&config(r#", "head_dim": 48"#), |_| true).is_empty());
    }
}
