//! Weights out of a candle `VarBuilder`, which copies each tensor, and tells its shape only then.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use nv_config::Qwen3Config;

use super::{Located, WeightSource};
use crate::error::{Misshapen, Result, TensorReport};
use crate::spec::tensor_specs;
use crate::weight::{Weight, WeightBytes};

/// The weights of a `VarBuilder`, matrices in its dtype, for kernels or for candle's ops on its device.
pub(crate) struct VarBuilderSource<'a> {
    vb: &'a VarBuilder<'a>,
    is_for_kernels: bool,
    /// What was read for the report, by its name in the `VarBuilder`.
    tensors: BTreeMap<String, Tensor>,
}

impl<'a> VarBuilderSource<'a> {
    pub(crate) fn new(vb: &'a VarBuilder<'a>, is_for_kernels: bool) -> Self {
        Self { vb, is_for_kernels, tensors: BTreeMap::new() }
    }

    fn take(&mut self, tensor: &Located) -> Tensor {
        self.tensors.remove(&tensor.stored_as).expect("the report has read what it doesn't miss")
    }
}

impl WeightSource for VarBuilderSource<'_> {
    fn contains(&self, name: &str) -> bool {
        self.vb.contains_tensor(name)
    }

    /// Reads all `tensors`. A `VarBuilder` cannot list its names, so unexpected ones are looked for where a wrong config would
    /// leave them: biases, and one more layer.
    fn report(&mut self, config: &Qwen3Config, tensors: &[Located]) -> Result<TensorReport> {
        let mut report = TensorReport {
            unexpected: stray_names(config, tensors)
                .into_iter()
                .filter(|name| self.vb.contains_tensor(name))
                .collect(),
            ..TensorReport::default()
        };
        for Located { spec, stored_as: name } in tensors {
            if !self.vb.contains_tensor(name) {
                report.missing.push(name.clone());
                continue;
            }
            let dtype = if spec.role.is_matrix() { self.vb.dtype() } else { DType::F32 };
            let tensor = self.vb.get_unchecked_dtype(name, dtype)?;
            if tensor.dims() == spec.shape {
                self.tensors.insert(name.clone(), tensor);
            } else {
                let (expected, found) = (spec.shape.clone(), tensor.dims().to_vec());
                report.misshapen.push(Misshapen { name: name.clone(), expected, found });
            }
        }
        Ok(report)
    }

    fn are_equal_copies(&mut self, a: &Located, b: &Located) -> Result<bool> {
        match (self.tensors.get(&a.stored_as), self.tensors.get(&b.stored_as)) {
            (Some(a), Some(b)) => are_equal(a, b),
            _ => Ok(false),
        }
    }

    fn matrix(&mut self, tensor: &Located) -> Result<Weight> {
        let tensor = self.take(tensor);
        Ok(if self.is_for_kernels {
            Weight::Bytes(WeightBytes::copy_of(&tensor)?)
        } else {
            Weight::Tensor(tensor)
        })
    }

    fn vector(&mut self, tensor: &Located) -> Result<Tensor> {
        Ok(self.take(tensor))
    }
}

/// Whether two matrices on one device have the same shape and values; looked at a few rows at a time, up to the first difference.
fn are_equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    const ROWS: usize = 4096;
    if a.dims() != b.dims() {
        return Ok(false);
    }
    let num_rows = a.dim(0)?;
    for start in (0..num_rows).step_by(ROWS) {
        let len = ROWS.min(num_rows - start);
        let differs = a.narrow(0, start, len)?.ne(&b.narrow(0, start, len)?)?;
        if differs.flatten_all()?.max(0)?.to_scalar::<u8>()? != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Names that a Qwen3 checkpoint of a neighbouring config would hold, less those of `tensors`.
fn stray_names(config: &Qwen3Config, tensors: &[Located]) -> BTreeSet<String> {
    let neighbour = Qwen3Config {
        num_hidden_layers: config.num_hidden_layers + 1,
        attention_bias: true,
        layer_types: Vec::new(),
        ..config.clone()
    };
    let mut names: BTreeSet<String> =
        tensor_specs(&neighbour).into_iter().map(|spec| spec.name).collect();
    for tensor in tensors {
        names.remove(&tensor.spec.name);
    }
    names
}
