//! Seeded random Qwen3 checkpoints, laid out as Hugging Face publishes them: for tests and benches without a download.
//!
//! An element's value is a function of (seed, tensor name, index) alone, so sharding doesn't change it, and every
//! platform writes the same file. Weights are scaled so that logits have about unit variance. A checkpoint may be written
//! quantised at once, whatever its size would be in bfloat16.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let config = dir.path().join("config.json");
//! # std::fs::write(&config, r#"{"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64,
//! #     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}"#)?;
//! use nv_synth::Recipe;
//!
//! let recipe = Recipe { config, seed: 1, max_shard_bytes: usize::MAX };
//! let weights = recipe.write(&dir.path().join("tiny"))?;
//! assert_eq!(weights, [dir.path().join("tiny/model.safetensors")]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod error;
mod noise;
mod published;
mod recipe;
mod tensors;

pub use error::{Error, Result};
pub use published::PublishedSize;
pub use recipe::Recipe;
