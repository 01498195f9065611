//! `Qwen3RMSNorm`.

use candle_core::{Result, Tensor};

use crate::load::Weights;
use crate::ops;

/// RMS norm over the last axis, in float32: the hidden size, or `head_dim` for `q_norm` and `k_norm`.
#[derive(Debug, Clone)]
pub(crate) struct Qwen3RMSNorm {
    weight: Tensor,
    eps: f64,
}

impl Qwen3RMSNorm {
    pub(crate) fn load(weights: &mut Weights, name: &str, eps: f64) -> Self {
        Self { weight: weights.take(&format!("{name}.weight")), eps }
    }

    /// Shapes: `x` `[.., size]`; returns `x`'s shape. Dtypes: f32 in and out.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, &self.weight, self.eps)
    }
}
