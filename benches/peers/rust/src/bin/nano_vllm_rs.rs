//! This engine, by its public facade: `Engine` over a paged KV cache.

use std::sync::Arc;

use nano_vllm_rs::engine::{Engine, EngineConfig, KvCacheMemory, Request, SamplingParams};
use nano_vllm_rs::model::{Cpu, DType, ModelFiles, Qwen3ForCausalLM, load_config};
use nano_vllm_rs::weights::Checkpoint;
use nv_peers::{Clock, Load, Precision, Result, Worker, serve};

struct NanoVllm(Engine);

impl Worker for NanoVllm {
    fn load(load: &Load) -> Result<Self> {
        let files = ModelFiles::from_dir(&load.model)?;
        let config = load_config(&files.config)?;
        let checkpoint = Arc::new(Checkpoint::open(&files.weights)?);
        let dtype = match load.dtype {
            Precision::F32 => DType::F32,
            // Of quantised weights: what keys and values are kept in.
            Precision::Bf16 | Precision::Q8 | Precision::Q4 => DType::BF16,
        };
        let cpu = Cpu::new(load.threads)?;
        let model = Qwen3ForCausalLM::from_checkpoint_on(&config, &checkpoint, dtype, cpu)?;
        let config = EngineConfig {
            kv_cache_memory: KvCacheMemory::Tokens(load.max_tokens),
            max_num_seqs: load.max_requests,
            // Nothing that was computed for one measurement serves another.
            enable_prefix_caching: false,
            ..EngineConfig::default()
        };
        Ok(Self(Engine::new(model, config)?))
    }

    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        max_tokens: usize,
        clock: &mut Clock,
    ) -> Result<Vec<Vec<u32>>> {
        let engine = &mut self.0;
        // Greedy, and no token ends a text.
        let params = SamplingParams::default().with_max_tokens(max_tokens)?;
        let mut ids = Vec::new();
        for prompt in prompts {
            ids.push(engine.add_request(Request::new(prompt.clone(), params.clone()))?);
        }
        let mut token_ids = vec![Vec::with_capacity(max_tokens); ids.len()];
        while engine.has_unfinished_requests() {
            for output in engine.step() {
                if !output.token_ids.is_empty() {
                    clock.token();
                }
                output.finished.transpose()?;
                let place = ids.iter().position(|&id| id == output.request_id);
                token_ids[place.ok_or("an output of no request")?].extend(output.token_ids);
            }
        }
        Ok(token_ids)
    }
}

fn main() -> Result<()> {
    serve::<NanoVllm>()
}
