//! A weight matrix as the graph holds it: where its bytes are, and what they mean.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor, WithDType};
use half::bf16;
use nv_kernels::{Format, Isa, Kernels, Matrix, Pool};
use nv_weights::SharedTensor;

use crate::elements::Elements;
use crate::error::Result;

/// A matrix `[out_features, in_features]`. Clones share its elements.
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    /// For the CPU's kernels.
    Bytes(WeightBytes),
    /// F32 or BF16, for candle's ops on the model's device.
    Tensor(Tensor),
}

/// A matrix as kernels multiply it.
#[derive(Debug, Clone)]
pub(crate) struct WeightBytes {
    format: Format,
    /// `(out_features, in_features)`
    shape: (usize, usize),
    place: Place,
}

/// Where the bytes of a matrix are.
#[derive(Debug, Clone)]
enum Place {
    /// In a checkpoint.
    Mapped(SharedTensor),
    /// In memory of the model's own.
    Owned(Arc<AlignedBytes>),
}

impl Weight {
    /// The weight as candle's ops on `device` take it. What kernels would multiply is widened to F32, each time.
    pub(crate) fn tensor(&self, device: &Device) -> Result<Cow<'_, Tensor>> {
        Ok(match self {
            Self::Tensor(tensor) => Cow::Borrowed(tensor),
            Self::Bytes(bytes) => Cow::Owned(bytes.widened()?.to_device(device)?),
        })
    }

    /// What the elements are stored as, and their bytes.
    pub(crate) fn size(&self) -> (Format, usize) {
        match self {
            Self::Bytes(bytes) => (bytes.format, bytes.matrix().data().len()),
            Self::Tensor(tensor) => {
                let is_bf16 = tensor.dtype() == DType::BF16;
                let format = if is_bf16 { Format::Bf16 } else { Format::F32 };
                (format, tensor.elem_count() * tensor.dtype().size_in_bytes())
            }
        }
    }

    /// The weight as kernels take it. What candle's ops would take is copied, each time.
    pub(crate) fn bytes(&self) -> Result<Cow<'_, WeightBytes>> {
        Ok(match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytes),
            Self::Tensor(tensor) => Cow::Owned(WeightBytes::copy_of(tensor)?),
        })
    }
}

impl WeightBytes {
    /// The weight for kernels, or widened for candle's ops on a device.
    pub(crate) fn on(self, device: Option<&Device>, dtype: DType) -> Result<Weight> {
        Ok(match device {
            None => Weight::Bytes(self),
            Some(device) => Weight::Tensor(self.widened()?.to_dtype(dtype)?.to_device(device)?),
        })
    }

    /// The matrix `[out_features, in_features]` of a checkpoint, in place: `format` is what its bytes mean, and they are as many as
    /// such a matrix has, where it may be.
    pub(crate) fn mapped(tensor: SharedTensor, format: Format, shape: (usize, usize)) -> Self {
        Self { format, shape, place: Place::Mapped(tensor) }
    }

    /// As [`Self::mapped`], in memory of its own.
    pub(crate) fn owned(bytes: AlignedBytes, format: Format, shape: (usize, usize)) -> Self {
        Self { format, shape, place: Place::Owned(Arc::new(bytes)) }
    }

    /// A copy of an F32 or BF16 tensor `[out_features, in_features]`.
    pub(crate) fn copy_of(tensor: &Tensor) -> Result<Self> {
        fn bytes<T: WithDType + bytemuck::NoUninit>(
            elements: &Elements<'_>,
        ) -> Result<AlignedBytes> {
            Ok(AlignedBytes::copy_of(bytemuck::cast_slice(elements.as_slice::<T>()?)))
        }
        let shape = tensor.dims2()?;
        let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
        let elements = Elements::of(&tensor)?;
        let (format, bytes) = match elements.storage() {
            Storage::Cpu(CpuStorage::BF16(_)) => (Format::Bf16, bytes::<bf16>(&elements)?),
            _ => (Format::F32, bytes::<f32>(&elements)?),
        };
        Ok(Self::owned(bytes, format, shape))
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        let data = match &self.place {
            Place::Mapped(tensor) => tensor.view().bytes(),
            Place::Owned(bytes) => bytes.as_slice(),
        };
        let (out_features, in_features) = self.shape;
        Matrix::checked(self.format, data, out_features, in_features)
            .unwrap_or_else(|error| panic!("a weight that was checked: {error}"))
    }

    /// The matrix as an F32 tensor on the CPU.
    fn widened(&self) -> Result<Tensor> {
        let matrix = self.matrix();
        let (num_rows, in_features) = (matrix.out_features(), matrix.in_features());
        let rows = 0..u32::try_from(num_rows).expect("a config's sizes fit in 32 bits");
        let kernels = Kernels::for_isa(Isa::Scalar).expect("every machine has plain Rust");
        let mut values = Vec::new();
        kernels.embed(&Pool::new(1)?, matrix, &rows.collect::<Vec<u32>>(), &mut values);
        Ok(Tensor::from_vec(values, (num_rows, in_features), &Device::Cpu)?)
    }
}

/// Bytes that start with a cache line, so that no load of a kernel's takes two.
pub(crate) struct AlignedBytes {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    const ALIGNMENT: usize = 64;

    pub(crate) fn zeroed(len: usize) -> Self {
        let buffer = vec![0; len + Self::ALIGNMENT];
        let start = buffer.as_ptr().align_offset(Self::ALIGNMENT);
        Self { buffer, start, len }
    }

    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.as_mut_slice().copy_from_slice(bytes);
        copy
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

impl fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBytes").field("len", &self.len).finish_non_exhaustive()
    }
}
