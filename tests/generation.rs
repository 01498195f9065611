//! Text in, text out, on the demo checkpoint.

use std::sync::Arc;

use candle_core::{DType, Device};
use nv_config::load_config;
use nv_engine::{Engine, EngineConfig, FinishReason, KvCacheMemory, Request, SamplingParams};
use nv_qwen3::Qwen3ForCausalLM;
use nv_text::Tokenizer;
use nv_weights::{Checkpoint, ModelFiles};
use xtask::cases::CASES;
use xtask::reference::Reference;

#[test]
fn the_greedy_text_of_the_demo_is_that_of_transformers() {
    let files = ModelFiles::from_dir(xtask::root().join("assets/demo")).unwrap();
    let tokenizer = Tokenizer::from_dir(&files.dir).unwrap();
    let config = load_config(&files.config).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&files.weights).unwrap());
    let model =
        Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, DType::F32, &Device::Cpu).unwrap();
    let case = CASES.iter().find(|case| case.name == "demo").unwrap();
    let (prompt, expected) = Reference::read(&case.reference_path()).unwrap().greedy.unwrap();

    let params = SamplingParams::default().with_max_tokens(expected.len()).unwrap();
    let kv_cache_memory = KvCacheMemory::Tokens(prompt.len() + expected.len());
    let config = EngineConfig { kv_cache_memory, ..EngineConfig::default() };
    let mut engine = Engine::new(model, config).unwrap();
    engine.add_request(Request::new(prompt, params)).unwrap();
    let mut stream = tokenizer.stream(false);
    let (mut token_ids, mut text, mut finished) = (Vec::new(), String::new(), None);
    while engine.has_unfinished_requests() {
        for output in engine.step() {
            for &token_id in &output.token_ids {
                text += stream.push(token_id);
            }
            token_ids.extend(output.token_ids);
            finished = output.finished;
        }
    }
    text += &stream.finish();
    assert_eq!(token_ids, expected);
    assert_eq!(finished.unwrap().unwrap(), FinishReason::Length);
    assert_eq!(text, tokenizer.decode(&expected, false));
}
