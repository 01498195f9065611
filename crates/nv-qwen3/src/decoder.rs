//! The graph: embedding, decoder layers, last norm, over packed tokens.
//!
//! Written once. Knows nothing of sequences: an [`AttentionCache`] tells its tokens apart.

use candle_core::{DType, Tensor};
use nv_config::{FeedForward, Qwen3Config};

use crate::attention::Qwen3Attention;
use crate::cache::AttentionCache;
use crate::error::{Error, Result};
use crate::load::Weights;
use crate::mlp::Qwen3MLP;
use crate::norm::Qwen3RMSNorm;
use crate::ops::{Angles, Ops};
use crate::rotary::Qwen3RotaryEmbedding;
use crate::weight::Weight;

/// Qwen3 without its head and without a cache.
#[derive(Debug, Clone)]
pub(crate) struct Qwen3Decoder {
    embed_tokens: Weight,
    layers: Vec<Qwen3DecoderLayer>,
    norm: Qwen3RMSNorm,
    rotary_emb: Qwen3RotaryEmbedding,
    config: Qwen3Config,
    ops: Ops,
}

/// One layer of the decoder.
#[derive(Debug, Clone)]
struct Qwen3DecoderLayer {
    input_layernorm: Qwen3RMSNorm,
    self_attn: Qwen3Attention,
    post_attention_layernorm: Qwen3RMSNorm,
    mlp: Qwen3MLP,
    ops: Ops,
}

impl Qwen3Decoder {
    pub(crate) fn load(config: &Qwen3Config, weights: &mut Weights) -> Self {
        Self {
            embed_tokens: weights.take_matrix("model.embed_tokens.weight"),
            layers: (0..config.num_hidden_layers)
                .map(|layer_idx| Qwen3DecoderLayer::load(config, weights, layer_idx))
                .collect(),
            norm: Qwen3RMSNorm::load(weights, "model.norm", config.rms_norm_eps),
            rotary_emb: Qwen3RotaryEmbedding::new(config),
            config: config.clone(),
            ops: weights.ops().clone(),
        }
    }

    /// Shapes: `input_ids` `[num_tokens]`, `positions` one a token; returns `[num_tokens, hidden_size]`, normed.
    /// Dtypes: `input_ids` U32 or I64; returns F32, the dtype of the residual stream.
    pub(crate) fn forward(
        &self,
        input_ids: &Tensor,
        positions: &[usize],
        cache: &mut dyn AttentionCache,
    ) -> Result<Tensor> {
        let ids = self.checked_ids(input_ids, positions)?;
        let angles = self.rotary_emb.at(positions, self.ops.device())?;

        let mut x = self.ops.embed(&self.embed_tokens, &ids)?; // [num_tokens, hidden_size]
        for layer in &self.layers {
            x = layer.forward(&x, &angles, cache)?;
        }
        self.norm.forward(&x)
    }

    pub(crate) fn config(&self) -> &Qwen3Config {
        &self.config
    }

    pub(crate) fn ops(&self) -> &Ops {
        &self.ops
    }

    /// `[vocab_size, hidden_size]`: also the `lm_head` of a tied model.
    pub(crate) fn embed_tokens(&self) -> &Weight {
        &self.embed_tokens
    }

    /// The ids, all in the vocabulary, one position each, all within the context.
    fn checked_ids(&self, input_ids: &Tensor, positions: &[usize]) -> Result<Vec<u32>> {
        let is_ids = matches!(input_ids.dtype(), DType::U32 | DType::I64);
        if !is_ids || input_ids.rank() != 1 || input_ids.elem_count() == 0 {
            let (expected, shape) = ("[num_tokens]", input_ids.dims().to_vec());
            return Err(Error::InputIds { expected, shape, dtype: input_ids.dtype() });
        }
        if input_ids.dims() != [positions.len()] {
            return Err(Error::Shape {
                what: "positions",
                expected: input_ids.dims().to_vec(),
                found: vec![positions.len()],
            });
        }
        let (max_position_embeddings, vocab_size) =
            (self.config.max_position_embeddings, self.config.vocab_size);
        let length = positions.iter().max().map_or(0, |last| last.saturating_add(1));
        if length > max_position_embeddings {
            return Err(Error::ContextLength { length, max_position_embeddings });
        }
        let in_vocabulary = |id: i64| match u32::try_from(id) {
            Ok(valid) if (valid as usize) < vocab_size => Ok(valid),
            _ => Err(Error::TokenId { id, vocab_size }),
        };
        input_ids.to_dtype(DType::I64)?.to_vec1()?.into_iter().map(in_vocabulary).collect()
    }
}

impl Qwen3DecoderLayer {
    fn load(config: &Qwen3Config, weights: &mut Weights, layer_idx: usize) -> Self {
        let name = format!("model.layers.{layer_idx}");
        let eps = config.rms_norm_eps;
        Self {
            input_layernorm: Qwen3RMSNorm::load(weights, &format!("{name}.input_layernorm"), eps),
            self_attn: Qwen3Attention::load(
                config,
                weights,
                layer_idx,
                &format!("{name}.self_attn"),
            ),
            post_attention_layernorm: Qwen3RMSNorm::load(
                weights,
                &format!("{name}.post_attention_layernorm"),
                eps,
            ),
            mlp: match config.feed_forward() {
                FeedForward::Dense { .. } => Qwen3MLP::load(weights, &format!("{name}.mlp")),
            },
            ops: weights.ops().clone(),
        }
    }

    /// Shapes: `x` `[num_tokens, hidden_size]`, the float32 residual stream; returns the same.
    fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        cache: &mut dyn AttentionCache,
    ) -> Result<Tensor> {
        let attended = self.self_attn.forward(&self.input_layernorm.forward(x)?, angles, cache)?;
        let x = self.ops.add(x, &attended)?;
        let activated = self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?;
        self.ops.add(&x, &activated)
    }
}
