//! A [`Checkpoint`] as the source of a candle `VarBuilder`.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

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

impl Checkpoint {
    /// A candle `VarBuilder` over these tensors, which it keeps open.
    ///
    /// BF16, F16, F32 and F64 tensors are copied to `device` and converted to `dtype` when they are asked for; candle's
    /// own tensors can't borrow a mapping. Other dtypes, other shapes and absent tensors are errors then.
    pub fn var_builder(self: &Arc<Self>, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Backend(Arc::clone(self))), dtype, device.clone())
    }
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
    let stored = view.float_dtype().map_err(candle_core::Error::wrap)?;
    Tensor::from_raw_buffer(view.bytes(), stored, view.shape(), device)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::checkpoint::tests::{fixture, fixture_values, safetensors, write};

    fn open(dtype: DType) -> VarBuilder<'static> {
        load_safetensors(&[fixture()], dtype, &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn float_tensors_are_converted() {
        let check =
            |name: &str, shape: &[usize], dtype, stored: fn(f32) -> f64, round: fn(f64) -> f64| {
                let tensor = open(dtype).get(shape, name).unwrap();
                assert_eq!((tensor.dtype(), tensor.dims()), (dtype, shape), "{name}");
                let len = u8::try_from(tensor.elem_count()).unwrap();
                let expected: Vec<_> =
                    fixture_values(len).map(|value| round(stored(value))).collect();
                assert_eq!(values(&tensor), expected, "{name} as {dtype:?}");
            };
        let from_bf16 = |value| bf16::from_f32(value).to_f64();
        let from_f16 = |value| f16::from_f32(value).to_f64();
        let to_bf16 = |value| bf16::from_f64(value).to_f64();
        check("bf16", &[4, 5], DType::BF16, from_bf16, |value| value);
        check("bf16", &[4, 5], DType::F32, from_bf16, |value| value);
        check("f16", &[3, 1, 2], DType::F32, from_f16, |value| value);
        check("f16", &[3, 1, 2], DType::BF16, from_f16, to_bf16);
        check("f32", &[2, 3], DType::F32, f64::from, |value| value);
        check("f32", &[2, 3], DType::BF16, f64::from, to_bf16);
        check("f64", &[7], DType::F32, f64::from, |value| value);
        check("scalar", &[], DType::F32, f64::from, |value| value);
        check("empty", &[0, 3], DType::F32, f64::from, |value| value);
    }

    #[test]
    fn misaligned_tensors_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let path = write(&dir, "x.safetensors", &safetensors(&[("t", "F32", &[2], &data)], 1));
        let vb = load_safetensors(&[path], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(values(&vb.get(2, "t").unwrap()), [1.5, -2.0]);
    }

    #[test]
    fn prefixes_and_presence() {
        let dir = tempfile::tempdir().unwrap();
        let path =
            write(&dir, "x.safetensors", &safetensors(&[("a.b", "BF16", &[1], &[0x80, 0x3f])], 0));
        let vb = load_safetensors(&[path], DType::F32, &Device::Cpu).unwrap();
        assert!(vb.pp("a").contains_tensor("b") && !vb.contains_tensor("b"));
        assert_eq!(values(&vb.pp("a").get_unchecked("b").unwrap()), [1.0]);
    }

    #[test]
    fn refusals_name_tensor_and_file() {
        let check = |shape: &[usize], name: &str, expected: &str| {
            let message = open(DType::F32).get(shape, name).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(message.contains("from_python.safetensors"), "{message}");
        };
        check(&[3, 2], "f32", "tensor `f32`: expected shape [3, 2], found [2, 3]");
        check(&[4], "ids", "tensor `ids`: dtype I64 is not supported");
        check(&[1], "none", "tensor `none` is not in");
    }
}
