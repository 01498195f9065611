//! The limits that a scheduler keeps.

use crate::error::{Error, Result};

/// Tokens a block: smaller ones share more of equal beginnings, larger ones attend faster.
pub(crate) const DEFAULT_BLOCK_SIZE: usize = 32;

/// Tokens a step: enough for the kernels to be at their best, few enough that those who wait for their next token don't
/// wait long for another's prompt.
pub(crate) const DEFAULT_MAX_NUM_BATCHED_TOKENS: usize = 512;

/// What a scheduler may put into a step, and how many blocks it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens that one step computes at most, at least `max_num_seqs`, so that every running sequence can have one.
    pub max_num_batched_tokens: usize,
    /// Sequences that run at once at most.
    pub max_num_seqs: usize,
    /// Tokens that a sequence has at most, prompt and continuation together; what the blocks hold limits it too.
    pub max_model_len: usize,
    /// Blocks of the KV cache.
    pub num_blocks: u32,
    /// Tokens a block.
    pub block_size: usize,
    /// Blocks that a new sequence leaves free, for those that run to grow into. Nothing is kept free for a sequence
    /// that runs alone.
    pub num_watermark_blocks: usize,
    /// How many later arrivals a request may overtake for each level that its priority is better. Within this reach
    /// priority decides, then arrival; beyond it arrival does, so that nothing waits for ever.
    pub priority_reach: u32,
    /// Whether sequences share the blocks of equal beginnings.
    pub enable_prefix_caching: bool,
}

impl SchedulerConfig {
    /// Usual limits for a model of `max_model_len` tokens and a KV cache of `num_blocks` blocks: 512 tokens and 64
    /// sequences a step, blocks of 32 tokens, a watermark of a hundredth, a reach of 4,096 arrivals, prefix caching.
    pub fn new(num_blocks: u32, max_model_len: usize) -> Self {
        Self {
            max_num_batched_tokens: DEFAULT_MAX_NUM_BATCHED_TOKENS,
            max_num_seqs: 64,
            max_model_len,
            num_blocks,
            block_size: DEFAULT_BLOCK_SIZE,
            num_watermark_blocks: num_blocks as usize / 100,
            priority_reach: 4096,
            enable_prefix_caching: true,
        }
    }

    /// Tokens that all blocks hold together.
    pub fn num_cache_tokens(&self) -> usize {
        (self.num_blocks as usize).saturating_mul(self.block_size)
    }

    pub(super) fn check(&self) -> Result<()> {
        let at_least = |setting, found: usize, min: usize, why: &str| {
            let expected = format!("at least {min}{why}");
            let is_right = found >= min;
            is_right.then_some(()).ok_or(Error::Setting { setting, expected, found })
        };
        at_least("max_num_seqs", self.max_num_seqs, 1, "")?;
        at_least(
            "max_num_batched_tokens",
            self.max_num_batched_tokens,
            self.max_num_seqs,
            " (max_num_seqs)",
        )?;
        at_least("max_model_len", self.max_model_len, 2, " (a prompt and what follows it)")?;
        at_least("block_size", self.block_size, 1, "")?;
        let min_blocks = 2_usize.div_ceil(self.block_size);
        let found = self.num_blocks as usize;
        at_least("num_blocks", found, min_blocks, " (a sequence of two tokens)")?;
        if self.num_blocks == u32::MAX {
            let expected = format!("fewer than {}", u32::MAX);
            return Err(Error::Setting { setting: "num_blocks", expected, found });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let check = |change: fn(&mut SchedulerConfig), expected: &str| {
            let mut config = SchedulerConfig::new(100, 1000);
            config.check().unwrap();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().to_string(), expected);
        };
        check(|config| config.max_num_seqs = 0, "max_num_seqs: expected at least 1, found 0");
        check(
            |config| config.max_num_batched_tokens = 63,
            "max_num_batched_tokens: expected at least 64 (max_num_seqs), found 63",
        );
        check(
            |config| config.max_model_len = 1,
            "max_model_len: expected at least 2 (a prompt and what follows it), found 1",
        );
        check(|config| config.block_size = 0, "block_size: expected at least 1, found 0");
        check(
            |config| config.num_blocks = 0,
            "num_blocks: expected at least 1 (a sequence of two tokens), found 0",
        );
        check(
            |config| config.num_blocks = u32::MAX,
            "num_blocks: expected fewer than 4294967295, found 4294967295",
        );
    }
}
