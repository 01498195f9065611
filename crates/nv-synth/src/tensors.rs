//! The tensors of a random checkpoint, made a piece or a row at a time.

use std::path::{Path, PathBuf};

use half::bf16;
use nv_qwen3::{Located, PlainTensor, PlainTensors, TensorSpec};
use nv_weights::Dtype;

use crate::noise::Noise;

/// Every tensor of any model, in bfloat16.
#[derive(Debug)]
pub(crate) struct RandomTensors {
    /// The config that they are of, which errors name.
    config: PathBuf,
    seed: u64,
}

impl RandomTensors {
    pub(crate) fn new(config: &Path, seed: u64) -> Self {
        Self { config: config.to_owned(), seed }
    }

    /// Hands the bytes of a tensor to `write`, a piece at a time.
    ///
    /// # Errors
    /// What `write` returns.
    pub(crate) fn pieces<E>(
        &self,
        spec: &TensorSpec,
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        /// Elements.
        const PIECE: usize = 1 << 16;
        let noise = Noise::new(self.seed, spec);
        let len = spec.num_elements();
        let mut bytes = Vec::with_capacity(PIECE.min(len) * size_of::<bf16>());
        for start in (0..len).step_by(PIECE) {
            bytes.clear();
            for index in start..len.min(start + PIECE) {
                bytes.extend_from_slice(&noise.value(index as u64).to_le_bytes());
            }
            write(&bytes)?;
        }
        Ok(())
    }
}

impl PlainTensors for RandomTensors {
    fn tensor<'a>(&'a self, tensor: &'a Located) -> nv_qwen3::Result<PlainTensor<'a>> {
        let TensorSpec { name, shape, .. } = &tensor.spec;
        let noise = Noise::new(self.seed, &tensor.spec);
        let row = move |row: usize, values: &mut [f32]| {
            let first = row * values.len();
            for (i, value) in values.iter_mut().enumerate() {
                *value = noise.value((first + i) as u64).to_f32();
            }
        };
        let (path, dtype, row) = (&*self.config, Dtype::BF16, Box::new(row));
        Ok(PlainTensor { path, name, dtype, shape, row })
    }

    fn bytes(
        &self,
        tensor: &Located,
        write: &mut dyn FnMut(&[u8]) -> nv_qwen3::Result<()>,
    ) -> nv_qwen3::Result<()> {
        self.pieces(&tensor.spec, write)
    }
}
