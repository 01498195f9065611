//! The most likely next tokens: `cargo run --release -p nv-qwen3 --example next_token -- FOLDER 785 6722 315`.
#![expect(clippy::print_stdout, reason = "this is what the example is for")]

use std::error::Error;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use nv_qwen3::Qwen3ForCausalLM;
use nv_weights::{Checkpoint, ModelFiles};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: next_token FOLDER TOKEN_ID...")?;
    let token_ids: Vec<u32> = args.map(|id| id.parse()).collect::<Result<_, _>>()?;

    let files = ModelFiles::from_dir(dir)?;
    let config = nv_config::load_config(&files.config)?;
    // Mapped, not read: the kernels compute from the file's pages.
    let checkpoint = Arc::new(Checkpoint::open(&files.weights)?);
    let mut model =
        Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, DType::BF16, &Device::Cpu)?;

    let input_ids = Tensor::new(&*token_ids, &Device::Cpu)?.unsqueeze(0)?; // [1, num_tokens]
    let logits = model.forward(&input_ids, 0)?.squeeze(0)?.to_vec1::<f32>()?; // [vocab_size]
    let mut ranked: Vec<(usize, f32)> = logits.into_iter().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (token_id, logit) in ranked.iter().take(5) {
        println!("{token_id:>6}  {logit:.3}");
    }
    Ok(())
}
