//! CPU kernels for Qwen3 over plain slices.
//!
//! Slices in, slices out: no tensors, no checkpoints, no scheduling. [`Kernels`] is the table of one
//! instruction-set tier ([`Isa`]), chosen at run time; [`Pool`] runs their parallel regions.
//!
//! An output's bits depend on its own inputs and on the tier: not on what else is computed in the same call, not
//! on the number of threads.
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

mod ahead;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
mod dispatch;
mod elementwise;
mod error;
mod isa;
mod kv;
mod limits;
mod linear;
mod outer;
mod panel;
mod pool;
mod rows;
mod scalar;

pub use dispatch::Kernels;
pub use error::{Error, Result};
pub use isa::Isa;
pub use kv::{KvLayout, KvMut, Sequence};
pub use limits::{product_peak, read_bandwidth};
pub use linear::{Linear, Precision, Scratch};
pub use panel::Matrix;
pub use pool::{MAX_THREADS, Pool};
pub use rows::NormAndRotate;
