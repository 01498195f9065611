//! Plain numbers on their way to a format: who has them, and how their rows are quantised.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use nv_kernels::{Format, Pool, quantize};
use nv_weights::{Checkpoint, Dtype, TensorView};

use super::Located;
use crate::error::{Error, Result};

/// What has a model's tensors as plain numbers, for a [`Quantizer`](crate::Quantizer): a [`Checkpoint`], or what makes them up.
pub trait PlainTensors: fmt::Debug + Sync {
    /// A tensor.
    ///
    /// # Errors
    /// What finding it returns.
    fn tensor<'a>(&'a self, tensor: &'a Located) -> Result<PlainTensor<'a>>;

    /// Hands the little-endian bytes of a tensor to `write`, a part at a time.
    ///
    /// # Errors
    /// What finding the tensor and what `write` returns.
    fn bytes(&self, tensor: &Located, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Hears that a tensor won't be asked for again.
    fn release(&self, _: &Located) {}
}

/// Writes the values of the row of that number.
pub type ReadRow<'a> = dyn Fn(usize, &mut [f32]) + Sync + 'a;

/// A tensor of plain numbers.
pub struct PlainTensor<'a> {
    /// The file that it is in, for errors.
    pub path: &'a Path,
    /// Its name there.
    pub name: &'a str,
    /// What its elements are.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// The rows, if it is a matrix.
    pub row: Box<ReadRow<'a>>,
}

impl fmt::Debug for PlainTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainTensor")
            .field("path", &self.path)
            .field("name", &self.name)
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl<'a> PlainTensor<'a> {
    /// A tensor of a checkpoint.
    pub(crate) fn of(view: TensorView<'a>) -> Self {
        let (dtype, shape) = (view.dtype(), view.shape());
        let row_bytes = shape[shape.len() - 1] * dtype.bitsize() / 8;
        let row = move |row: usize, values: &mut [f32]| {
            read(dtype, &view.bytes()[row * row_bytes..][..row_bytes], values);
        };
        Self { path: view.path(), name: view.name(), dtype, shape, row: Box::new(row) }
    }
}

impl PlainTensors for Checkpoint {
    fn tensor<'a>(&'a self, tensor: &'a Located) -> Result<PlainTensor<'a>> {
        Ok(PlainTensor::of(self.tensor(&tensor.stored_as)?))
    }

    fn bytes(&self, tensor: &Located, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        write(self.tensor(&tensor.stored_as)?.bytes())
    }

    fn release(&self, tensor: &Located) {
        if let Some(view) = self.get(&tensor.stored_as) {
            view.release();
        }
    }
}

/// The bytes of a matrix whose plain numbers memory can hold.
pub(crate) fn packed_bytes(format: Format, out_features: usize, in_features: usize) -> usize {
    let num_bytes = format.matrix_bytes(out_features, in_features);
    num_bytes.expect("what fits in memory as it is fits there in fewer bits")
}

/// Quantises some rows of a matrix.
///
/// # Errors
/// [`Error::Quantize`] with the place of a number that isn't finite or is too large.
pub(crate) fn quantize_rows(
    pool: &Pool,
    format: Format,
    tensor: &PlainTensor<'_>,
    rows: Range<usize>,
    out: &mut [u8],
) -> Result<()> {
    let row = |row: usize, values: &mut [f32]| (tensor.row)(rows.start + row, values);
    quantize(pool, format, rows.len(), tensor.shape[1], &row, out).map_err(|source| {
        let (path, name) = (tensor.path.into(), tensor.name.into());
        Error::Quantize { path, name, source: source.after(rows.start) }
    })
}

/// Widens or rounds little-endian numbers to f32.
fn read(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], values: &mut [f32], to_f32: impl Fn([u8; N]) -> f32) {
        let (bytes, rest) = bytes.as_chunks::<N>();
        assert!(rest.is_empty() && bytes.len() == values.len());
        for (value, bytes) in values.iter_mut().zip(bytes) {
            *value = to_f32(*bytes);
        }
    }
    match dtype {
        Dtype::BF16 => each(bytes, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::F16 => each(bytes, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::F32 => each(bytes, values, f32::from_le_bytes),
        #[expect(clippy::cast_possible_truncation, reason = "rounds to f32")]
        Dtype::F64 => each(bytes, values, |bytes| f64::from_le_bytes(bytes) as f32),
        dtype => unreachable!("the report refuses {dtype:?}"),
    }
}
