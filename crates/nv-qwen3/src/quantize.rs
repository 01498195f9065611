//! Writing a model's matrices as kernels stream them.

use std::path::{Path, PathBuf};

use nv_config::Qwen3Config;
use nv_kernels::Pool;
use nv_weights::{Checkpoint, CheckpointWriter, Dtype, NewTensor, Shards};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::load::check_tensors;
use crate::preset::Preset;
use crate::sources::{Located, PlainTensors, locate, locate_once, packed_bytes, quantize_rows};
use crate::spec::TensorSpec;
use crate::weight::AlignedBytes;

/// A model that is to be written quantised.
#[derive(Debug)]
pub struct Quantizer<'a> {
    source: &'a dyn PlainTensors,
    preset: Preset,
    /// Matrices first: their sizes keep what follows aligned.
    tensors: Vec<Located>,
    max_shard_bytes: usize,
    /// Of all tensors, as plain numbers.
    num_bytes: usize,
}

impl<'a> Quantizer<'a> {
    /// Rows that are in memory at once: a multiple of those that formats store together.
    const ROWS: usize = 512;

    /// As Hugging Face's libraries split checkpoints.
    const MAX_SHARD_BYTES: usize = 5_000_000_000;

    /// For the model of `config` and `checkpoint`.
    ///
    /// # Errors
    /// As [`check_tensors`]; [`Error::AlreadyQuantized`] if the checkpoint is.
    pub fn new(
        config: &'a Qwen3Config,
        checkpoint: &'a Checkpoint,
        preset: Preset,
    ) -> Result<Self> {
        if config.quantization_config.is_some() {
            return Err(Error::AlreadyQuantized);
        }
        check_tensors(config, checkpoint)?;
        let tensors = if config.tie_word_embeddings {
            locate_once(config, checkpoint, |_, _| true)
        } else {
            // What the config asks for is written, though it be equal to another tensor.
            locate(config, |name| checkpoint.get(name).is_some())
        };
        Self::of_tensors(tensors, checkpoint, preset)
    }

    /// For the tensors that `config` implies, which `source` has: in the shapes that it implies, as BF16, F16, F32 or F64.
    ///
    /// # Errors
    /// [`Error::AlreadyQuantized`] if `config` says so; what the source returns.
    pub fn from_source(
        config: &Qwen3Config,
        source: &'a dyn PlainTensors,
        preset: Preset,
    ) -> Result<Self> {
        if config.quantization_config.is_some() {
            return Err(Error::AlreadyQuantized);
        }
        Self::of_tensors(locate(config, |_| false), source, preset)
    }

    fn of_tensors(
        mut tensors: Vec<Located>,
        source: &'a dyn PlainTensors,
        preset: Preset,
    ) -> Result<Self> {
        tensors.sort_by_key(|tensor| preset.format(tensor.spec.role).is_none());
        let mut num_bytes = 0;
        for tensor in &tensors {
            num_bytes += tensor.spec.num_elements() * source.tensor(tensor)?.dtype.bitsize() / 8;
        }
        let max_shard_bytes = Self::MAX_SHARD_BYTES;
        Ok(Self { source, preset, tensors, max_shard_bytes, num_bytes })
    }

    /// The same in files of at most so many bytes of tensors each, but for those of a single one.
    #[must_use]
    pub fn with_max_shard_bytes(self, max_shard_bytes: usize) -> Self {
        Self { max_shard_bytes, ..self }
    }

    /// The bytes that are to be read.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// `config.json` as it stands beside the weights: `original` with a `quantization_config`.
    ///
    /// # Errors
    /// [`Error::ConfigJson`] if `original` is not a JSON object.
    pub fn config_json(&self, original: &str) -> Result<String> {
        let mut config: Map<String, Value> =
            serde_json::from_str(original).map_err(|source| Error::ConfigJson { source })?;
        let specs: Vec<_> = self.tensors.iter().map(|tensor| tensor.spec.clone()).collect();
        let packed = self.preset.packed_config(&specs).to_json();
        config.insert("quantization_config".to_owned(), packed);
        Ok(format!("{:#}\n", Value::Object(config)))
    }

    /// Writes the weights, and `files` with their names, into the new folder `dir`.
    ///
    /// `progress` is told of the bytes that were read, piece by piece; where it answers false, the writer stops.
    /// The memory that this takes doesn't depend on the size of the model. A folder that isn't complete never bears the name.
    ///
    /// # Errors
    /// [`Error::Quantize`] with the place of a number that isn't finite, or too large for the format; [`Error::Write`] if `dir`
    /// exists, and for what the system says; [`Error::Stopped`] if `progress` says so.
    pub fn write(
        &self,
        dir: &Path,
        files: &[(PathBuf, Vec<u8>)],
        pool: &Pool,
        mut progress: impl FnMut(usize) -> bool,
    ) -> Result<Vec<PathBuf>> {
        let shards = Shards { max_bytes: self.max_shard_bytes, alignment: 64 };
        let mut new = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            new.push(self.new_tensor(tensor)?);
        }
        let num_parameters = self.tensors.iter().map(|tensor| tensor.spec.num_elements() as u64);
        let mut writer = CheckpointWriter::create(dir, new, num_parameters.sum(), shards)?;
        for (name, content) in files {
            writer.write_file(name, content)?;
        }
        let mut go_on = |num_bytes| {
            if progress(num_bytes) { Ok(()) } else { Err(Error::Stopped { dir: dir.into() }) }
        };
        for tensor in &self.tensors {
            let Some(format) = self.preset.format(tensor.spec.role) else {
                self.source.bytes(tensor, &mut |bytes| {
                    writer.write(bytes)?;
                    go_on(bytes.len())
                })?;
                continue;
            };
            let plain = self.source.tensor(tensor)?;
            let (num_rows, in_features) = tensor.spec.matrix_shape();
            for first in (0..num_rows).step_by(Self::ROWS) {
                let rows = first..num_rows.min(first + Self::ROWS);
                let num_rows = rows.len();
                let mut packed = AlignedBytes::zeroed(packed_bytes(format, num_rows, in_features));
                quantize_rows(pool, format, &plain, rows, packed.as_mut_slice())?;
                writer.write(packed.as_slice())?;
                go_on(num_rows * in_features * plain.dtype.bitsize() / 8)?;
            }
            self.source.release(tensor);
        }
        Ok(writer.finish()?)
    }

    /// The tensor as it is stored in the new checkpoint, under its name in the graph.
    fn new_tensor(&self, tensor: &Located) -> Result<NewTensor> {
        let TensorSpec { name, role, shape } = tensor.spec.clone();
        Ok(match self.preset.format(role) {
            Some(format) => {
                let (out_features, in_features) = tensor.spec.matrix_shape();
                let shape = vec![packed_bytes(format, out_features, in_features)];
                NewTensor { name, dtype: Dtype::U8, shape }
            }
            None => NewTensor { name, dtype: self.source.tensor(tensor)?.dtype, shape },
        })
    }
}
