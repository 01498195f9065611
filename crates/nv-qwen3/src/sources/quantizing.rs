//! Weights out of a checkpoint of plain numbers, quantised while they are loaded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use nv_config::Qwen3Config;
use nv_kernels::{Format, Pool, quantize};
use nv_weights::{Checkpoint, Dtype, TensorView};

use super::checkpoint::are_equal_copies;
use super::{CheckpointSource, Located, PackedFormats, WeightSource};
use crate::error::{Error, Result, TensorReport};
use crate::preset::Preset;
use crate::weight::{AlignedBytes, Weight, WeightBytes};

/// The weights of a checkpoint, quantised.
pub(crate) struct QuantizingSource<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    /// What isn't quantised.
    plain: CheckpointSource<'a>,
    dtype: DType,
    /// `None` for kernels.
    device: Option<Device>,
    preset: Preset,
    pool: &'a Pool,
    /// Hears of the bytes that were read.
    progress: &'a dyn Fn(usize),
    /// By the names that they are stored under, for metadata may give a tensor several.
    quantized: BTreeMap<String, Weight>,
}

impl<'a> QuantizingSource<'a> {
    pub(crate) fn new(
        checkpoint: &'a Arc<Checkpoint>,
        dtype: DType,
        device: Option<&Device>,
        preset: Preset,
        pool: &'a Pool,
        progress: &'a dyn Fn(usize),
    ) -> Self {
        let packed = PackedFormats::default();
        let plain = CheckpointSource::new(checkpoint, packed, dtype, device, pool);
        let (device, quantized) = (device.cloned(), BTreeMap::new());
        Self { checkpoint, plain, dtype, device, preset, pool, progress, quantized }
    }
}

impl WeightSource for QuantizingSource<'_> {
    fn contains(&self, name: &str) -> bool {
        self.plain.contains(name)
    }

    fn report(&mut self, config: &Qwen3Config, tensors: &[Located]) -> Result<TensorReport> {
        self.plain.report(config, tensors)
    }

    fn are_equal_copies(&mut self, a: &Located, b: &Located) -> Result<bool> {
        Ok(are_equal_copies(self.checkpoint, |_, _| true, a, b))
    }

    fn matrix(&mut self, tensor: &Located) -> Result<Weight> {
        let Some(format) = self.preset.format(tensor.spec.role) else {
            return self.plain.matrix(tensor);
        };
        let view = self.checkpoint.tensor(&tensor.stored_as)?;
        if let Some(weight) = self.quantized.get(view.name()) {
            return Ok(weight.clone());
        }
        let (out_features, in_features) = tensor.spec.matrix_shape();
        let mut bytes = AlignedBytes::zeroed(packed_bytes(format, out_features, in_features));
        quantize_rows(self.pool, format, view, 0..out_features, bytes.as_mut_slice())?;
        view.release();
        (self.progress)(view.bytes().len());
        let bytes = WeightBytes::owned(bytes, format, tensor.spec.matrix_shape());
        let weight = bytes.on(self.device.as_ref(), self.dtype)?;
        self.quantized.insert(view.name().to_owned(), weight.clone());
        Ok(weight)
    }

    fn vector(&mut self, tensor: &Located) -> Result<Tensor> {
        self.plain.vector(tensor)
    }
}

/// The bytes of a matrix that a checkpoint stores as plain numbers.
pub(crate) fn packed_bytes(format: Format, out_features: usize, in_features: usize) -> usize {
    let num_bytes = format.matrix_bytes(out_features, in_features);
    num_bytes.expect("what fits in memory as it is fits there in fewer bits")
}

/// Quantises some rows of a matrix of floating-point numbers.
///
/// # Errors
/// [`Error::Quantize`] with the place of a number that isn't finite or is too large.
pub(crate) fn quantize_rows(
    pool: &Pool,
    format: Format,
    view: TensorView<'_>,
    rows: Range<usize>,
    out: &mut [u8],
) -> Result<()> {
    let in_features = view.shape()[1];
    let row_bytes = in_features * view.dtype().bitsize() / 8;
    let row = |row: usize, values: &mut [f32]| {
        let bytes = &view.bytes()[(rows.start + row) * row_bytes..][..row_bytes];
        read(view.dtype(), bytes, values);
    };
    quantize(pool, format, rows.len(), in_features, &row, out).map_err(|source| {
        let (path, name) = (view.path().into(), view.name().into());
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
