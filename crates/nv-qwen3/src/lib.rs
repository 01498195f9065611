//! The Qwen3 model graph, from token ids to logits.
//!
//! [`Qwen3ForCausalLM`] is transformers' model of the same name: built from a checkpoint, called with token ids
//! and the position that they start at. It keeps a KV cache between calls, so that a prompt may come whole, in
//! chunks, or token by token.
//!
//! The graph runs over packed tokens and leaves keys and values to an [`AttentionCache`]; whoever batches
//! requests supplies one and calls [`Qwen3Model::forward_packed`].
//!
//! Activations, norms, softmax and sums are float32 in both modes. In BF16 the weights, the inputs of linear
//! layers and the KV cache are bfloat16; in F32 everything is float32.
//!
//! Matrices may be quantised: by [`Quantizer`] into a checkpoint of their own, or while a model is loaded
//! ([`LoadOptions::quantize`]). Then linear layers multiply integers, and on the CPU the logits are the same bits on every machine.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod attention;
mod cache;
mod copies;
mod decoder;
mod elements;
mod error;
mod linear;
mod load;
mod mlp;
mod model;
mod norm;
mod ops;
mod portability;
mod preset;
mod quantize;
mod rotary;
mod sources;
mod spec;
mod weight;

pub use cache::AttentionCache;
pub use copies::{CopiedWeight, copied_weights};
pub use elements::Elements;
pub use error::{Error, Misshapen, Result, TensorReport};
pub use load::{LoadedMatrix, check_tensors, config_warnings, packed_matrices};
pub use model::{LoadOptions, Qwen3ForCausalLM, Qwen3Model};
pub use ops::{Cpu, causal_attention};
pub use portability::{TierDependence, tier_dependences};
pub use preset::Preset;
pub use quantize::Quantizer;
pub use sources::{CopyReason, Located, PlainTensor, PlainTensors, ReadRow};
pub use spec::{Projection, Role, TensorSpec, tensor_shapes, tensor_specs};
