//! Which matrices of a checkpoint the CPU kernels cannot read where the file is mapped, and why.

use std::fmt;

use candle_core::DType;
use nv_config::Qwen3Config;
use nv_weights::{Checkpoint, Dtype, TensorView};

use crate::load::tensor_shapes;

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
/// Tensors that `checkpoint` lacks are left out. No weight is read.
pub fn copied_weights(
    config: &Qwen3Config,
    checkpoint: &Checkpoint,
    dtype: DType,
) -> Vec<CopiedWeight> {
    let matrices = tensor_shapes(config).into_iter().filter(|(_, shape)| shape.len() == 2);
    let copied = matrices.filter_map(|(name, shape)| {
        let reason = CopyReason::of(&checkpoint.get(&name)?)?;
        let num_bytes = shape.iter().product::<usize>() * dtype.size_in_bytes();
        Some(CopiedWeight { name, reason, num_bytes })
    });
    copied.collect()
}
