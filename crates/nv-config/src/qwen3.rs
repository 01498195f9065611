//! The shape of a dense Qwen3 model, and what follows from it.
//!
//! Knows nothing of files or tensors.

use crate::quantization::QuantizationConfig;
use crate::rope::RopeScaling;
use crate::warning::ConfigWarning;

/// The only activation that there is.
pub(crate) const SILU: &str = "silu";
/// The only kind of layer that there is.
pub(crate) const FULL_ATTENTION: &str = "full_attention";

/// The shape of a dense Qwen3 model, as its `config.json` gives it. Fields bear transformers' names.
///
/// A config that was deserialised is valid. The fields are public, so one that was built or changed by hand may
/// not be: [`Qwen3Config::validate`] tells.
///
/// Six sizes are required: `vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`,
/// `num_attention_heads` and `num_key_value_heads`. Other fields have the defaults below, which also stand in for
/// null. Unknown fields are ignored. Fields that decide nothing in a model may hold anything.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen3Config {
    /// Rows of the embedding matrix, and logits per position. May exceed the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads per layer.
    pub num_attention_heads: usize,
    /// Key heads, and value heads, per layer. Divides `num_attention_heads`, which null stands for.
    pub num_key_value_heads: usize,
    /// Width of one head, even. Default 128. `num_attention_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Added to the mean of squares in every norm. Default 1e-6.
    pub rms_norm_eps: f64,
    /// Base of the rotation frequencies. Default 1e6. In transformers 5 it stands in `rope_parameters`.
    pub rope_theta: f64,
    /// How longer contexts are reached; `None` for plain RoPE. From `rope_scaling` or `rope_parameters`.
    pub rope_scaling: Option<RopeScaling>,
    /// The longest sequence, in tokens. Default 40960. With YaRN at least `factor` times the original context, whatever
    /// the file says: Qwen's own instructions add `rope_scaling` and leave this field as it is.
    pub max_position_embeddings: usize,
    /// Whether `lm_head` is the embedding matrix, unless the checkpoint holds an `lm_head.weight`. Default true.
    pub tie_word_embeddings: bool,
    /// The MLP's gate activation. Default and only choice `silu`, which files may also call `swish`.
    pub hidden_act: String,
    /// Whether the four projections of attention have a bias. Default false.
    pub attention_bias: bool,
    /// Whether layers from `max_window_layers` on attend to a window only. Default false.
    pub use_sliding_window: bool,
    /// That window, in tokens; `None` unless `use_sliding_window`.
    pub sliding_window: Option<usize>,
    /// Layers before this one attend to everything. Default 28.
    pub max_window_layers: usize,
    /// The kind of attention of each layer, whatever `max_window_layers` says; empty if the file leaves it to that field.
    pub layer_types: Vec<String>,
    /// Tokens that end a text; the file gives one or a list. One outside the vocabulary never comes.
    pub eos_token_id: Vec<u32>,
    /// The token that starts a text; `None` if what the file says is no token's id.
    pub bos_token_id: Option<u32>,
    /// What to compute in, from `dtype` or `torch_dtype`; `None` if it is none of these, and the weights' own dtype decides.
    pub dtype: Option<Dtype>,
    /// How the checkpoint stores its matrices; `None` if it does as plain numbers.
    pub quantization_config: Option<QuantizationConfig>,
    /// The classes in transformers that load this checkpoint; empty if the file doesn't say.
    pub architectures: Vec<String>,
    /// Default and only choice `qwen3`.
    pub model_type: String,
    /// What the file leaves open or says in vain; [`validate`](Qwen3Config::validate) doesn't look at it.
    pub warnings: Vec<ConfigWarning>,
}

/// What a decoder layer computes behind its attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForward {
    /// `down_proj(silu(gate_proj(x)) * up_proj(x))`.
    Dense {
        /// Rows of `gate_proj` and of `up_proj`, columns of `down_proj`.
        intermediate_size: usize,
    },
}

/// What weights are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// `bfloat16`
    BFloat16,
    /// `float16`
    Float16,
    /// `float32`
    Float32,
}

impl Qwen3Config {
    /// Weights in the model; tied embeddings count once. Saturates where [`validate`](Self::validate) fails.
    pub fn num_parameters(&self) -> u64 {
        self.checked_num_parameters().unwrap_or(u64::MAX)
    }

    /// Width of all query heads together: rows of `q_proj`, columns of `o_proj`.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together: rows of `k_proj` and of `v_proj`.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The feed-forward network of every decoder layer.
    pub fn feed_forward(&self) -> FeedForward {
        FeedForward::Dense { intermediate_size: self.intermediate_size }
    }

    /// Query heads that share one key head.
    pub fn num_key_value_groups(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Bytes that the keys and values of one token take in all layers.
    ///
    /// ```
    /// # let config: nv_config::Qwen3Config = serde_json::from_str(
    /// #     r#"{"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    /// #         "num_attention_heads": 16, "num_key_value_heads": 8}"#)?;
    /// let bytes_per_element = 2; // bfloat16
    /// assert_eq!(config.kv_cache_bytes_per_token(bytes_per_element), 28 * 2 * (8 * 128) * 2);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn kv_cache_bytes_per_token(&self, bytes_per_element: usize) -> usize {
        self.num_hidden_layers * 2 * self.kv_size() * bytes_per_element
    }
}
