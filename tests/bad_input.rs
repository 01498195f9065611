//! What a caller may hand in wrongly is an error that says so, in every tier and dtype.

use std::sync::Arc;

use candle_core::{DType, Device};
use nv_config::load_config;
use nv_engine::{Engine, EngineConfig, KvCacheMemory, Request, SamplingParams};
use nv_kernels::{Isa, Kernels, MAX_THREADS};
use nv_qwen3::{Cpu, Qwen3ForCausalLM, Result};
use nv_weights::{Checkpoint, ModelFiles, load_safetensors};
use xtask::verify::tiers;

use crate::copies::{demo_with_header, demo_with_nan};

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];
const PROMPT: [u32; 5] = [100, 200, 300, 400, 500];

fn load(files: &ModelFiles, isa: Isa, dtype: DType) -> Result<Qwen3ForCausalLM> {
    let config = load_config(&files.config).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&files.weights).unwrap());
    let cpu = Cpu::with_kernels(Kernels::for_isa(isa).unwrap(), 2)?;
    Qwen3ForCausalLM::from_checkpoint_on(&config, &checkpoint, dtype, cpu)
}

fn engine(files: &ModelFiles, isa: Isa, dtype: DType) -> Engine {
    let kv_cache_memory = KvCacheMemory::Tokens(64);
    let config = EngineConfig { kv_cache_memory, ..EngineConfig::default() };
    Engine::new(load(files, isa, dtype).unwrap(), config).unwrap()
}

/// The error that a generation ends with.
fn error(engine: &mut Engine, params: SamplingParams) -> String {
    let generation = engine.generate(vec![Request::new(PROMPT.to_vec(), params)]).remove(0);
    generation.unwrap_err().to_string()
}

/// No maximum, exponential or rounding on the way may swallow it.
#[test]
fn a_nan_in_any_kind_of_weight_ends_generation() {
    for tensor in [
        "input_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
        "self_attn.q_norm.weight",
        "self_attn.k_norm.weight",
        "post_attention_layernorm.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    ] {
        let (_dir, files) = demo_with_nan(&format!("model.layers.2.{tensor}"), 3);
        for isa in tiers() {
            for dtype in DTYPES {
                let mut engine = engine(&files, isa, dtype);
                let greedy = SamplingParams::default();
                assert_eq!(
                    error(&mut engine, greedy),
                    "the logit of token 0 is NaN: expected a finite number or -inf",
                    "{tensor}, {isa}, {dtype:?}"
                );
            }
        }
    }
}

#[test]
fn a_nan_in_the_embedding_of_another_token_names_that_token() {
    let token_id = 77;
    let (_dir, files) = demo_with_nan("model.embed_tokens.weight", token_id * 256);
    for isa in tiers() {
        for dtype in DTYPES {
            let mut engine = engine(&files, isa, dtype);
            let warm = SamplingParams::default().with_temperature(0.8).unwrap();
            for params in [SamplingParams::default(), warm.clone(), warm.with_top_k(1)] {
                assert_eq!(
                    error(&mut engine, params),
                    "the logit of token 77 is NaN: expected a finite number or -inf",
                    "{isa}, {dtype:?}"
                );
            }
        }
    }
}

#[test]
fn weights_of_a_dtype_that_no_model_has_are_refused() {
    for tensor in ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"] {
        let from = format!(r#""{tensor}":{{"dtype":"BF16""#);
        let (_dir, files) = demo_with_header(&from, &from.replace(r#""BF16""#, r#""I16" "#));
        let config = load_config(&files.config).unwrap();
        for dtype in DTYPES {
            assert_eq!(
                load(&files, Isa::Scalar, dtype).unwrap_err().to_string(),
                format!(
                    "the checkpoint does not match its config:\
                     \n  1 of another dtype than BF16, F16, F32 and F64: `{tensor}` (I16)"
                )
            );
            let vb = load_safetensors(&files.weights, dtype, &Device::Cpu).unwrap();
            // With RUST_BACKTRACE candle appends a backtrace.
            let error = Qwen3ForCausalLM::new(&config, vb).unwrap_err().to_string();
            let expected = format!(
                "{}: tensor `{tensor}`: dtype I16 is not supported; use BF16, F16, F32 or F64 weights",
                files.weights[0].display()
            );
            assert_eq!(error.lines().next(), Some(&*expected));
        }
    }
}

#[test]
fn weights_of_another_shape_are_refused() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let from = format!(r#""{name}":{{"dtype":"BF16","shape":[480,256]"#);
    let (_dir, files) = demo_with_header(&from, &from.replace("480,256", "256,480"));
    let expected = format!(
        "the checkpoint does not match its config:\
         \n  1 of another shape: `{name}` (expected [480, 256], found [256, 480])"
    );
    let config = load_config(&files.config).unwrap();
    for dtype in DTYPES {
        assert_eq!(load(&files, Isa::Scalar, dtype).unwrap_err().to_string(), expected);
        let vb = load_safetensors(&files.weights, dtype, &Device::Cpu).unwrap();
        assert_eq!(Qwen3ForCausalLM::new(&config, vb).unwrap_err().to_string(), expected);
    }
}

#[test]
fn senseless_numbers_of_threads_are_refused() {
    for threads in [0, MAX_THREADS + 1, 10_000, usize::MAX] {
        assert_eq!(
            Cpu::new(threads).unwrap_err().to_string(),
            format!("threads: expected 1 to 1024, found {threads}")
        );
    }
    assert_eq!(Cpu::new(1).unwrap().pool().threads(), 1);
}
