//! Qwen3 checkpoints as Hugging Face publishes them: found, checked, and read in place.
//!
//! - [`ModelFiles`] finds the files of a model in a folder.
//! - [`Checkpoint`] maps safetensors files and lends out their tensors, typed and shaped, without copying them.
//! - [`CheckpointWriter`] writes such files, a tensor at a time.
//! - [`load_safetensors`] gives the same tensors as a candle `VarBuilder`.
//! - With the feature `hub`, `download_model` fetches a model from the Hugging Face hub, or finds it in the local cache.
//!
//! Every file is taken as untrusted: an error names the file and the tensor, and nothing malformed panics.
//!
//! ```no_run
//! use nv_weights::{Checkpoint, ModelFiles};
//!
//! # fn main() -> nv_weights::Result<()> {
//! let files = ModelFiles::from_dir("Qwen3-0.6B")?;
//! let checkpoint = Checkpoint::open(&files.weights)?;
//! for tensor in checkpoint.tensors() {
//!     println!("{} {} {:?}", tensor.name(), tensor.dtype(), tensor.shape());
//! }
//! let embeddings = checkpoint.tensor("model.embed_tokens.weight")?.as_bf16()?;
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

#[cfg(target_endian = "big")]
compile_error!("safetensors data are little-endian and are read in place");

mod checkpoint;
#[cfg(all(test, any(target_os = "linux", all(unix, feature = "hub"))))]
mod child;
mod entries;
mod error;
mod files;
mod header;
#[cfg(feature = "hub")]
mod hub;
mod index;
mod mapping;
mod var_builder;
mod writer;

pub use checkpoint::{Checkpoint, CheckpointFile, SharedTensor, TensorView};
pub use error::{Error, Result};
pub use files::ModelFiles;
#[cfg(feature = "hub")]
pub use hub::{Hub, download_model};
pub use safetensors::Dtype;
pub use var_builder::load_safetensors;
pub use writer::{CheckpointWriter, NewTensor, Shards, WriteError};
