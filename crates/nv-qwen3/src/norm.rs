//! `Qwen3RMSNorm`.

use candle_core::Tensor;

use crate::error::Result;
use crate::load::Weights;
use crate::ops::{Angles, Ops};

/// RMS norm over the last axis, in float32: the hidden size, or `head_dim` for `q_norm` and `k_norm`.
#[derive(Debug, Clone)]
pub(crate) struct Qwen3RMSNorm {
    weight: Tensor,
    eps: f64,
    ops: Ops,
}

impl Qwen3RMSNorm {
    pub(crate) fn load(weights: &mut Weights, name: &str, eps: f64) -> Self {
        let ops = weights.ops().clone();
        Self { weight: weights.take_vector(&format!("{name}.weight")), eps, ops }
    }

    /// Shapes: `x` `[.., size]`; returns `x`'s shape. Dtypes: f32 in and out.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.ops.rms_norm(x, &self.weight, self.eps)
    }

    /// The norm of each head, then its rotation.
    ///
    /// Shapes: `x` `[num_tokens, num_heads, head_dim]`; returns the same. Dtypes: f32 in and out.
    pub(crate) fn forward_rotated(&self, x: &Tensor, angles: &Angles) -> Result<Tensor> {
        self.ops.norm_and_rotate(x, &self.weight, self.eps, angles)
    }
}
