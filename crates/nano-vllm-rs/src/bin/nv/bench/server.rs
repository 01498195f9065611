//! The engine under measurement: sequences that begin together and go on token by token.

use std::sync::atomic::AtomicBool;

use anyhow::Result;
use nano_vllm_rs::engine::{
    Engine, EngineConfig, KvCacheMemory, Request, RequestId, SamplingParams, TokenId,
};
use nano_vllm_rs::model::Qwen3ForCausalLM;

use super::patience::check;
use super::workload::Workload;

/// Prompt tokens that are computed at once: bounds the wait for Ctrl-C.
const PREFILL_CHUNK: usize = 256;

/// An engine and the sequences that it runs.
pub(super) struct Server {
    engine: Engine,
    vocab_size: usize,
    running: Vec<RequestId>,
}

impl Server {
    /// An engine whose KV cache holds every workload; what no workload writes to takes no memory.
    pub(super) fn new(qwen3: Qwen3ForCausalLM) -> Result<Self> {
        let vocab_size = qwen3.config().vocab_size;
        let config = EngineConfig::default();
        let num_tokens = Workload::ALL.map(|workload| {
            workload.num_sequences() * workload.max_len().next_multiple_of(config.block_size)
        });
        let config = EngineConfig {
            kv_cache_memory: KvCacheMemory::Tokens(num_tokens.into_iter().max().unwrap_or(0)),
            max_num_batched_tokens: PREFILL_CHUNK,
            // Prompts of one workload begin alike.
            enable_prefix_caching: false,
            ..config
        };
        Ok(Self { engine: Engine::new(qwen3, config)?, vocab_size, running: Vec::new() })
    }

    /// Gives up the sequences that run, and prepares greedy ones without an end, with prompts of `num_tokens`.
    pub(super) fn begin(&mut self, num_sequences: usize, num_tokens: usize) -> Result<()> {
        for id in self.running.drain(..) {
            self.engine.abort(id);
        }
        let prompt = token_ids(num_tokens, self.vocab_size);
        for _ in 0..num_sequences {
            let request = Request::new(prompt.clone(), SamplingParams::default());
            self.running.push(self.engine.add_request(request)?);
        }
        Ok(())
    }

    /// Steps until every sequence has a token more; ends with an error soon after `stop` is raised.
    pub(super) fn next(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut waiting = self.running.clone();
        while !waiting.is_empty() {
            check(stop)?;
            for output in self.engine.step() {
                // There is room for every token, and none that ends the text.
                output.finished.transpose()?;
                waiting.retain(|&id| id != output.request_id);
            }
        }
        Ok(())
    }
}

/// Ids from all over the vocabulary.
fn token_ids(len: usize, vocab_size: usize) -> Vec<TokenId> {
    // Vocabularies have fewer than 2^32 entries: ids are u32.
    #[expect(clippy::cast_possible_truncation, reason = "less than vocab_size")]
    (0..len).map(|i| (i.wrapping_mul(7919) % vocab_size) as TokenId).collect()
}
