//! Qwen3's `config.json` and `generation_config.json`, parsed, defaulted and validated.
//!
//! [`load_config`] reads the file of a checkpoint in the spelling of transformers 4 or 5. What comes back is
//! valid: sizes are consistent, no product of them overflows, and the graph can compute what the config asks
//! for. What it can't compute is an [`Error`] that names the field. What it guessed, or ignored as transformers does, is
//! listed in [`Qwen3Config::warnings`].
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("config.json");
//! # std::fs::write(&path, r#"{"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
//! #     "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}"#)?;
//! let config = nv_config::load_config(&path)?;
//! assert_eq!(config.num_parameters(), 596_049_920);
//! assert_eq!(config.head_dim, 128); // a default: this file gives the required sizes only
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod error;
mod generation;
mod json;
mod parse;
mod quantization;
mod qwen3;
mod rope;
mod validate;
mod warning;

pub use error::{Error, Result};
pub use generation::{GenerationConfig, load_generation_config};
pub use parse::load_config;
pub use quantization::{PackedConfig, QuantizationConfig};
pub use qwen3::{Dtype, FeedForward, Qwen3Config};
pub use rope::{RopeScaling, Yarn};
pub use warning::ConfigWarning;
