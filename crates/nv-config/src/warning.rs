//! What a reader of a valid config should know all the same.

use std::fmt;

/// Something that a config leaves open, or says without effect. A caller shows it to its user.
///
/// ```
/// # let config: nv_config::Qwen3Config = serde_json::from_str(
/// #     r#"{"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
/// #         "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": true,
/// #         "max_position_embeddings": 40960}"#)?;
/// let [warning] = &config.warnings[..] else { panic!("one field was guessed") };
/// assert_eq!(
///     warning.to_string(),
///     "field `rope_theta` is missing: 1000000 is assumed, where transformers assumes 10000; add the field if that is wrong",
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigWarning {
    /// The file lacks a field that decides something, and Qwen3's value was assumed, not that of transformers.
    Guessed {
        /// The field.
        field: &'static str,
        /// The value that was assumed.
        assumed: String,
        /// What transformers assumes.
        transformers: String,
    },
    /// The file has a field that changes nothing here.
    Ignored {
        /// The field, with the object that holds it: `rope_scaling.attn_factor`.
        field: String,
        /// Its value.
        value: String,
        /// Why.
        because: String,
    },
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guessed { field, assumed, transformers } => write!(
                f,
                "field `{field}` is missing: {assumed} is assumed, where transformers assumes {transformers}; \
                 add the field if that is wrong"
            ),
            Self::Ignored { field, value, because } => {
                write!(f, "field `{field}` ({value}) is ignored: {because}")
            }
        }
    }
}
