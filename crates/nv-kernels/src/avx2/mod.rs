//! AVX2 with FMA: 8 lanes of f32, bfloat16 widened in registers.

mod dot;

pub(crate) use dot::{f32_products, linear_bf16_f32, linear_f32};
