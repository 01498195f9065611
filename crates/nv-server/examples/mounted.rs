//! The OpenAI API below a path of an application of one's own: `cargo run --release -p nv-server --example mounted -- FOLDER`, or
//! without a folder, on the demo checkpoint.
//!
//! It asks itself and ends; `axum::serve(listener, application)` would serve it.
#![expect(clippy::print_stdout, reason = "this is what the example is for")]

use std::error::Error;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use axum::routing::get;
use candle_core::{DType, Device};
use nv_config::{GenerationConfig, load_config};
use nv_engine::{Engine, EngineConfig, KvCacheMemory};
use nv_qwen3::Qwen3ForCausalLM;
use nv_server::{ServedModel, Server, ServerConfig, router};
use nv_text::{ChatTemplate, Tokenizer};
use nv_weights::{Checkpoint, ModelFiles};
use serde_json::{Value, json};
use tower::ServiceExt;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| DEMO.to_owned());
    let server = server(ModelFiles::from_dir(dir)?)?;
    let application = Router::new()
        .route("/", get(|| async { "Ask below /llm." }))
        .nest("/llm", router(server.clone())?);

    let question = json!({"prompt": "In the beginning", "max_tokens": 16, "temperature": 0});
    let request = Request::post("/llm/v1/completions")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(question.to_string()))?;
    let response = application.oneshot(request).await?;
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await?;
    if !status.is_success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    let answer: Value = serde_json::from_slice(&body)?;
    println!("{status}: {}", answer["choices"][0]["text"]);

    // Requests end first, if there are any.
    server.shut_down().await;
    Ok(())
}

/// The model of a folder, with an engine that has memory for a few requests.
fn server(files: ModelFiles) -> Result<Server, Box<dyn Error>> {
    let config = load_config(&files.config)?;
    let checkpoint = Arc::new(Checkpoint::open(&files.weights)?);
    let model = Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, DType::BF16, &Device::Cpu)?;
    let engine_config = EngineConfig {
        max_num_seqs: 4,
        kv_cache_memory: KvCacheMemory::Tokens(4096),
        ..EngineConfig::default()
    };
    let recommended = GenerationConfig::of_model(files.generation_config.as_deref(), &config)?;
    let served = ServedModel {
        tokenizer: Tokenizer::from_dir(&files.dir)?,
        chat_template: ChatTemplate::from_dir(&files.dir)?,
        generation_config: recommended,
    };
    Ok(Server::new(Engine::new(model, engine_config)?, served, ServerConfig::new("my-model"))?)
}
