//! What the engine may use.

use anyhow::{Context, Result, ensure};
use nano_vllm_rs::engine::{EngineConfig, KvCacheMemory};
use nano_vllm_rs::model::{DType, Qwen3ForCausalLM};

use super::DtypeArg;

/// Settings of the engine that serves requests together. Names are vLLM's, where it has one.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Memory of the KV cache: bytes, such as 500MiB or 2GiB, or a share of what is free, such as 40% [default: 40%, or
    /// what the requests need if that is less and known].
    #[arg(long, value_name = "SIZE", value_parser = kv_cache_memory)]
    kv_cache_memory: Option<KvCacheMemory>,

    /// What keys and values are rounded to [default: what the model computes in].
    #[arg(long, alias = "kv-dtype")]
    kv_cache_dtype: Option<DtypeArg>,

    /// Run at most N sequences at once [default: 64].
    #[arg(long, value_name = "N")]
    max_num_seqs: Option<usize>,

    /// Compute at most N tokens in a step [default: 512].
    #[arg(long, value_name = "N")]
    max_num_batched_tokens: Option<usize>,

    /// Serve sequences of at most N tokens [default, and no more than: the model's positions].
    #[arg(long, value_name = "N")]
    max_model_len: Option<usize>,

    /// Tokens of a block of the KV cache, a multiple of 8 [default: 32].
    #[arg(long, value_name = "N")]
    block_size: Option<usize>,

    /// Compute equal beginnings of requests each time anew.
    #[arg(long)]
    no_enable_prefix_caching: bool,

    /// Guess N tokens ahead in each step, which changes no text [default: 0].
    #[arg(long, value_name = "N")]
    num_speculative_tokens: Option<usize>,
}

impl EngineArgs {
    /// `defaults` with all that is asked for; where nothing is said of memory, with what sequences of `lens` tokens take
    /// together, if more than one of them up to the default.
    pub(crate) fn config(
        &self,
        defaults: EngineConfig,
        qwen3: &Qwen3ForCausalLM,
        lens: impl Iterator<Item = usize>,
    ) -> EngineConfig {
        let config = self.change(defaults);
        if self.kv_cache_memory.is_some() {
            return config;
        }
        let block_size = config.block_size.max(1);
        let (mut num_sequences, mut num_tokens) = (0, block_size);
        for len in lens.map(|len| len.min(qwen3.config().max_position_embeddings)) {
            num_sequences += 1;
            num_tokens = len.next_multiple_of(block_size).saturating_add(num_tokens);
        }
        // Where the system doesn't say what is free, what is needed is asked for.
        match config.kv_cache_size(qwen3) {
            Ok(size) if num_sequences > 1 && size.num_tokens() < num_tokens => config,
            _ => EngineConfig { kv_cache_memory: KvCacheMemory::Tokens(num_tokens), ..config },
        }
    }

    /// `config` with all that is asked for.
    pub(crate) fn change(&self, config: EngineConfig) -> EngineConfig {
        let Self { max_num_seqs, max_num_batched_tokens, block_size, .. } = *self;
        EngineConfig {
            kv_cache_memory: self.kv_cache_memory.unwrap_or(config.kv_cache_memory),
            kv_dtype: self.kv_cache_dtype.map(DType::from).or(config.kv_dtype),
            max_num_seqs: max_num_seqs.unwrap_or(config.max_num_seqs),
            max_num_batched_tokens: max_num_batched_tokens.unwrap_or(config.max_num_batched_tokens),
            max_model_len: self.max_model_len.or(config.max_model_len),
            block_size: block_size.unwrap_or(config.block_size),
            enable_prefix_caching: config.enable_prefix_caching && !self.no_enable_prefix_caching,
            num_speculative_tokens: self
                .num_speculative_tokens
                .unwrap_or(config.num_speculative_tokens),
            ..config
        }
    }
}

impl From<DtypeArg> for DType {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Self::F32,
            DtypeArg::Bf16 => Self::BF16,
        }
    }
}

/// A number of bytes or a share.
pub(super) fn kv_cache_memory(text: &str) -> Result<KvCacheMemory> {
    let Some(percent) = text.strip_suffix('%') else {
        let wrong =
            "expected bytes, such as 500MiB or 2GiB, or a share of what is free, such as 40%";
        return Ok(KvCacheMemory::Bytes(bytes(text).context(wrong)?));
    };
    let percent: f64 = percent.parse().context("expected a share, such as 40%")?;
    ensure!(percent > 0.0 && percent <= 100.0, "expected a share above 0 % and up to 100 %");
    Ok(KvCacheMemory::Share(percent / 100.0))
}

/// A number of bytes, with a unit or without.
pub(super) fn bytes(text: &str) -> Result<usize> {
    const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let unit = UNITS.iter().find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, *bits)));
    let (number, bits) = unit.unwrap_or((text, 0));
    let number: usize =
        number.trim_end().parse().context("expected bytes, such as 500MiB or 2GiB")?;
    number.checked_mul(1 << bits).context("more bytes than any machine has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bytes_or_a_share() {
        let check = |text, expected| assert_eq!(kv_cache_memory(text).unwrap(), expected);
        check("4096", KvCacheMemory::Bytes(4096));
        check("3KiB", KvCacheMemory::Bytes(3072));
        check("2 GiB", KvCacheMemory::Bytes(2 << 30));
        check("25%", KvCacheMemory::Share(0.25));
        for wrong in ["", "GiB", "2GB", "0.5", "-1", "0%", "101%", "x%", "99999999999TiB"] {
            assert!(kv_cache_memory(wrong).is_err(), "{wrong}");
        }
    }
}
