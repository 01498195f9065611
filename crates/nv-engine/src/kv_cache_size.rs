//! How large a KV cache is: from a budget in bytes to blocks and to the longest request.

use std::fmt;

use candle_core::DType;
use nv_config::Qwen3Config;

use crate::error::{Error, Result};
use crate::free_memory;

/// How much memory keys and values may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KvCacheMemory {
    /// So many bytes.
    Bytes(usize),
    /// A part of the memory that is free, above 0 and up to 1.
    Share(f64),
    /// What so many tokens take, all sequences together.
    Tokens(usize),
}

/// Blocks of a KV cache and the memory that they take.
///
/// Prints as what a user wants to know at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCacheSize {
    /// Blocks.
    pub num_blocks: u32,
    /// Tokens a block.
    pub block_size: usize,
    /// Bytes that a block's keys and values take in all layers.
    pub block_bytes: usize,
}

impl KvCacheSize {
    /// The blocks of `block_size` tokens that fit into `memory` for a model of `config` whose keys and values are
    /// `dtype`.
    ///
    /// # Errors
    /// [`Error::Setting`] if `block_size` is no multiple of 8 or not even one block fits;
    /// [`Error::SamplingParameter`] if a share is no share; [`Error::UnknownMemory`] for a share where
    /// the system doesn't say what is free; [`Error::Model`] for a dtype other than F32 and BF16.
    pub fn new(
        config: &Qwen3Config,
        dtype: DType,
        block_size: usize,
        memory: KvCacheMemory,
    ) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(nv_qwen3::Error::DType { found: dtype }.into());
        }
        // What the kernels lay keys out in.
        if block_size == 0 || !block_size.is_multiple_of(8) {
            let expected = "a multiple of 8".to_owned();
            return Err(Error::Setting { setting: "block_size", expected, found: block_size });
        }
        // Keys and values.
        let token_bytes = 2
            * config.num_hidden_layers
            * config.num_key_value_heads
            * config.head_dim
            * dtype.size_in_bytes();
        let block_bytes = token_bytes.saturating_mul(block_size);
        let bytes = match memory {
            KvCacheMemory::Bytes(bytes) => bytes,
            KvCacheMemory::Share(share) => part(share, free_memory::available())?,
            KvCacheMemory::Tokens(tokens) => {
                tokens.div_ceil(block_size).saturating_mul(block_bytes)
            }
        };
        if bytes < block_bytes {
            let expected = format!("at least {block_bytes} bytes (a block of {block_size} tokens)");
            return Err(Error::Setting { setting: "kv_cache_memory", expected, found: bytes });
        }
        // Ids of blocks are u32, and one of them is kept for no block.
        let num_blocks = u32::try_from(bytes / block_bytes).unwrap_or(u32::MAX).min(u32::MAX - 1);
        Ok(Self { num_blocks, block_size, block_bytes })
    }

    /// Bytes that all blocks take.
    pub fn bytes(&self) -> usize {
        self.block_bytes.saturating_mul(self.num_blocks as usize)
    }

    /// Tokens that all blocks hold: no request is longer.
    pub fn num_tokens(&self) -> usize {
        self.block_size.saturating_mul(self.num_blocks as usize)
    }
}

impl fmt::Display for KvCacheSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "KV cache: {} blocks of {} tokens, {} tokens in {:.1} MiB",
            self.num_blocks,
            self.block_size,
            self.num_tokens(),
            self.bytes() as f64 / f64::from(1 << 20),
        )
    }
}

/// `share` of the bytes that are free.
fn part(share: f64, available: Option<usize>) -> Result<usize> {
    if !(share > 0.0 && share <= 1.0) {
        return crate::sampling_params::refuse(
            "kv_cache_memory",
            "a share above 0 and up to 1",
            share,
        );
    }
    let available = available.ok_or(Error::UnknownMemory)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most what is available"
    )]
    Ok((available as f64 * share) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Qwen3Config {
        serde_json::from_str(
            r#"{"model_type": "qwen3", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12,
                "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_budget_is_counted_in_whole_blocks_of_all_layers() {
        // 2 (keys and values) x 3 layers x 2 heads x 16 elements x 2 bytes x 8 tokens.
        let check = |dtype, memory, num_blocks, block_bytes| {
            let size = KvCacheSize::new(&config(), dtype, 8, memory).unwrap();
            assert_eq!((size.num_blocks, size.block_bytes), (num_blocks, block_bytes));
            assert_eq!(
                (size.num_tokens(), size.bytes()),
                (num_blocks as usize * 8, num_blocks as usize * block_bytes)
            );
        };
        check(DType::BF16, KvCacheMemory::Bytes(3072), 1, 3072);
        check(DType::BF16, KvCacheMemory::Bytes(3 * 3072 - 1), 2, 3072);
        check(DType::F32, KvCacheMemory::Bytes(3 * 6144), 3, 6144);
        check(DType::F32, KvCacheMemory::Tokens(17), 3, 6144);
        let size = KvCacheSize::new(&config(), DType::BF16, 8, KvCacheMemory::Tokens(2048));
        assert_eq!(
            size.unwrap().to_string(),
            "KV cache: 256 blocks of 8 tokens, 2048 tokens in 0.8 MiB"
        );
    }

    #[test]
    fn what_holds_no_block_is_refused_with_the_number_that_would_do() {
        let check = |dtype, memory, expected: &str| {
            let error = KvCacheSize::new(&config(), dtype, 8, memory).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(
            DType::BF16,
            KvCacheMemory::Bytes(3071),
            "kv_cache_memory: expected at least 3072 bytes (a block of 8 tokens), found 3071",
        );
        check(
            DType::BF16,
            KvCacheMemory::Share(1.5),
            "kv_cache_memory: expected a share above 0 and up to 1, found 1.5",
        );
        check(DType::F16, KvCacheMemory::Tokens(8), "dtype F16 is not supported; use F32 or BF16");
    }

    #[test]
    fn a_share_is_of_what_is_free() {
        assert_eq!(part(0.5, Some(1000)).unwrap(), 500);
        let error = part(0.5, None).unwrap_err();
        assert!(matches!(error, Error::UnknownMemory));
    }
}
