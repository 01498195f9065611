//! Which configs the graph can compute, and how many weights they have.

use crate::error::{Error, Result};
use crate::qwen3::{FULL_ATTENTION, FeedForward, Qwen3Config, SILU};
use crate::rope::RopeScaling;

impl Qwen3Config {
    /// The most layers of a model: a list of its tensors, which comparing it with a checkpoint takes, has to fit in memory, too.
    const MAX_HIDDEN_LAYERS: usize = 10_000;

    /// Checks everything that deserialising checks.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no model can have these values, [`Error::Unsupported`] if the graph can't compute
    /// such a model.
    pub fn validate(&self) -> Result<()> {
        check_model(&self.model_type, &self.architectures)?;
        self.check_sizes()?;
        self.check_numbers()?;
        self.check_attention()?;
        self.check_token_ids()
    }

    /// Every size is at least one, heads group evenly and halve, and no product of sizes overflows.
    fn check_sizes(&self) -> Result<()> {
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if size == 0 {
                return Err(Error::invalid(field, "at least 1", 0));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected =
                format!("a multiple of num_key_value_heads ({})", self.num_key_value_heads);
            return Err(Error::invalid("num_attention_heads", expected, self.num_attention_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::invalid("head_dim", "an even number", self.head_dim));
        }

        let product = |field: &str, a: usize, b: usize| match a.checked_mul(b) {
            Some(_) => Ok(()),
            None => {
                Err(Error::invalid(field, "a product that fits in memory", format!("{a} * {b}")))
            }
        };
        let head_dim = self.head_dim;
        product("vocab_size * hidden_size", self.vocab_size, self.hidden_size)?;
        product("intermediate_size * hidden_size", self.intermediate_size, self.hidden_size)?;
        product("num_attention_heads * head_dim", self.num_attention_heads, head_dim)?;
        product("num_attention_heads * head_dim * hidden_size", self.q_size(), self.hidden_size)?;
        // In float32, the widest that weights and cache are held in.
        let fits = |count: Option<u64>| {
            count.and_then(|n| n.checked_mul(4)).is_some_and(|bytes| isize::try_from(bytes).is_ok())
        };
        if !fits(self.checked_num_parameters()) {
            let found = format!("{} layers of this width", self.num_hidden_layers);
            return Err(Error::invalid("num_hidden_layers", "a model that fits in memory", found));
        }
        if self.num_hidden_layers > Self::MAX_HIDDEN_LAYERS {
            let expected = format!("at most {}", Self::MAX_HIDDEN_LAYERS);
            return Err(Error::invalid("num_hidden_layers", expected, self.num_hidden_layers));
        }
        let kv_cache_elements = self.kv_cache_bytes_per_token(1) as u64;
        if !fits(kv_cache_elements.checked_mul(self.max_position_embeddings as u64)) {
            let expected = "a KV cache that fits in memory";
            let found = self.max_position_embeddings;
            return Err(Error::invalid("max_position_embeddings", expected, found));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        for (field, number) in
            [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)]
        {
            if !number.is_finite() || number <= 0.0 {
                return Err(Error::invalid(field, "a finite number above 0", number));
            }
        }
        match &self.rope_scaling {
            Some(RopeScaling::Yarn(yarn)) => yarn.validate(self.rope_theta),
            None => Ok(()),
        }
    }

    /// Every layer attends to everything before it, and the MLP is gated by SiLU.
    fn check_attention(&self) -> Result<()> {
        if self.hidden_act != SILU {
            let found = format!("{:?}", self.hidden_act);
            return Err(Error::unsupported("hidden_act", found, format!("{SILU:?}")));
        }
        let len = self.layer_types.len();
        if len != 0 && len != self.num_hidden_layers {
            let expected = format!("num_hidden_layers ({}) items", self.num_hidden_layers);
            return Err(Error::invalid("layer_types", expected, len));
        }
        let window = self.sliding_window.filter(|_| self.use_sliding_window);
        // One that holds the longest sequence cuts nothing off.
        let is_wide = |window| window >= self.max_position_embeddings;
        let first_windowed = self.max_window_layers;
        if let Some(window) = window
            && !is_wide(window)
            && self.layer_types.is_empty()
            && first_windowed < self.num_hidden_layers
        {
            let value = format!("{window} from layer {first_windowed} on");
            let supported = "full attention in every layer";
            return Err(Error::unsupported("sliding_window", value, supported));
        }
        let is_full = |kind: &str| match kind {
            "sliding_attention" => window.is_some_and(is_wide),
            kind => kind == FULL_ATTENTION,
        };
        if let Some(layer) = self.layer_types.iter().position(|kind| !is_full(kind)) {
            let value = format!("{:?}", self.layer_types[layer]);
            let field = format!("layer_types[{layer}]");
            return Err(Error::unsupported(field, value, format!("{FULL_ATTENTION:?}")));
        }
        Ok(())
    }

    /// Token ids are 32 bits wide.
    fn check_token_ids(&self) -> Result<()> {
        match u32::try_from(self.vocab_size) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::invalid("vocab_size", "at most 4294967295", self.vocab_size)),
        }
    }

    /// The parameter count, `None` if it doesn't fit in 64 bits.
    pub(crate) fn checked_num_parameters(&self) -> Option<u64> {
        let mul = |a: usize, b: usize| (a as u64).checked_mul(b as u64);
        let sum = |terms: &[u64]| terms.iter().try_fold(0u64, |sum, &term| sum.checked_add(term));

        let hidden = self.hidden_size as u64;
        let head_dim = self.head_dim as u64;
        let q_size = mul(self.num_attention_heads, self.head_dim)?;
        let kv_size = mul(self.num_key_value_heads, self.head_dim)?;
        let qkv_size = sum(&[q_size, kv_size, kv_size])?;
        let bias = if self.attention_bias { sum(&[qkv_size, hidden])? } else { 0 };
        let layer = sum(&[
            hidden.checked_mul(sum(&[qkv_size, q_size])?)?, // q_proj, k_proj, v_proj, o_proj
            bias,
            head_dim.checked_mul(2)?, // q_norm, k_norm
            match self.feed_forward() {
                FeedForward::Dense { intermediate_size } => {
                    mul(intermediate_size, self.hidden_size)?.checked_mul(3)? // gate, up, down
                }
            },
            hidden.checked_mul(2)?, // input_layernorm, post_attention_layernorm
        ])?;
        let embeddings = mul(self.vocab_size, self.hidden_size)?;
        let lm_head = if self.tie_word_embeddings { 0 } else { embeddings };
        sum(&[
            embeddings,
            layer.checked_mul(self.num_hidden_layers as u64)?,
            hidden, // norm
            lm_head,
        ])
    }
}

/// Refuses models other than dense Qwen3, and its heads other than the one for causal language modelling.
pub(crate) fn check_model(model_type: &str, architectures: &[String]) -> Result<()> {
    const ARCHITECTURE: &str = "Qwen3ForCausalLM";
    if model_type != "qwen3" {
        let supported = r#""qwen3" (the dense models)"#;
        return Err(Error::unsupported("model_type", format!("{model_type:?}"), supported));
    }
    if !architectures.is_empty() && !architectures.iter().any(|name| name == ARCHITECTURE) {
        let value = format!("{architectures:?}");
        return Err(Error::unsupported("architectures", value, format!("[{ARCHITECTURE:?}]")));
    }
    Ok(())
}
