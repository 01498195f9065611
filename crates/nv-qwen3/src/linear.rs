//! A linear layer: a weight, and perhaps a bias.

use candle_core::Tensor;

use crate::error::Result;
use crate::load::Weights;
use crate::ops::Ops;
use crate::weight::Weight;

/// `y = x @ weightᵀ + bias`, with `weight` `[out_features, in_features]` as the checkpoint stores it.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Weight,
    /// f32: it is added to the f32 product.
    bias: Option<Tensor>,
    ops: Ops,
}

impl Linear {
    /// The layer whose tensors are `{name}.weight` and, where the config has one, `{name}.bias`.
    pub(crate) fn load(weights: &mut Weights, name: &str) -> Self {
        Self {
            weight: weights.take_matrix(&format!("{name}.weight")),
            bias: weights.take_optional_vector(&format!("{name}.bias")),
            ops: weights.ops().clone(),
        }
    }

    /// A layer without bias that shares `weight` with its owner: the tied `lm_head`.
    pub(crate) fn tied(weight: &Weight, ops: &Ops) -> Self {
        Self { weight: weight.clone(), bias: None, ops: ops.clone() }
    }

    /// Shapes: `x` `[num_tokens, in_features]`; returns `[num_tokens, out_features]`. Dtypes: f32 in and out.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [y] = Self::forward_together([self], x)?;
        Ok(y)
    }

    /// The outputs of layers that share their input, computed together. Shapes and dtypes as for [`Self::forward`].
    pub(crate) fn forward_together<const N: usize>(
        layers: [&Self; N],
        x: &Tensor,
    ) -> Result<[Tensor; N]> {
        let mut outputs = layers[0].ops.linear(x, layers.map(|layer| &layer.weight))?;
        for (output, layer) in outputs.iter_mut().zip(layers) {
            if let Some(bias) = &layer.bias {
                *output = output.broadcast_add(bias)?;
            }
        }
        Ok(outputs)
    }

    /// `silu(gate(x)) * up(x)`, for layers without bias. Shapes and dtypes as for [`Self::forward`].
    pub(crate) fn swiglu(gate: &Self, up: &Self, x: &Tensor) -> Result<Tensor> {
        debug_assert!(gate.bias.is_none() && up.bias.is_none());
        gate.ops.swiglu(x, &gate.weight, &up.weight)
    }
}
