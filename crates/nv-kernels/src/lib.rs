//! CPU kernels for Qwen3 over plain slices.
//!
//! Slices in, slices out: no tensors, no checkpoints, no scheduling. [`Kernels`] is the table of one
//! instruction-set tier ([`Isa`]), chosen at run time; [`Pool`] runs their parallel regions.
//!
//! An output's bits depend on its own inputs and on the tier: not on what else is computed in the same call, not
//! on the number of threads. Those of [`Kernels::portable`] don't depend on the tier either; nor do those of linear layers over
//! integers ([`Format::is_portable`]).
//!
//! ```
//! use nv_kernels::{Kernels, Linear, Matrix, Pool, Precision, Scratch};
//!
//! let (kernels, pool) = (Kernels::best()?, Pool::new(2)?);
//! let weight = [0.5f32; 3 * 64]; // [out_features, in_features]
//! let (x, mut out) = ([1.0f32; 64], Vec::new());
//! let mut outputs = [Linear { weight: Matrix::f32(&weight, 64), out: &mut out }];
//! kernels.linear(&pool, &x, Precision::F32, &mut Scratch::default(), &mut outputs);
//! assert_eq!(out, [32.0; 3]);
//! # Ok::<(), nv_kernels::Error>(())
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
// Only of what users run: checks for debugging take registers.
mod caches;
#[cfg(all(test, target_arch = "x86_64", not(debug_assertions)))]
mod disassembly;
mod dispatch;
mod elementwise;
mod error;
mod formats;
mod isa;
mod kernels;
mod kv;
mod linear;
mod matrix;
mod pool;
mod prefetch;
mod quantize;
mod results;
mod roofline;
mod rows;
mod scalar;
mod table;
mod tier;

pub use error::{Error, Result};
pub use formats::Format;
pub use isa::Isa;
pub use kv::{KvLayout, KvMut, Sequence};
pub use linear::kernel::Precision;
pub use linear::{Linear, Scratch};
pub use matrix::{Matrix, MatrixError};
pub use pool::{MAX_THREADS, Pool};
pub use quantize::{PackedError, QuantizeError, check_packed, quantize};
pub use roofline::{int8_product_peak, product_peak, read_bandwidth};
pub use rows::NormAndRotate;
pub use table::Kernels;
