//! Token ids in, token ids out: sampling and generation over the Qwen3 graph.
//!
//! - [`SamplingParams`] says how tokens are chosen and when a text ends.
//! - [`Sampler`] chooses one token from logits, knowing a sequence's past by its [`SamplingState`].
//! - [`TokenLogprobs`] says how likely the model found a token.
//! - [`PromptLookup`] guesses what comes next from what came before.
//! - [`Generator`] continues a prompt: an iterator over tokens.
//! - [`Scheduler`] says which tokens of which sequences a step computes, and which blocks of the KV cache they go to.
//!
//! Knows nothing of text, files or terminals.
//!
//! ```
//! use nv_engine::{Generator, SamplingParams};
//! use nv_qwen3::Qwen3ForCausalLM;
//!
//! # fn example(mut model: Qwen3ForCausalLM, prompt: Vec<u32>) -> nv_engine::Result<()> {
//! let params = SamplingParams::default().with_max_tokens(16)?;
//! let mut generator = Generator::new(&mut model, prompt, params)?;
//! for token_id in &mut generator {
//!     println!("{}", token_id?);
//! }
//! println!("{:?}", generator.finish_reason());
//! # Ok(())
//! # }
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod block_hash;
mod block_pool;
mod engine;
mod error;
mod handle;
mod kv_cache_manager;
mod kv_cache_size;
mod kv_memory;
mod logits_processors;
mod logprobs;
mod model;
mod paged_cache;
mod prompt_lookup;
mod request;
mod sampler;
mod sampling_params;
mod sampling_state;
mod scheduler;
mod stats;

pub use block_hash::{BlockHash, BlockHasher};
pub use block_pool::{BlockId, BlockParent, BlockPool};
pub use engine::{Engine, EngineConfig};
pub use error::{Error, Result};
pub use handle::{EngineHandle, RequestStream};
pub use kv_cache_manager::{BlockCopy, KvCacheManager, SequenceBlocks};
pub use kv_cache_size::{KvCacheMemory, KvCacheSize};
pub use logprobs::{Logprob, TokenLogprobs};
pub use model::{Batch, Model, PagedQwen3};
pub use paged_cache::{PagedAttention, PagedCache};
pub use prompt_lookup::PromptLookup;
pub use request::{Completion, FinishReason, Generation, Request, RequestId, RequestOutput};
pub use sampler::Sampler;
pub use sampling_params::SamplingParams;
pub use sampling_state::SamplingState;
pub use scheduler::{
    Event, NewSequence, ScheduledSequence, Scheduler, SchedulerConfig, SchedulerOutput,
    SchedulerStats, SequenceId,
};
pub use stats::{EngineStats, Histogram, Latencies};

/// The number of a token in a model's vocabulary.
pub type TokenId = u32;
