//! A linear layer: a weight, perhaps a bias, and the op that applies them.

use candle_core::{Result, Tensor};

use crate::load::Weights;
use crate::ops;

/// `y = x @ weightᵀ + bias`, with `weight` `[out_features, in_features]` as the checkpoint stores it.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// The layer whose tensors are `{name}.weight` and, where the config has one, `{name}.bias`.
    pub(crate) fn load(weights: &mut Weights, name: &str) -> Self {
        Self {
            weight: weights.take(&format!("{name}.weight")),
            bias: weights.take_optional(&format!("{name}.bias")),
        }
    }

    /// A layer without bias that shares `weight` with its owner: the tied `lm_head`.
    pub(crate) fn tied(weight: &Tensor) -> Self {
        Self { weight: weight.clone(), bias: None }
    }

    /// Shapes: `x` `[num_tokens, in_features]`; returns `[num_tokens, out_features]`. Dtypes: f32 in and out.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref())
    }
}
