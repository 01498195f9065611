//! Text in, text out, on the demo checkpoint.

use std::sync::Arc;

use candle_core::{DType, Device};
use nv_config::load_config;
use nv_engine::{FinishReason, Generator, SamplingParams};
use nv_qwen3::Qwen3ForCausalLM;
use nv_text::Tokenizer;
use nv_weights::{Checkpoint, ModelFiles};
use xtask::cases::CASES;
use xtask::reference::Reference;

#[test]
fn the_greedy_text_of_the_demo_is_that_of_transformers() {
    let files = ModelFiles::from_dir(xtask::root().join("assets/demo")).unwrap();
    let tokenizer = Tokenizer::from_file(files.tokenizer.unwrap()).unwrap();
    let config = load_config(&files.config).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&files.weights).unwrap());
    let mut model =
        Qwen3ForCausalLM::from_checkpoint(&config, &checkpoint, DType::F32, &Device::Cpu).unwrap();
    let case = CASES.iter().find(|case| case.name == "demo").unwrap();
    let (prompt, expected) = Reference::read(&case.reference_path()).unwrap().greedy.unwrap();

    let params = SamplingParams::default().with_max_tokens(expected.len()).unwrap();
    let mut generator = Generator::new(&mut model, prompt, params).unwrap();
    let mut stream = tokenizer.stream(false);
    let mut text = String::new();
    for token_id in &mut generator {
        text += stream.push(token_id.unwrap());
    }
    text += &stream.finish();
    assert_eq!(generator.token_ids(), expected);
    assert_eq!(generator.finish_reason(), Some(FinishReason::Length));
    assert_eq!(text, tokenizer.decode(&expected, false));
}
