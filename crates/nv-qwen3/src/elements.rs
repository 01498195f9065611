//! The elements of a candle tensor, as slices.

use std::fmt;
use std::ops::Range;

use candle_core::{CpuStorage, Storage, StorageRef, Tensor, WithDType};

use crate::error::Result;

/// The elements of a contiguous tensor on the CPU, borrowed from its storage.
pub struct Elements<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Elements<'a> {
    /// Borrows the elements of `tensor`.
    ///
    /// # Errors
    /// [`Error::Candle`](crate::Error::Candle) if it is not contiguous.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let (start, end) = layout
            .contiguous_offsets()
            .ok_or(candle_core::Error::RequiresContiguous { op: "a kernel" })?;
        Ok(Self { storage, range: start..end })
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The elements in order.
    ///
    /// # Errors
    /// [`Error::Candle`](crate::Error::Candle) if they are of another type or on another device.
    pub fn as_slice<T: WithDType>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&CpuStorage::as_slice(storage)?[self.range.clone()]),
            _ => Err(candle_core::Error::UnexpectedDType {
                msg: "kernels take tensors on the CPU",
                expected: T::DTYPE,
                got: self.storage.dtype(),
            }
            .into()),
        }
    }
}

impl fmt::Debug for Elements<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elements").field("range", &self.range).finish_non_exhaustive()
    }
}
