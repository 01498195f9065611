//! Which matrices of a checkpoint the CPU kernels cannot read where the file is mapped, and why.

use std::collections::BTreeSet;
use std::fmt;

use candle_core::DType;
use nv_config::Qwen3Config;
use nv_weights::{Checkpoint, Dtype, TensorView};

use crate::load::sources_in;

/// A matrix of which a model on the CPU holds a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedWeight {
    /// The tensor's name.
    pub name: String,
    /// Why the kernels cannot read it in place.
    pub reason: CopyReason,
    /// The size of the copy, in bytes.
    pub num_bytes: usize,
}

/// Why a matrix is not read where its file is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyReason {
    /// It is stored in another dtype than bfloat16.
    Dtype(Dtype),
    /// It is bfloat16 at an odd address.
    Misaligned,
}

impl CopyReason {
    /// Why `tensor` has to be copied; `None` if the kernels can read it where it is.
    pub(crate) fn of(tensor: &TensorView<'_>) -> Option<Self> {
        match tensor.dtype() {
            Dtype::BF16 => tensor.as_bf16().is_err().then_some(Self::Misaligned),
            other => Some(Self::Dtype(other)),
        }
    }
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dtype(dtype) => write!(f, "stored in {dtype:?}"),
            Self::Misaligned => f.write_str("stored at an odd address"),
        }
    }
}

/// The matrices that a model on the CPU copies from `checkpoint` to compute in `dtype`, in the order of the graph.
///
/// Every other matrix is read where the checkpoint maps it. Norm weights and biases, some kilobytes, are always copied.
/// Tensors that `checkpoint` lacks are left out. No weight is read, but an `lm_head.weight` that is copied unless it is equal to
/// the embedding.
pub fn copied_weights(
    config: &Qwen3Config,
    checkpoint: &Checkpoint,
    dtype: DType,
) -> Vec<CopiedWeight> {
    let sources = sources_in(config, checkpoint, |view| CopyReason::of(view).is_some());
    let mut names = BTreeSet::new();
    let copied =
        sources.into_iter().filter(|source| source.shape.len() == 2).filter_map(|source| {
            let tensor = checkpoint.get(&source.stored_as)?;
            let reason = CopyReason::of(&tensor)?;
            let num_bytes = source.shape.iter().product::<usize>() * dtype.size_in_bytes();
            let name = tensor.name();
            names.insert(name).then(|| CopiedWeight { name: name.to_owned(), reason, num_bytes })
        });
    copied.collect()
}
