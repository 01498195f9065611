//! What can go wrong between a checkpoint and its logits.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use candle_core::{DType, Tensor};
use nv_kernels::{PackedError, QuantizeError};
use nv_weights::Dtype;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The config describes a model that cannot exist or that this graph cannot compute.
    #[error(transparent)]
    Config(#[from] nv_config::Error),
    /// The weights are not the ones that the config asks for.
    #[error("the checkpoint does not match its config:{0}")]
    Tensors(Box<TensorReport>),
    /// The asked-for compute dtype is not one the graph runs in.
    #[error("dtype {found:?} is not supported; use F32 or BF16")]
    DType {
        /// The dtype that was asked for.
        found: DType,
    },
    /// `input_ids` is not a non-empty tensor of integers of the shape that the call takes.
    #[error(
        "input_ids: expected a non-empty {expected} tensor of U32 or I64, found {shape:?} of {dtype:?}"
    )]
    InputIds {
        /// The shape that the call takes.
        expected: &'static str,
        /// The shape that was given.
        shape: Vec<usize>,
        /// The dtype that was given.
        dtype: DType,
    },
    /// A token id lies outside the vocabulary.
    #[error("input_ids: token id {id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The offending id.
        id: i64,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// `start_pos` neither continues the cached sequence nor resets it.
    #[error(
        "start_pos: the cache holds {expected} positions, so {expected} continues it and 0 starts over; found {found}"
    )]
    StartPos {
        /// The number of positions in the cache.
        expected: usize,
        /// The position that was given.
        found: usize,
    },
    /// The batch size changed in the middle of a sequence.
    #[error(
        "input_ids: the cached sequence has batch size {expected}, found {found}; start over with start_pos 0"
    )]
    BatchSize {
        /// The batch size of the cached positions.
        expected: usize,
        /// The batch size that was given.
        found: usize,
    },
    /// The sequence would grow past what the model was trained for.
    #[error(
        "the sequence would reach {length} positions, more than max_position_embeddings {max_position_embeddings}"
    )]
    ContextLength {
        /// The length that the sequence would have.
        length: usize,
        /// The config's limit.
        max_position_embeddings: usize,
    },
    /// A tensor does not have the shape that the model, or the other tensors of a call, imply.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// The shape that was needed.
        expected: Vec<usize>,
        /// The shape that was found.
        found: Vec<usize>,
    },
    /// No preset of quantisation has the name.
    #[error("`{name}` is no way to quantise a model: use q8")]
    UnknownPreset {
        /// The name that was given.
        name: String,
    },
    /// The config names a format that there isn't, or one of plain numbers, which checkpoints store as such.
    #[error(
        "field `quantization_config.formats.{module}`: `{name}` is no format of quantised matrices; quantize the model again"
    )]
    UnknownFormat {
        /// The module whose matrices have it.
        module: String,
        /// The name of the format.
        name: String,
    },
    /// The model is quantised already.
    #[error("the model is quantised already: quantise the one that it was made from")]
    AlreadyQuantized,
    /// A `VarBuilder` gives plain numbers only.
    #[error("the model is quantised, which a `VarBuilder` can't give: load it from a `Checkpoint`")]
    QuantizedVarBuilder,
    /// A number of a matrix can't be quantised.
    #[error("{}: cannot quantise tensor `{name}`", path.display())]
    Quantize {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Which number it is.
        source: QuantizeError,
    },
    /// A packed matrix holds what nobody packs.
    #[error("{}: tensor `{name}` is damaged: quantize the model again", path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// What is wrong.
        source: PackedError,
    },
    /// A `config.json` that is to be written anew can't be read.
    #[error("config.json is not a JSON object")]
    ConfigJson {
        /// Where the JSON ends to make sense.
        source: serde_json::Error,
    },
    /// A quantised model can't be written.
    #[error(transparent)]
    Write(#[from] nv_weights::WriteError),
    /// The writer was told to stop.
    #[error("stopped before {} was complete; nothing of it is left", dir.display())]
    Stopped {
        /// The folder.
        dir: PathBuf,
    },
    /// The CPU kernels cannot be set up as asked.
    #[error(transparent)]
    Kernels(#[from] nv_kernels::Error),
    /// A tensor of the checkpoint can't be read.
    #[error(transparent)]
    Weights(#[from] nv_weights::Error),
    /// A tensor operation failed on its device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// # Errors
    /// [`Error::Shape`] if the tensor that the call names `what` has another shape than `expected`.
    pub(crate) fn check_shape(
        what: &'static str,
        tensor: &Tensor,
        expected: &[usize],
    ) -> Result<()> {
        if tensor.dims() == expected {
            return Ok(());
        }
        Err(Self::Shape { what, expected: expected.to_vec(), found: tensor.dims().to_vec() })
    }
}

/// A tensor whose shape is not the one that the config implies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// The shape that the config implies.
    pub expected: Vec<usize>,
    /// The shape in the checkpoint.
    pub found: Vec<usize>,
}

/// Every difference between the tensors that a config implies and those of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorReport {
    /// Implied by the config, absent from the checkpoint.
    pub missing: Vec<String>,
    /// Present with another shape.
    pub misshapen: Vec<Misshapen>,
    /// Stored in a dtype that the graph doesn't compute from, with that dtype.
    pub unsupported: Vec<(String, Dtype)>,
    /// Present though the config has no use for them.
    pub unexpected: Vec<String>,
    /// What the metadata of files say that tensors are stored as, by their names, if under others.
    pub stored_as: BTreeMap<String, String>,
}

impl TensorReport {
    /// Whether config and checkpoint agree.
    pub fn is_empty(&self) -> bool {
        let Self { missing, misshapen, unsupported, unexpected, stored_as: _ } = self;
        missing.is_empty()
            && misshapen.is_empty()
            && unsupported.is_empty()
            && unexpected.is_empty()
    }

    /// # Errors
    /// [`Error::Tensors`] if config and checkpoint don't agree.
    pub(crate) fn into_result(self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(Error::Tensors(Box::new(self))) }
    }

    /// A name as a report shows it.
    fn quoted(&self, name: &str) -> String {
        match self.stored_as.get(name) {
            Some(stored_as) => format!("`{name}` (stored as `{}`)", stored_as.escape_debug()),
            None => format!("`{name}`"),
        }
    }
}

impl fmt::Display for TensorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let misshapen: Vec<String> = self
            .misshapen
            .iter()
            .map(|m| {
                format!("{} (expected {:?}, found {:?})", self.quoted(&m.name), m.expected, m.found)
            })
            .collect();
        let quoted = |names: &[String]| -> Vec<String> {
            names.iter().map(|name| self.quoted(name)).collect()
        };
        let unsupported: Vec<String> = self
            .unsupported
            .iter()
            .map(|(name, dtype)| format!("{} ({dtype})", self.quoted(name)))
            .collect();
        list(f, "missing", &quoted(&self.missing))?;
        list(f, "of another shape", &misshapen)?;
        list(f, "of another dtype than BF16, F16, F32 and F64", &unsupported)?;
        list(f, "unexpected", &quoted(&self.unexpected))
    }
}

/// Writes `items` under a heading with their number, the first few by name.
fn list(f: &mut fmt::Formatter<'_>, heading: &str, items: &[String]) -> fmt::Result {
    const NAMED: usize = 8;
    if items.is_empty() {
        return Ok(());
    }
    let named = items.len().min(NAMED);
    write!(f, "\n  {} {heading}: {}", items.len(), items[..named].join(", "))?;
    match items.len() - named {
        0 => Ok(()),
        rest => write!(f, " and {rest} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_lists_every_kind_and_counts_what_it_leaves_out() {
        let report = TensorReport {
            missing: (0..10).map(|i| format!("m{i}")).collect(),
            misshapen: vec![Misshapen { name: "s".into(), expected: vec![2, 3], found: vec![3] }],
            unsupported: vec![("d".into(), Dtype::I8)],
            unexpected: vec!["u".into()],
            stored_as: [("m0", "gone"), ("s", "t")].map(|(a, b)| (a.into(), b.into())).into(),
        };
        assert_eq!(
            Error::Tensors(Box::new(report)).to_string(),
            "the checkpoint does not match its config:\
             \n  10 missing: `m0` (stored as `gone`), `m1`, `m2`, `m3`, `m4`, `m5`, `m6`, `m7` and 2 more\
             \n  1 of another shape: `s` (stored as `t`) (expected [2, 3], found [3])\
             \n  1 of another dtype than BF16, F16, F32 and F64: `d` (I8)\
             \n  1 unexpected: `u`"
        );
    }
}
