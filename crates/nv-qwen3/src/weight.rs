//! A weight matrix as the graph holds it: in the mapped checkpoint, or as a candle tensor.

use candle_core::{CpuStorage, Storage, Tensor};
use nv_kernels::Matrix;
use nv_weights::SharedTensor;

use crate::copies::CopyReason;
use crate::error::Result;
use crate::ops::Elements;

/// A matrix `[out_features, in_features]`, row-major.
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    /// bfloat16 in a checkpoint, read in place by the CPU kernels.
    Mapped(SharedTensor),
    /// F32 or BF16 on the model's device.
    Tensor(Tensor),
}

/// A weight on the CPU, borrowed for one call.
pub(crate) enum WeightRef<'a> {
    Mapped(Matrix<'a>),
    Tensor { elements: Elements<'a>, in_features: usize },
}

impl Weight {
    /// The matrix in `tensor`, if the kernels can read it where it is: bfloat16 at an even address.
    pub(crate) fn mapped(tensor: SharedTensor) -> Option<Self> {
        CopyReason::of(&tensor.view()).is_none().then_some(Self::Mapped(tensor))
    }

    /// Borrows a weight that is on the CPU.
    pub(crate) fn borrow(&self) -> Result<WeightRef<'_>> {
        Ok(match self {
            Self::Mapped(tensor) => {
                let view = tensor.view();
                WeightRef::Mapped(Matrix::bf16(view.as_bf16()?, view.shape()[1]))
            }
            Self::Tensor(tensor) => {
                WeightRef::Tensor { elements: Elements::of(tensor)?, in_features: tensor.dim(1)? }
            }
        })
    }

    /// The weight as a candle tensor.
    ///
    /// # Panics
    /// If it is mapped: only a model on the CPU maps its weights, and that one computes with kernels.
    pub(crate) fn tensor(&self) -> &Tensor {
        match self {
            Self::Tensor(tensor) => tensor,
            Self::Mapped(tensor) => panic!("`{}` is mapped, not a tensor", tensor.view().name()),
        }
    }
}

impl WeightRef<'_> {
    pub(crate) fn matrix(&self) -> Result<Matrix<'_>> {
        match self {
            Self::Mapped(matrix) => Ok(*matrix),
            Self::Tensor { elements, in_features } => Ok(match elements.storage() {
                Storage::Cpu(CpuStorage::BF16(_)) => {
                    Matrix::bf16(elements.as_slice()?, *in_features)
                }
                _ => Matrix::f32(elements.as_slice()?, *in_features),
            }),
        }
    }
}
