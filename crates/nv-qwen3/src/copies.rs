//! Which matrices of a checkpoint the CPU kernels cannot read where the file is mapped, and why.

use candle_core::DType;
use nv_config::Qwen3Config;
use nv_weights::Checkpoint;

use crate::sources::{CopyReason, copied_matrices};

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
    let copied = copied_matrices(config, checkpoint).into_iter().map(|(tensor, reason)| {
        let num_bytes = match reason {
            CopyReason::Packed { num_bytes, .. } => num_bytes,
            CopyReason::Dtype(_) | CopyReason::Misaligned => {
                tensor.spec.num_elements() * dtype.size_in_bytes()
            }
        };
        // The name that it is stored under.
        let name =
            checkpoint.get(&tensor.stored_as).map_or(tensor.stored_as, |view| view.name().into());
        CopiedWeight { name, reason, num_bytes }
    });
    copied.collect()
}
