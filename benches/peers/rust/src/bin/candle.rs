//! Qwen3 of candle-transformers, the way its example runs it: weights mapped and converted, prompt whole, then token by token.
//!
//! It has no scheduler: many requests are one batch, which takes them to be equally long.

use std::fs;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3::{Config, ModelForCausalLM};
use nv_peers::{Clock, Load, Precision, Result, Worker, serve};

struct Candle(ModelForCausalLM);

impl Worker for Candle {
    fn load(load: &Load) -> Result<Self> {
        // It counts threads itself, once.
        let threads = candle_core::utils::get_num_threads();
        if threads != load.threads {
            return Err(
                format!("RAYON_NUM_THREADS: expected {}, found {threads}", load.threads).into()
            );
        }
        let config: Config = serde_json::from_slice(&fs::read(load.model.join("config.json"))?)?;
        let dtype = match load.dtype {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::Q8 | Precision::Q4 => {
                return Err(format!("dtype: expected f32 or bf16, found {:?}", load.dtype).into());
            }
        };
        let weights = [load.model.join("model.safetensors")];
        // SAFETY: nobody writes to the checkpoint while engines are compared.
        let vb = unsafe { VarBuilder::from_mmaped_safetensors(&weights, dtype, &Device::Cpu) }?;
        Ok(Self(ModelForCausalLM::new(&config, vb)?))
    }

    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        max_tokens: usize,
        clock: &mut Clock,
    ) -> Result<Vec<Vec<u32>>> {
        let len = prompts.first().ok_or("no prompts")?.len();
        self.0.clear_kv_cache();
        let mut input = Tensor::from_vec(prompts.concat(), (prompts.len(), len), &Device::Cpu)?; // [batch, len]
        let mut token_ids = vec![Vec::with_capacity(max_tokens); prompts.len()];
        let mut position = 0;
        for step in 0..max_tokens {
            let logits = self.0.forward(&input, position)?; // [batch, 1, vocab_size]
            let next = logits.argmax(D::Minus1)?; // [batch, 1]
            clock.token();
            for (ids, next) in token_ids.iter_mut().zip(next.to_vec2::<u32>()?) {
                ids.extend(next);
            }
            position = len + step;
            input = next;
        }
        self.0.clear_kv_cache();
        Ok(token_ids)
    }
}

fn main() -> Result<()> {
    serve::<Candle>()
}
