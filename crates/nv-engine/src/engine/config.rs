//! What an engine may use, and how it is to work.

use candle_core::DType;
use nv_qwen3::Qwen3ForCausalLM;

use crate::error::{Error, Result};
use crate::kv_cache_size::{KvCacheMemory, KvCacheSize};
use crate::prompt_lookup::PromptLookup;
use crate::scheduler::{DEFAULT_BLOCK_SIZE, DEFAULT_MAX_NUM_BATCHED_TOKENS, SchedulerConfig};

/// Settings of an [`Engine`](crate::Engine). The fields of the scheduler are explained at [`SchedulerConfig`].
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Memory of the KV cache. Default: 0.4 of what is free.
    pub kv_cache_memory: KvCacheMemory,
    /// What keys and values are rounded to, F32 or BF16; by default what the model computes in.
    pub kv_dtype: Option<DType>,
    /// Tokens a block, a multiple of 8. Default 32: smaller ones share more of equal beginnings, larger ones attend faster.
    pub block_size: usize,
    /// Tokens that one step computes at most. Default 512: more make others wait longer for their next token, fewer compute
    /// prompts slower.
    pub max_num_batched_tokens: usize,
    /// Sequences that run at once at most. Default 64.
    pub max_num_seqs: usize,
    /// Tokens that a sequence has at most; by default as many as the model knows positions. More are refused.
    pub max_model_len: Option<usize>,
    /// Whether requests share the keys and values of equal beginnings. Default true.
    pub enable_prefix_caching: bool,
    /// Tokens that are guessed ahead in each step, by prompt lookup; 0, the default, for none.
    pub num_speculative_tokens: usize,
    /// Tokens of the shortest ending of a text that is looked up in it for a guess. Default 2.
    pub min_ngram_size: usize,
    /// Tokens of the longest. Default 4.
    pub max_ngram_size: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            kv_cache_memory: KvCacheMemory::Share(0.4),
            kv_dtype: None,
            block_size: DEFAULT_BLOCK_SIZE,
            max_num_batched_tokens: DEFAULT_MAX_NUM_BATCHED_TOKENS,
            max_num_seqs: 64,
            max_model_len: None,
            enable_prefix_caching: true,
            num_speculative_tokens: 0,
            min_ngram_size: 2,
            max_ngram_size: 4,
        }
    }
}

impl EngineConfig {
    /// What keys and values of `qwen3` are rounded to.
    pub fn kv_dtype_of(&self, qwen3: &Qwen3ForCausalLM) -> DType {
        self.kv_dtype.unwrap_or(qwen3.model().dtype())
    }

    /// The KV cache that `qwen3` would get.
    ///
    /// # Errors
    /// As [`KvCacheSize::new`].
    pub fn kv_cache_size(&self, qwen3: &Qwen3ForCausalLM) -> Result<KvCacheSize> {
        let dtype = self.kv_dtype_of(qwen3);
        KvCacheSize::new(qwen3.config(), dtype, self.block_size, self.kv_cache_memory)
    }

    /// The limits of a scheduler for a model of so many positions with a KV cache of `size`.
    ///
    /// # Errors
    /// [`Error::Setting`] if sequences are to be longer than the model knows positions.
    pub(super) fn scheduler(
        &self,
        size: KvCacheSize,
        max_positions: usize,
    ) -> Result<SchedulerConfig> {
        let max_model_len = self.max_model_len.unwrap_or(max_positions);
        if max_model_len > max_positions {
            let expected = format!(
                "at most the model's {max_positions} positions (rope_scaling or max_position_embeddings in its \
                 config.json make more)"
            );
            let setting = "max_model_len";
            return Err(Error::Setting { setting, expected, found: max_model_len });
        }
        Ok(SchedulerConfig {
            block_size: size.block_size,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_num_seqs: self.max_num_seqs,
            enable_prefix_caching: self.enable_prefix_caching,
            ..SchedulerConfig::new(size.num_blocks, max_model_len)
        })
    }

    /// What guesses the tokens of one sequence; `None` if nothing is to be guessed.
    pub(super) fn prompt_lookup(&self) -> Result<Option<PromptLookup>> {
        if self.num_speculative_tokens == 0 {
            return Ok(None);
        }
        let Self { min_ngram_size, max_ngram_size, num_speculative_tokens, .. } = *self;
        PromptLookup::new(min_ngram_size, max_ngram_size, num_speculative_tokens).map(Some)
    }
}
