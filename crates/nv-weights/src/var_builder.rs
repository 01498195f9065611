//! A [`Checkpoint`] as the source of a candle `VarBuilder`.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use safetensors::Dtype;

use crate::checkpoint::{Checkpoint, TensorView};
use crate::error::{Error, Result};

/// A `VarBuilder` over the safetensors files at `paths`, which are mapped into memory.
///
/// Each BF16, F16, F32 or F64 tensor is copied to `device` and converted to `dtype` when it is asked for.
/// The files must not be changed in place while the builder lives: see [`Checkpoint::open`].
///
/// # Errors
/// As [`Checkpoint::open`]. The builder itself fails, naming tensor and file, for a tensor that is absent, has
/// another shape than the one asked for, or another dtype than those four.
pub fn load_safetensors(
    paths: &[PathBuf],
    dtype: DType,
    device: &Device,
) -> Result<VarBuilder<'static>> {
    Ok(Arc::new(Checkpoint::open(paths)?).var_builder(dtype, device))
}

pub(crate) fn new(
    checkpoint: Arc<Checkpoint>,
    dtype: DType,
    device: &Device,
) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Backend(checkpoint)), dtype, device.clone())
}

struct Backend(Arc<Checkpoint>);

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let view = self.0.tensor(name).map_err(candle_core::Error::wrap)?;
        if view.shape() != shape.dims() {
            return Err(candle_core::Error::wrap(Error::Shape {
                path: view.path().into(),
                name: name.into(),
                expected: shape.into_dims(),
                found: view.shape().to_vec(),
            }));
        }
        copy(view, dtype, device)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        copy(self.0.tensor(name).map_err(candle_core::Error::wrap)?, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}

/// Copies `view` to `device`, aligned or not, and converts it to `dtype`, rounding to nearest even.
fn copy(view: TensorView<'_>, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
    let stored = match view.dtype() {
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        dtype => {
            return Err(candle_core::Error::wrap(Error::UnsupportedDtype {
                path: view.path().into(),
                name: view.name().into(),
                dtype,
            }));
        }
    };
    Tensor::from_raw_buffer(view.bytes(), stored, view.shape(), device)?.to_dtype(dtype)
}
