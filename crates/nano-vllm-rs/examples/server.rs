//! The OpenAI API in a program of one's own: `cargo run --release -p nano-vllm-rs --example server -- FOLDER`.
#![expect(clippy::print_stdout, reason = "this is what the example is for")]

use std::error::Error;
use std::sync::Arc;

use nano_vllm_rs::config::{GenerationConfig, load_config};
use nano_vllm_rs::engine::{Engine, EngineConfig};
use nano_vllm_rs::model::{DType, Device, Qwen3ForCausalLM};
use nano_vllm_rs::server::{ServedModel, Server, ServerConfig, run};
use nano_vllm_rs::text::{ChatTemplate, Tokenizer};
use nano_vllm_rs::weights::{Checkpoint, ModelFiles};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: server FOLDER")?;
    let files = ModelFiles::from_dir(dir)?;
    let config = load_config(&files.config)?;
    let checkpoint = Arc::new(Checkpoint::open(&files.weights)?);
    let model = Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, DType::BF16, &Device::Cpu)?;

    let engine = Engine::new(model, EngineConfig { max_num_seqs: 16, ..EngineConfig::default() })?;
    let recommended = GenerationConfig::of_model(files.generation_config.as_deref(), &config)?;
    let served = ServedModel {
        tokenizer: Tokenizer::from_dir(&files.dir)?,
        chat_template: ChatTemplate::from_dir(&files.dir)?,
        generation_config: recommended,
    };
    let server = Server::new(engine, served, ServerConfig::new("my-model"))?;
    let outcome = run(server, "127.0.0.1", 8000, |address| println!("http://{address}/v1"))?;
    println!("{outcome:?}");
    Ok(())
}
