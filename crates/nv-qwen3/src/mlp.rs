//! `Qwen3MLP`: the gated feed-forward half of a decoder layer.

use candle_core::Tensor;

use crate::error::Result;
use crate::linear::Linear;
use crate::load::Weights;

/// SwiGLU: `down_proj(silu(gate_proj(x)) * up_proj(x))`.
#[derive(Debug, Clone)]
#[expect(clippy::struct_field_names, reason = "the names are those of the checkpoint")]
pub(crate) struct Qwen3MLP {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Qwen3MLP {
    pub(crate) fn load(weights: &mut Weights, name: &str) -> Self {
        Self {
            gate_proj: Linear::load(weights, &format!("{name}.gate_proj")),
            up_proj: Linear::load(weights, &format!("{name}.up_proj")),
            down_proj: Linear::load(weights, &format!("{name}.down_proj")),
        }
    }

    /// Shapes: `x` `[num_tokens, hidden_size]`; returns the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let activated = Linear::swiglu(&self.gate_proj, &self.up_proj, x)?; // [num_tokens, intermediate_size]
        self.down_proj.forward(&activated)
    }
}
