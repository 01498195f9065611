//! `Engine` on a real model: which tokens, and why they end.

use nano_vllm_rs::engine::{
    Engine, EngineConfig, FinishReason, KvCacheMemory, Request, SamplingParams,
};
use nano_vllm_rs::model::{
    DType, Device, ModelFiles, Qwen3ForCausalLM, Tensor, load_config, load_safetensors,
};

use crate::{demo, greedy_reference};

/// Positions of the demo checkpoint.
const CONTEXT: usize = 1024;

fn model() -> Qwen3ForCausalLM {
    let files = ModelFiles::from_dir(demo()).unwrap();
    let config = load_config(&files.config).unwrap();
    assert_eq!(config.max_position_embeddings, CONTEXT);
    let vb = load_safetensors(&files.weights, DType::F32, &Device::Cpu).unwrap();
    Qwen3ForCausalLM::new(&config, vb).unwrap()
}

fn engine() -> Engine {
    let kv_cache_memory = KvCacheMemory::Tokens(2 * CONTEXT);
    Engine::new(model(), EngineConfig { kv_cache_memory, ..EngineConfig::default() }).unwrap()
}

fn prompt(num_tokens: usize) -> Vec<u32> {
    (0..2000).cycle().step_by(37).take(num_tokens).collect()
}

/// Generates to the end.
fn generate(
    engine: &mut Engine,
    prompt: Vec<u32>,
    params: SamplingParams,
) -> (Vec<u32>, FinishReason) {
    let generation = engine.generate(vec![Request::new(prompt, params)]).remove(0).unwrap();
    let completion = generation.completions.into_iter().next().unwrap();
    (completion.token_ids, completion.finish_reason)
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let (prompt, expected) = greedy_reference();
    let params = SamplingParams::default().with_max_tokens(expected.len()).unwrap();
    let (token_ids, finish_reason) = generate(&mut engine(), prompt, params);
    assert_eq!(token_ids, expected);
    assert_eq!(finish_reason, FinishReason::Length);
}

#[test]
fn a_stop_token_ends_the_text_and_is_no_part_of_it() {
    let (prompt, expected) = greedy_reference();
    let token_id = expected[20];
    let first = expected.iter().position(|id| *id == token_id).unwrap();
    let params = SamplingParams::default().with_stop_token_ids(vec![token_id]);
    let (token_ids, finish_reason) = generate(&mut engine(), prompt, params);
    assert_eq!(token_ids, expected[..first]);
    assert_eq!(finish_reason, FinishReason::Stop { token_id });
}

#[test]
fn prompt_and_continuation_fill_the_context_and_no_more() {
    let mut engine = engine();
    for num_tokens in [CONTEXT - 1, CONTEXT - 5] {
        let (token_ids, finish_reason) =
            generate(&mut engine, prompt(num_tokens), SamplingParams::default());
        assert_eq!(token_ids.len(), CONTEXT - num_tokens);
        assert_eq!(finish_reason, FinishReason::ContextFull);
    }
}

#[test]
fn the_token_after_a_prompt_is_the_models() {
    let mut model = model();
    let prompt = prompt(CONTEXT - 100);
    let input_ids = Tensor::new(prompt.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = model.forward(&input_ids, 0).unwrap().squeeze(0).unwrap();
    let expected = logits.argmax(0).unwrap().to_scalar::<u32>().unwrap();
    let params = SamplingParams::default().with_max_tokens(1).unwrap();
    assert_eq!(generate(&mut engine(), prompt, params), (vec![expected], FinishReason::Length));
}

#[test]
fn prompts_that_no_model_can_take_are_refused() {
    let mut engine = engine();
    let mut check = |prompt, expected: &str| {
        let error =
            engine.add_request(Request::new(prompt, SamplingParams::default())).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(vec![], "the prompt is empty: expected at least one token");
    check(
        prompt(CONTEXT),
        "the prompt has 1024 tokens: expected fewer than the model's 1024 positions",
    );
    check(vec![1, 2048], "token 2048 has no logit: expected an id below 2048");
}
