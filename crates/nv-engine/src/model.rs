//! What the engine needs of a model, and Qwen3 as such a model.
//!
//! Knows nothing of requests: a step is tokens at positions of sequences with block tables.

use candle_core::{DType, Device, Tensor};
use nv_kernels::Sequence;
use nv_qwen3::Qwen3ForCausalLM;

use crate::TokenId;
use crate::error::Result;
use crate::kv_cache_manager::BlockCopy;
use crate::kv_cache_size::KvCacheSize;
use crate::paged_cache::PagedCache;
use crate::scheduler::SequenceId;

/// A model with a paged KV cache of its own, as the [`Engine`](crate::Engine) drives it.
///
/// The logits of a token must depend on its sequence alone, not on what else is in its batch: then batching, chunks,
/// prefix hits, preemption and speculation change no output.
pub trait Model {
    /// Tokens in the vocabulary: logits a row.
    fn vocab_size(&self) -> usize;

    /// Tokens that a sequence can have at most.
    fn max_position_embeddings(&self) -> usize;

    /// Blocks of the KV cache.
    fn kv_cache_size(&self) -> KvCacheSize;

    /// Runs the step: makes its copies, then stores its keys and values and computes its tokens.
    ///
    /// Shapes: returns `[num_tokens, hidden_size]`, in whatever form [`Self::compute_logits`] takes.
    ///
    /// # Errors
    /// If the model can't compute it. The engine then fails the requests of the step, and gives their blocks to others.
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Tensor>;

    /// The logits of some tokens of the step that [`Self::forward`] ran last.
    ///
    /// Shapes: `rows` are tokens of the batch; returns `[rows.len(), vocab_size]`. Dtypes: F32, contiguous, on the CPU.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn compute_logits(&mut self, hidden_states: &Tensor, rows: &[u32]) -> Result<Tensor>;
}

/// The tokens of one step, packed: sequence after sequence.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Blocks to copy before anything is written.
    pub copies: &'a [BlockCopy],
    /// The tokens.
    pub token_ids: &'a [TokenId],
    /// The position of each token in its sequence.
    pub positions: &'a [usize],
    /// Which tokens are whose, and where their keys and values go.
    pub sequences: &'a [Sequence<'a>],
    /// Whose they are, one for each of `sequences`.
    pub sequence_ids: &'a [SequenceId],
}

/// Qwen3 over a [`PagedCache`].
#[derive(Debug)]
pub struct PagedQwen3 {
    qwen3: Qwen3ForCausalLM,
    cache: PagedCache,
    size: KvCacheSize,
}

impl PagedQwen3 {
    /// Gives `qwen3` a KV cache of `size` whose keys and values are rounded to `dtype`, F32 or BF16.
    ///
    /// # Errors
    /// [`Error::KvCacheMemory`](crate::Error::KvCacheMemory) if the system refuses the memory.
    pub fn new(qwen3: Qwen3ForCausalLM, dtype: DType, size: KvCacheSize) -> Result<Self> {
        let cache = PagedCache::new(qwen3.model(), dtype, &size)?;
        Ok(Self { qwen3, cache, size })
    }

    /// The model.
    pub fn qwen3(&self) -> &Qwen3ForCausalLM {
        &self.qwen3
    }

    /// The model, which gives the KV cache up.
    pub fn into_qwen3(self) -> Qwen3ForCausalLM {
        self.qwen3
    }
}

impl Model for PagedQwen3 {
    fn vocab_size(&self) -> usize {
        self.qwen3.config().vocab_size
    }

    fn max_position_embeddings(&self) -> usize {
        self.qwen3.config().max_position_embeddings
    }

    fn kv_cache_size(&self) -> KvCacheSize {
        self.size
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<Tensor> {
        self.cache.copy_blocks(batch.copies)?;
        let input_ids = Tensor::new(batch.token_ids, self.qwen3.device())?; // [num_tokens]
        let mut attention = self.cache.attention(batch.sequences);
        Ok(self.qwen3.model().forward_packed(&input_ids, batch.positions, &mut attention)?)
    }

    fn compute_logits(&mut self, hidden_states: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let rows = Tensor::new(rows, hidden_states.device())?;
        let hidden_states = hidden_states.index_select(&rows, 0)?; // [rows.len(), hidden_size]
        let logits = self.qwen3.compute_logits(&hidden_states)?; // [rows.len(), vocab_size]
        Ok(logits.to_device(&Device::Cpu)?)
    }
}
