//! `Generator` on a real model: which tokens, and why it ends.

use std::sync::atomic::{AtomicBool, Ordering};

use nano_vllm_rs::engine::{FinishReason, Generator, SamplingParams};
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

fn prompt(num_tokens: usize) -> Vec<u32> {
    (0..2000).cycle().step_by(37).take(num_tokens).collect()
}

/// Generates to the end.
fn generate(
    model: &mut Qwen3ForCausalLM,
    prompt: Vec<u32>,
    params: SamplingParams,
) -> (Vec<u32>, FinishReason) {
    let mut generator = Generator::new(model, prompt, params).unwrap();
    let token_ids: Vec<u32> = generator.by_ref().map(Result::unwrap).collect();
    assert_eq!(generator.token_ids(), token_ids);
    assert!(generator.next().is_none());
    (token_ids, generator.finish_reason().unwrap())
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let (prompt, expected) = greedy_reference();
    let params = SamplingParams::default().with_max_tokens(expected.len()).unwrap();
    let (token_ids, finish_reason) = generate(&mut model(), prompt, params);
    assert_eq!(token_ids, expected);
    assert_eq!(finish_reason, FinishReason::Length);
}

#[test]
fn a_stop_token_ends_the_text_and_is_no_part_of_it() {
    let (prompt, expected) = greedy_reference();
    let token_id = expected[20];
    let first = expected.iter().position(|id| *id == token_id).unwrap();
    let params = SamplingParams::default().with_stop_token_ids(vec![token_id]);
    let (token_ids, finish_reason) = generate(&mut model(), prompt, params);
    assert_eq!(token_ids, expected[..first]);
    assert_eq!(finish_reason, FinishReason::Stop { token_id });
}

#[test]
fn prompt_and_continuation_fill_the_context_and_no_more() {
    let mut model = model();
    for num_tokens in [CONTEXT - 1, CONTEXT - 5] {
        let (token_ids, finish_reason) =
            generate(&mut model, prompt(num_tokens), SamplingParams::default());
        assert_eq!(token_ids.len(), CONTEXT - num_tokens);
        assert_eq!(finish_reason, FinishReason::ContextFull);
    }
}

#[test]
fn a_prompt_that_comes_in_chunks_is_one_prompt() {
    let mut model = model();
    let prompt = prompt(CONTEXT - 100);
    let input_ids = Tensor::new(prompt.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = model.forward(&input_ids, 0).unwrap().squeeze(0).unwrap();
    let expected = logits.argmax(0).unwrap().to_scalar::<u32>().unwrap();
    let params = SamplingParams::default().with_max_tokens(1).unwrap();
    assert_eq!(generate(&mut model, prompt, params), (vec![expected], FinishReason::Length));
}

#[test]
fn a_raised_flag_ends_the_text_before_the_next_token() {
    let mut model = model();
    let flag = AtomicBool::new(false);
    let mut generator = Generator::new(&mut model, prompt(3), SamplingParams::default())
        .unwrap()
        .with_cancel_flag(&flag);
    assert!(generator.by_ref().take(2).all(|token_id| token_id.is_ok()));
    flag.store(true, Ordering::Relaxed);
    assert!(generator.next().is_none());
    assert_eq!(generator.finish_reason(), Some(FinishReason::Cancelled));
    assert_eq!(generator.num_computed_tokens(), 4);
}

#[test]
fn bad_prompts_are_refused() {
    let mut model = model();
    let mut check = |prompt, expected: &str| {
        let error = Generator::new(&mut model, prompt, SamplingParams::default()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(vec![], "the prompt is empty: expected at least one token");
    check(
        prompt(CONTEXT),
        "the prompt has 1024 tokens: expected fewer than the model's 1024 positions",
    );

    let params = SamplingParams::default();
    let mut generator = Generator::new(&mut model, vec![1, 2048], params).unwrap();
    let error = generator.next().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "input_ids: token id 2048 is outside the vocabulary of 2048");
    assert!(generator.next().is_none());
    assert_eq!(generator.finish_reason(), None);
}
