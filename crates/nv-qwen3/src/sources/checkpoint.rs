//! Weights out of mapped safetensors files: read in place where kernels can, else copied.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use nv_config::{QuantizationConfig, Qwen3Config};
use nv_kernels::{Format, Pool, check_packed};
use nv_weights::{Checkpoint, Dtype, SharedTensor, TensorView};

use super::{Located, WeightSource, drop_equal_head, locate};
use crate::error::{Error, Misshapen, Result, TensorReport};
use crate::spec::{EMBED_TOKENS, LM_HEAD, TensorSpec, module};
use crate::weight::{AlignedBytes, Weight, WeightBytes};

/// The formats of the matrices that a checkpoint stores packed, as kernels stream them.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackedFormats(BTreeMap<String, Format>);

impl PackedFormats {
    /// # Errors
    /// [`Error::UnknownFormat`] if `config` names one that there isn't, or one of plain numbers.
    pub(crate) fn of(config: &Qwen3Config) -> Result<Self> {
        let Some(QuantizationConfig::Packed(packed)) = &config.quantization_config else {
            return Ok(Self::default());
        };
        // Plain numbers have a dtype of their own: packed in bytes, kernels might be given them in the wrong precision.
        let named = |name: &str| Format::from_name(name).filter(|format| format.is_portable());
        let format = |(module, name): (&String, &String)| match named(name) {
            Some(format) => Ok((module.clone(), format)),
            None => Err(Error::UnknownFormat { module: module.clone(), name: name.clone() }),
        };
        Ok(Self(packed.formats.iter().map(format).collect::<Result<_>>()?))
    }

    /// Whether head and embedding are the same numbers if they have the same bytes.
    fn has_head_like_embedding(&self) -> bool {
        let [head, embedding] = [LM_HEAD, EMBED_TOKENS].map(|name| self.0.get(module(name)));
        head == embedding
    }

    /// What kernels read `view`, stored for `spec`, as.
    ///
    /// # Errors
    /// Why they can't.
    fn format_in_place(
        &self,
        spec: &TensorSpec,
        view: &TensorView<'_>,
    ) -> Result<Format, CopyReason> {
        let (format, misaligned) = match (self.format(spec, view), view.dtype()) {
            (Some(format), _) => {
                let (alignment, num_bytes) = (format.alignment(), view.bytes().len());
                (format, CopyReason::Packed { alignment, num_bytes })
            }
            (None, Dtype::BF16) => (Format::Bf16, CopyReason::Misaligned),
            (None, other) => return Err(CopyReason::Dtype(other)),
        };
        let is_aligned = view.bytes().as_ptr().addr().is_multiple_of(format.alignment());
        if is_aligned { Ok(format) } else { Err(misaligned) }
    }

    /// What `view`, stored for `spec`, is packed in; `None` if it is plain numbers.
    pub(crate) fn format(&self, spec: &TensorSpec, view: &TensorView<'_>) -> Option<Format> {
        let is_packed = spec.role.is_matrix() && view.dtype() == Dtype::U8;
        self.0.get(spec.module()).copied().filter(|_| is_packed)
    }
}

/// The weights of a checkpoint, for kernels or for candle's ops on some device.
pub(crate) struct CheckpointSource<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    packed: PackedFormats,
    /// What copies are converted to.
    dtype: DType,
    /// Copies tensors to the device.
    vb: VarBuilder<'static>,
    /// `None` for kernels.
    device: Option<Device>,
    /// Looks at what is packed before anything is computed from it.
    pool: &'a Pool,
    copies: Copies,
}

impl<'a> CheckpointSource<'a> {
    /// For kernels, or for candle's ops on `device`.
    pub(crate) fn new(
        checkpoint: &'a Arc<Checkpoint>,
        packed: PackedFormats,
        dtype: DType,
        device: Option<&Device>,
        pool: &'a Pool,
    ) -> Self {
        let vb = checkpoint.var_builder(dtype, device.unwrap_or(&Device::Cpu));
        let (device, copies) = (device.cloned(), Copies::default());
        Self { checkpoint, packed, dtype, vb, device, pool, copies }
    }

    /// # Errors
    /// [`Error::Packed`] for numbers that nobody packs, such as a scale that isn't one.
    fn check(&self, weight: &WeightBytes, tensor: &SharedTensor) -> Result<()> {
        check_packed(self.pool, weight.matrix()).map_err(|source| {
            let (path, name) = (tensor.view().path().into(), tensor.view().name().into());
            Error::Packed { path, name, source }
        })
    }
}

impl WeightSource for CheckpointSource<'_> {
    fn contains(&self, name: &str) -> bool {
        self.checkpoint.get(name).is_some()
    }

    fn report(&mut self, _: &Qwen3Config, tensors: &[Located]) -> Result<TensorReport> {
        Ok(report(self.checkpoint, &self.packed, tensors))
    }

    fn are_equal_copies(&mut self, a: &Located, b: &Located) -> Result<bool> {
        let is_copied = |spec: &TensorSpec, view: &TensorView<'_>| {
            let in_memory =
                self.device.is_some() || self.packed.format_in_place(spec, view).is_err();
            in_memory && self.packed.has_head_like_embedding()
        };
        Ok(are_equal_copies(self.checkpoint, is_copied, a, b))
    }

    fn matrix(&mut self, tensor: &Located) -> Result<Weight> {
        let shared = self.checkpoint.shared_tensor(&tensor.stored_as)?;
        let in_place = self.packed.format_in_place(&tensor.spec, &shared.view());
        if let (None, Ok(format)) = (&self.device, in_place) {
            let weight = WeightBytes::mapped(shared.clone(), format, tensor.spec.matrix_shape());
            self.check(&weight, &shared)?;
            return Ok(Weight::Bytes(weight));
        }
        let (stored_as, packed_in) =
            (shared.view().name(), self.packed.format(&tensor.spec, &shared.view()));
        let key = copy_key(stored_as, packed_in, &tensor.spec);
        if let Some(copy) = self.copies.get(&key) {
            return Ok(copy.clone());
        }
        let copy = if let Some(format) = packed_in {
            let bytes = AlignedBytes::copy_of(shared.view().bytes());
            let bytes = WeightBytes::owned(bytes, format, tensor.spec.matrix_shape());
            self.check(&bytes, &shared)?;
            bytes.on(self.device.as_ref(), self.dtype)?
        } else {
            let copy = self.vb.get_unchecked_dtype(stored_as, self.dtype)?;
            match &self.device {
                None => Weight::Bytes(WeightBytes::copy_of(&copy)?),
                Some(_) => Weight::Tensor(copy),
            }
        };
        self.copies.insert(key, copy.clone());
        Ok(copy)
    }

    fn vector(&mut self, tensor: &Located) -> Result<Tensor> {
        Ok(self.vb.get_unchecked_dtype(&tensor.stored_as, DType::F32)?)
    }
}

/// What a source has copied or quantised: metadata may give a stored tensor several names.
pub(super) type Copies = HashMap<CopyKey, Weight>;

/// The name that a tensor is stored under, its format if that isn't its dtype's, and its shape: as many bytes may be matrices of
/// other shapes, and two of a model's matrices may want other formats of the same numbers.
pub(super) type CopyKey = (String, Option<Format>, (usize, usize));

pub(super) fn copy_key(stored_as: &str, format: Option<Format>, spec: &TensorSpec) -> CopyKey {
    (stored_as.to_owned(), format, spec.matrix_shape())
}

/// Compares names, shapes and dtypes of `checkpoint` with those of `tensors`, reading no weight.
pub(crate) fn report(
    checkpoint: &Checkpoint,
    packed: &PackedFormats,
    tensors: &[Located],
) -> TensorReport {
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
        let format = packed.format(spec, &view);
        if format.is_none() && view.float_dtype().is_err() {
            report.unsupported.push((name.clone(), view.dtype()));
        }
        let num_bytes = format.and_then(|format| {
            let (out_features, in_features) = spec.matrix_shape();
            format.matrix_bytes(out_features, in_features)
        });
        let expected = num_bytes.map_or_else(|| spec.shape.clone(), |num_bytes| vec![num_bytes]);
        if view.shape() != expected {
            let found = view.shape().to_vec();
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
    // Formats that aren't known are an error of the loader's.
    let packed = PackedFormats::of(config).unwrap_or_default();
    let is_copied = |spec: &TensorSpec, view: &TensorView<'_>| {
        packed.format_in_place(spec, view).is_err() && packed.has_head_like_embedding()
    };
    let tensors = locate_once(config, checkpoint, is_copied);
    let mut keys = HashSet::new();
    let matrices = tensors.into_iter().filter(|tensor| tensor.spec.role.is_matrix());
    let copied = matrices.filter_map(|tensor| {
        let view = checkpoint.get(&tensor.stored_as)?;
        let reason = packed.format_in_place(&tensor.spec, &view).err()?;
        let key = copy_key(view.name(), packed.format(&tensor.spec, &view), &tensor.spec);
        keys.insert(key).then_some((tensor, reason))
    });
    copied.collect()
}

/// The tensors of the graph of `config` in `checkpoint`, less a head that would be a second copy of the embedding.
pub(crate) fn locate_once(
    config: &Qwen3Config,
    checkpoint: &Checkpoint,
    is_copied: impl Fn(&TensorSpec, &TensorView<'_>) -> bool,
) -> Vec<Located> {
    let mut tensors = locate(config, |name| checkpoint.get(name).is_some());
    let Ok(()) = drop_equal_head::<Infallible>(&mut tensors, |head, embedding| {
        Ok(are_equal_copies(checkpoint, is_copied, head, embedding))
    });
    tensors
}

/// Whether both are there, would be copied and have the same bytes.
pub(super) fn are_equal_copies(
    checkpoint: &Checkpoint,
    is_copied: impl Fn(&TensorSpec, &TensorView<'_>) -> bool,
    a: &Located,
    b: &Located,
) -> bool {
    let spec = &a.spec;
    let (Some(a), Some(b)) = (checkpoint.get(&a.stored_as), checkpoint.get(&b.stored_as)) else {
        return false;
    };
    let (bytes, others) = (a.bytes(), b.bytes());
    // Where they are read in place, comparing would cost more than reading both.
    is_copied(spec, &a)
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
    /// It is packed, at an address where kernels can't read it.
    Packed {
        /// What the address should be a multiple of.
        alignment: usize,
        /// The bytes that are copied, as they are.
        num_bytes: usize,
    },
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dtype(dtype) => write!(f, "stored in {dtype:?}"),
            Self::Misaligned => f.write_str("stored at an odd address"),
            Self::Packed { alignment, .. } => {
                write!(f, "stored at an address that is no multiple of {alignment}")
            }
        }
    }
}
