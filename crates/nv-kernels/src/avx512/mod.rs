//! AVX-512: 16 lanes of f32, or 32 bfloat16 a step where the machine multiplies them in hardware.

mod dot;
mod outer;

pub(crate) use dot::{bf16_products, f32_products, linear_bf16, linear_bf16_f32, linear_f32};
pub(crate) use outer::{outer_bf16, outer_bf16_f32, outer_f32};
