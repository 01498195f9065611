//! Token ids in, token ids out: continuous batching, a paged KV cache and sampling over the Qwen3 graph.
//!
//! - [`Engine`] serves many [`Request`]s at once, a step at a time; [`EngineHandle`] runs one on a thread of its own.
//! - [`SamplingParams`] says how tokens are chosen and when a text ends.
//! - [`Constraint`] is what texts can be held to, token by token.
//! - [`EngineStats`] counts what an engine does.
//!
//! What the engine is made of can be used alone:
//!
//! - [`Scheduler`] says which tokens of which sequences a step computes, and which blocks of the KV cache they go to.
//! - [`Model`] is what computes them; [`PagedQwen3`] is Qwen3 over a [`PagedCache`].
//! - [`Sampler`] chooses one token from logits, knowing a sequence's past by its [`SamplingState`].
//! - [`TokenLogprobs`] says how likely the model found a token.
//! - [`PromptLookup`] guesses what comes next from what came before.
//!
//! Knows nothing of text, terminals or HTTP.
//!
//! ```
//! use nv_engine::{Engine, EngineConfig, Request, SamplingParams};
//! use nv_qwen3::Qwen3ForCausalLM;
//!
//! # fn example(model: Qwen3ForCausalLM, prompts: Vec<Vec<u32>>) -> nv_engine::Result<()> {
//! let mut engine = Engine::new(model, EngineConfig::default())?;
//! let params = SamplingParams::default().with_max_tokens(16)?;
//! let requests = prompts.into_iter().map(|prompt| Request::new(prompt, params.clone()));
//! for generation in engine.generate(requests.collect()) {
//!     println!("{:?}", generation?.completions[0].token_ids);
//! }
//! # Ok(())
//! # }
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod block_hash;
mod block_pool;
mod constraint;
mod engine;
mod error;
mod free_memory;
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
pub use constraint::{Constraint, ConstraintState, TokenMask};
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
pub use stats::{EngineStats, Histogram, Latencies, StepTimes};

/// The number of a token in a model's vocabulary.
pub type TokenId = u32;
