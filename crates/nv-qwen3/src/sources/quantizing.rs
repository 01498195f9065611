//! Weights out of a checkpoint of plain numbers, quantised while they are loaded.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use nv_config::Qwen3Config;
use nv_kernels::Pool;
use nv_weights::Checkpoint;

use super::checkpoint::{Copies, are_equal_copies, copy_key};
use super::plain::{PlainTensor, packed_bytes, quantize_rows};
use super::{CheckpointSource, Located, PackedFormats, WeightSource};
use crate::error::{Result, TensorReport};
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
    quantized: Copies,
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
        let (device, quantized) = (device.cloned(), Copies::default());
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
        let key = copy_key(view.name(), Some(format), &tensor.spec);
        if let Some(weight) = self.quantized.get(&key) {
            return Ok(weight.clone());
        }
        let (out_features, in_features) = tensor.spec.matrix_shape();
        let mut bytes = AlignedBytes::zeroed(packed_bytes(format, out_features, in_features));
        let plain = PlainTensor::of(view);
        quantize_rows(self.pool, format, &plain, 0..out_features, bytes.as_mut_slice())?;
        view.release();
        (self.progress)(view.bytes().len());
        let bytes = WeightBytes::owned(bytes, format, tensor.spec.matrix_shape());
        let weight = bytes.on(self.device.as_ref(), self.dtype)?;
        self.quantized.insert(key, weight.clone());
        Ok(weight)
    }

    fn vector(&mut self, tensor: &Located) -> Result<Tensor> {
        self.plain.vector(tensor)
    }
}
