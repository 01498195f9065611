//! Weights out of mapped safetensors files: read in place where kernels can, else copied.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ptr;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use nv_config::Qwen3Config;
use nv_kernels::Format;
use nv_weights::{Checkpoint, Dtype, TensorView};

use super::{Located, WeightSource, head_and_embedding, locate};
use crate::error::{Misshapen, Result, TensorReport};
use crate::spec::Role;
use crate::weight::{Weight, WeightBytes};

/// The weights of a checkpoint, for kernels or for candle's ops on some device.
pub(crate) struct CheckpointSource<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    /// What copies are converted to.
    dtype: DType,
    /// Copies tensors to the device.
    vb: VarBuilder<'static>,
    is_for_kernels: bool,
    /// Copies by the names that they are stored under, for metadata may give a tensor several.
    copies: BTreeMap<String, Weight>,
}

impl<'a> CheckpointSource<'a> {
    /// For kernels, or for candle's ops on `device`.
    pub(crate) fn new(
        checkpoint: &'a Arc<Checkpoint>,
        dtype: DType,
        device: Option<&Device>,
    ) -> Self {
        let vb = checkpoint.var_builder(dtype, device.unwrap_or(&Device::Cpu));
        let copies = BTreeMap::new();
        Self { checkpoint, dtype, vb, is_for_kernels: device.is_none(), copies }
    }

    fn is_copied(&self, tensor: &TensorView<'_>) -> bool {
        !self.is_for_kernels || CopyReason::of(tensor).is_some()
    }
}

impl WeightSource for CheckpointSource<'_> {
    fn contains(&self, name: &str) -> bool {
        self.checkpoint.get(name).is_some()
    }

    fn report(&mut self, _: &Qwen3Config, tensors: &[Located]) -> Result<TensorReport> {
        Ok(report(self.checkpoint, tensors))
    }

    fn are_equal_copies(&mut self, a: &Located, b: &Located) -> Result<bool> {
        Ok(are_equal_copies(self.checkpoint, |tensor| self.is_copied(tensor), a, b))
    }

    fn matrix(&mut self, tensor: &Located) -> Result<Weight> {
        let shared = self.checkpoint.shared_tensor(&tensor.stored_as)?;
        if !self.is_copied(&shared.view()) {
            let in_features = tensor.spec.shape[1];
            return Ok(Weight::Bytes(WeightBytes::mapped(shared, Format::Bf16, in_features)));
        }
        let stored_as = shared.view().name();
        if let Some(copy) = self.copies.get(stored_as) {
            return Ok(copy.clone());
        }
        let copy = self.vb.get_unchecked_dtype(stored_as, self.dtype)?;
        let copy = if self.is_for_kernels {
            Weight::Bytes(WeightBytes::copy_of(&copy)?)
        } else {
            Weight::Tensor(copy)
        };
        self.copies.insert(stored_as.to_owned(), copy.clone());
        Ok(copy)
    }

    fn vector(&mut self, tensor: &Located) -> Result<Tensor> {
        Ok(self.vb.get_unchecked_dtype(&tensor.stored_as, DType::F32)?)
    }
}

/// Compares names, shapes and dtypes of `checkpoint` with those of `tensors`, reading no weight.
pub(crate) fn report(checkpoint: &Checkpoint, tensors: &[Located]) -> TensorReport {
    let mut report = TensorReport::default();
    let mut used = BTreeSet::new();
    for Located { spec, stored_as: name } in tensors {
        if let Some(stored_as) = checkpoint.stored_as(name) {
            report.stored_as.insert(name.clone(), stored_as.to_owned());
        }
        let Some(view) = checkpoint.get(name) else {
            report.missing.push(name.clone());
            continue;
        };
        used.insert(view.name());
        if view.float_dtype().is_err() {
            report.unsupported.push((name.clone(), view.dtype()));
        }
        if view.shape() != spec.shape {
            let (expected, found) = (spec.shape.clone(), view.shape().to_vec());
            report.misshapen.push(Misshapen { name: name.clone(), expected, found });
        }
    }
    report.unexpected = checkpoint
        .tensors()
        .map(|view| view.name())
        .filter(|name| !used.contains(name) && !name.contains("rotary_emb.inv_freq"))
        .map(str::to_owned)
        .collect();
    report
}

/// The matrices of `config` that kernels can't read in place, with the reason; each once, in the order of the graph.
pub(crate) fn copied_matrices(
    config: &Qwen3Config,
    checkpoint: &Checkpoint,
) -> Vec<(Located, CopyReason)> {
    let mut tensors = locate(config, |name| checkpoint.get(name).is_some());
    let is_copied = |tensor: &TensorView<'_>| CopyReason::of(tensor).is_some();
    if let Some((head, embedding)) = head_and_embedding(&tensors)
        && are_equal_copies(checkpoint, is_copied, head, embedding)
    {
        tensors.retain(|tensor| tensor.spec.role != Role::Head);
    }
    let mut names = BTreeSet::new();
    let matrices = tensors.into_iter().filter(|tensor| tensor.spec.role.is_matrix());
    let copied = matrices.filter_map(|tensor| {
        let view = checkpoint.get(&tensor.stored_as)?;
        let reason = CopyReason::of(&view)?;
        names.insert(view.name()).then_some((tensor, reason))
    });
    copied.collect()
}

/// Whether both are there, would be copied and have the same bytes.
fn are_equal_copies(
    checkpoint: &Checkpoint,
    is_copied: impl Fn(&TensorView<'_>) -> bool,
    a: &Located,
    b: &Located,
) -> bool {
    let (Some(a), Some(b)) = (checkpoint.get(&a.stored_as), checkpoint.get(&b.stored_as)) else {
        return false;
    };
    let (bytes, others) = (a.bytes(), b.bytes());
    // Where they are read in place, comparing would cost more than reading both.
    is_copied(&a)
        && (a.dtype(), a.shape()) == (b.dtype(), b.shape())
        && (ptr::eq(bytes, others) || bytes == others)
}

/// Why a matrix is not read where its file is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyReason {
    /// It is stored in another dtype than bfloat16.
    Dtype(Dtype),
    /// It is bfloat16 at an odd address.
    Misaligned,
}

impl CopyReason {
    /// Why `tensor` has to be copied; `None` if the kernels can read it where it is.
    fn of(tensor: &TensorView<'_>) -> Option<Self> {
        match tensor.dtype() {
            Dtype::BF16 => tensor.as_bf16().is_err().then_some(Self::Misaligned),
            other => Some(Self::Dtype(other)),
        }
    }
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dtype(dtype) => write!(f, "stored in {dtype:?}"),
            Self::Misaligned => f.write_str("stored at an odd address"),
        }
    }
}
