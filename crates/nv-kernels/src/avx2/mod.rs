//! AVX2 with FMA: 8 lanes of f32, bfloat16 widened in registers.

mod dot;
mod outer;

pub(crate) use dot::{f32_products, linear_bf16_f32, linear_f32};
pub(crate) use outer::{outer_bf16_f32, outer_f32};
