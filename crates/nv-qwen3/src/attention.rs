//! `Qwen3Attention`: grouped-query attention with per-head norms on queries and keys.
//!
//! Knows nothing of how keys and values are kept: an [`AttentionCache`] stores and attends.

use candle_core::Tensor;
use nv_config::Qwen3Config;

use crate::cache::AttentionCache;
use crate::error::Result;
use crate::linear::Linear;
use crate::load::Weights;
use crate::norm::Qwen3RMSNorm;
use crate::ops::Angles;

/// The attention half of a decoder layer.
#[derive(Debug, Clone)]
pub(crate) struct Qwen3Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Qwen3RMSNorm,
    k_norm: Qwen3RMSNorm,
    layer_idx: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

impl Qwen3Attention {
    pub(crate) fn load(
        config: &Qwen3Config,
        weights: &mut Weights,
        layer_idx: usize,
        name: &str,
    ) -> Self {
        let mut linear = |projection: &str| Linear::load(weights, &format!("{name}.{projection}"));
        let (q_proj, k_proj, v_proj, o_proj) =
            (linear("q_proj"), linear("k_proj"), linear("v_proj"), linear("o_proj"));
        let mut norm = |which: &str| {
            Qwen3RMSNorm::load(weights, &format!("{name}.{which}"), config.rms_norm_eps)
        };
        Self {
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            q_norm: norm("q_norm"),
            k_norm: norm("k_norm"),
            layer_idx,
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }

    /// Shapes: `x` `[num_tokens, hidden_size]`; returns the same.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        cache: &mut dyn AttentionCache,
    ) -> Result<Tensor> {
        let num_tokens = x.dim(0)?;
        let q_heads = (num_tokens, self.num_heads, self.head_dim);
        let kv_heads = (num_tokens, self.num_kv_heads, self.head_dim);

        let [q, k, v] = Linear::forward_together([&self.q_proj, &self.k_proj, &self.v_proj], x)?;
        let q = q.reshape(q_heads)?; // [num_tokens, num_heads, head_dim]
        let k = k.reshape(kv_heads)?; // [num_tokens, num_kv_heads, head_dim]
        let v = v.reshape(kv_heads)?; // [num_tokens, num_kv_heads, head_dim]

        let q = self.q_norm.forward_rotated(&q, angles)?;
        let k = self.k_norm.forward_rotated(&k, angles)?;

        let attended = cache.attend(self.layer_idx, &q, &k, &v)?; // [num_tokens, num_heads * head_dim]
        self.o_proj.forward(&attended)
    }
}
