//! A Qwen3 inference engine.
//!
//! This crate gathers the crates that the engine is made of, each under its own name; each can be used alone. [`model`] has what it
//! takes to load a checkpoint and run it:
//!
//! ```no_run
//! use nano_vllm_rs::model::{DType, Device, Tensor};
//! use nano_vllm_rs::model::{download_model, load_config, load_safetensors, Qwen3ForCausalLM};
//!
//! let files = download_model("Qwen/Qwen3-0.6B", "main")?;
//! let config = load_config(&files.config)?;
//! let vb = load_safetensors(&files.weights, DType::BF16, &Device::Cpu)?;
//! let mut model = Qwen3ForCausalLM::new(&config, vb)?;
//!
//! let input_ids = Tensor::new(&[[785u32, 6722, 315, 9625, 374]], &Device::Cpu)?; // "The capital of France is"
//! let logits = model.forward(&input_ids, 0)?; // [1, vocab_size], float32
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With text on either side, and on a folder instead of a model of the hub:
//!
//! ```
//! use nano_vllm_rs::engine::{Engine, EngineConfig, KvCacheMemory, Request, SamplingParams};
//! use nano_vllm_rs::model::{DType, Device};
//! use nano_vllm_rs::model::{download_model, load_config, load_safetensors, Qwen3ForCausalLM};
//! use nano_vllm_rs::text::Tokenizer;
//!
//! let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo");
//! let files = download_model(dir, "main")?;
//! let config = load_config(&files.config)?;
//! let vb = load_safetensors(&files.weights, DType::F32, &Device::Cpu)?;
//! let model = Qwen3ForCausalLM::new(&config, vb)?;
//!
//! let tokenizer = Tokenizer::from_dir(&files.dir)?;
//! let prompt = tokenizer.encode("In the beginning", true)?;
//! let params = SamplingParams::default().with_max_tokens(8)?;
//! let kv_cache_memory = KvCacheMemory::Bytes(64 << 20);
//! let mut engine = Engine::new(model, EngineConfig { kv_cache_memory, ..EngineConfig::default() })?;
//! for generation in engine.generate(vec![Request::new(prompt, params)]) {
//!     let token_ids = &generation?.completions[0].token_ids;
//!     assert_eq!(token_ids.len(), 8);
//!     println!("{}", tokenizer.decode(token_ids, true));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub use nv_config as config;
pub use nv_engine as engine;
pub use nv_kernels as kernels;
pub use nv_qwen3 as qwen3;
#[cfg(feature = "server")]
pub use nv_server as server;
pub use nv_text as text;
pub use nv_weights as weights;

pub mod model {
    //! From a model's name to its logits.

    pub use candle_core::{DType, Device, Tensor};
    pub use nv_config::{Qwen3Config, load_config};
    pub use nv_qwen3::{Cpu, Qwen3ForCausalLM, Qwen3Model};
    pub use nv_weights::{ModelFiles, download_model, load_safetensors};
}

/// The examples of the README are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
