//! `config.json` of a dense Qwen3 model.
//!
//! What the graph can't compute is refused here, by name, so that no later layer has to ask. It knows nothing of
//! tensors, nor of where the file came from.

use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::{self, Field, Fields, agreed, describe};
use crate::rope::{Rope, RopeScaling};

/// The shape of a dense Qwen3 model, as its `config.json` gives it. Fields bear transformers' names.
///
/// A config that was deserialised is valid. The fields are public, so one that was built or changed by hand may
/// not be: [`Qwen3Config::validate`] tells.
///
/// Six sizes are required: `vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`,
/// `num_attention_heads` and `num_key_value_heads`. Other fields have the defaults below, which also stand in for
/// null. Unknown fields are ignored.
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
    /// Key heads, and value heads, per layer. Divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head, even. Default 128. `num_attention_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Added to the mean of squares in every norm. Default 1e-6.
    pub rms_norm_eps: f64,
    /// Base of the rotation frequencies. Default 1e6. In transformers 5 it stands in `rope_parameters`.
    pub rope_theta: f64,
    /// How longer contexts are reached; `None` for plain RoPE. From `rope_scaling` or `rope_parameters`.
    pub rope_scaling: Option<RopeScaling>,
    /// The longest sequence, in tokens. Default 40960.
    pub max_position_embeddings: usize,
    /// Whether `lm_head` is the embedding matrix. Default true.
    pub tie_word_embeddings: bool,
    /// The MLP's gate activation. Default and only choice `silu`.
    pub hidden_act: String,
    /// Whether the four projections of attention have a bias. Default false.
    pub attention_bias: bool,
    /// Whether layers from `max_window_layers` on attend to a window only. Default false.
    pub use_sliding_window: bool,
    /// That window, in tokens; `None` unless `use_sliding_window`.
    pub sliding_window: Option<usize>,
    /// Layers before this one attend to everything. Default 28.
    pub max_window_layers: usize,
    /// The kind of attention of each layer; empty if the file leaves it to the three fields above.
    pub layer_types: Vec<String>,
    /// Tokens that end a text; the file gives one or a list.
    pub eos_token_id: Vec<u32>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// What the weights are stored as, from `dtype` or `torch_dtype`.
    pub dtype: Option<Dtype>,
    /// The classes in transformers that load this checkpoint; empty if the file doesn't say.
    pub architectures: Vec<String>,
    /// Default and only choice `qwen3`.
    pub model_type: String,
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

/// Reads a model's `config.json`.
///
/// # Errors
/// [`Error::Read`] and [`Error::Parse`] if `path` is not a file with a JSON object; [`Error::File`] with the
/// offending field in its source if the object is not a valid Qwen3 config, or asks for what the graph can't do.
pub fn load_config(path: impl AsRef<Path>) -> Result<Qwen3Config> {
    json::load(path.as_ref(), Qwen3Config::from_fields)
}

impl<'de> Deserialize<'de> for Qwen3Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Map::<String, Value>::deserialize(deserializer)?;
        Self::from_fields(Fields::new(&object)).map_err(D::Error::custom)
    }
}

impl Qwen3Config {
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

    fn from_fields(fields: Fields<'_>) -> Result<Self> {
        // First, so that another model's file is refused for what it is, not for a field that it lacks.
        let model_type = fields.get_or("model_type", "qwen3".to_owned())?;
        let architectures = fields.get_or("architectures", Vec::new())?;
        check_model(&model_type, &architectures)?;
        check_quantization(&fields)?;

        let use_sliding_window = fields.get_or("use_sliding_window", false)?;
        let sliding_window = match fields.get("sliding_window")? {
            // transformers' default: only null turns the window off.
            None if !fields.is_null("sliding_window") => Some(4096),
            given => given,
        };
        let max_position_embeddings = fields.get_or("max_position_embeddings", 40960)?;
        let rope = Rope::from_fields(&fields, max_position_embeddings)?;
        let config = Self {
            vocab_size: fields.require("vocab_size")?,
            hidden_size: fields.require("hidden_size")?,
            intermediate_size: fields.require("intermediate_size")?,
            num_hidden_layers: fields.require("num_hidden_layers")?,
            num_attention_heads: fields.require("num_attention_heads")?,
            num_key_value_heads: fields.require("num_key_value_heads")?,
            head_dim: fields.get_or("head_dim", 128)?,
            rms_norm_eps: fields.get_or("rms_norm_eps", 1e-6)?,
            rope_theta: rope.theta.unwrap_or(1e6),
            rope_scaling: rope.scaling,
            max_position_embeddings,
            tie_word_embeddings: fields.get_or("tie_word_embeddings", true)?,
            hidden_act: fields.get_or("hidden_act", "silu".to_owned())?,
            attention_bias: fields.get_or("attention_bias", false)?,
            use_sliding_window,
            sliding_window: sliding_window.filter(|_| use_sliding_window),
            max_window_layers: fields.get_or("max_window_layers", 28)?,
            layer_types: fields.get_or("layer_types", Vec::new())?,
            eos_token_id: fields.get_or("eos_token_id", Vec::new())?,
            bos_token_id: fields.get("bos_token_id")?,
            dtype: agreed([fields.get_spelling("dtype")?, fields.get_spelling("torch_dtype")?])?,
            architectures,
            model_type,
        };
        config.validate()?;
        Ok(config)
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
        if self.hidden_act != "silu" {
            let found = format!("{:?}", self.hidden_act);
            return Err(Error::unsupported("hidden_act", found, r#""silu""#));
        }
        let first_windowed = self.max_window_layers;
        if let Some(window) = self.sliding_window
            && self.use_sliding_window
            && first_windowed < self.num_hidden_layers
        {
            let value = format!("{window} from layer {first_windowed} on");
            let supported = "full attention in every layer";
            return Err(Error::unsupported("sliding_window", value, supported));
        }
        if let Some(layer) = self.layer_types.iter().position(|kind| kind != "full_attention") {
            let value = format!("{:?}", self.layer_types[layer]);
            let field = format!("layer_types[{layer}]");
            return Err(Error::unsupported(field, value, r#""full_attention""#));
        }
        let len = self.layer_types.len();
        if len != 0 && len != self.num_hidden_layers {
            let expected = format!("num_hidden_layers ({}) items", self.num_hidden_layers);
            return Err(Error::invalid("layer_types", expected, len));
        }
        Ok(())
    }

    /// Token ids that the model can produce.
    fn check_token_ids(&self) -> Result<()> {
        if u32::try_from(self.vocab_size).is_err() {
            return Err(Error::invalid("vocab_size", "at most 4294967295", self.vocab_size));
        }
        let eos = self.eos_token_id.iter().map(|&id| ("eos_token_id", id));
        let bos = self.bos_token_id.iter().map(|&id| ("bos_token_id", id));
        for (field, id) in eos.chain(bos) {
            if id as usize >= self.vocab_size {
                let expected = format!("an id below vocab_size ({})", self.vocab_size);
                return Err(Error::invalid(field, expected, id));
            }
        }
        Ok(())
    }

    /// The parameter count, `None` if it doesn't fit in 64 bits.
    fn checked_num_parameters(&self) -> Option<u64> {
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
            mul(self.intermediate_size, self.hidden_size)?.checked_mul(3)?, // gate, up, down
            hidden.checked_mul(2)?,   // input_layernorm, post_attention_layernorm
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
fn check_model(model_type: &str, architectures: &[String]) -> Result<()> {
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

/// Refuses checkpoints whose tensors are not plain floating-point numbers.
fn check_quantization(fields: &Fields) -> Result<()> {
    const FIELD: &str = "quantization_config";
    let Some(value) = fields.value(FIELD) else { return Ok(()) };
    let method = fields.object(FIELD)?.and_then(|config| config.value("quant_method"));
    let supported = "unquantised checkpoints";
    Err(match method {
        Some(method) => {
            Error::unsupported(format!("{FIELD}.quant_method"), describe(method), supported)
        }
        None => Error::unsupported(FIELD, describe(value), supported),
    })
}

impl Field for Dtype {
    const EXPECTED: &str = r#""bfloat16", "float16" or "float32""#;

    fn from_json(value: &Value) -> Option<Self> {
        match value.as_str()? {
            "bfloat16" => Some(Self::BFloat16),
            "float16" => Some(Self::Float16),
            "float32" => Some(Self::Float32),
            _ => None,
        }
    }
}
