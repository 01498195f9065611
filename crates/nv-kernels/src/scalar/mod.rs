//! The specification: every kernel as a plain loop.

mod dot;

pub(crate) use dot::{PRODUCTS_A_STEP, f32_products, linear_bf16_f32, linear_f32};
