//! Writing a model's matrices as kernels stream them.

use std::path::{Path, PathBuf};

use nv_config::Qwen3Config;
use nv_kernels::Pool;
use nv_weights::{Checkpoint, CheckpointWriter, Dtype, NewTensor, Shards};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::load::check_tensors;
use crate::preset::Preset;
use crate::sources::{Located, locate, locate_once, packed_bytes, quantize_rows};
use crate::weight::AlignedBytes;

/// A model that is to be written quantised.
#[derive(Debug)]
pub struct Quantizer<'a> {
    checkpoint: &'a Checkpoint,
    preset: Preset,
    /// Matrices first: their sizes keep what follows aligned.
    tensors: Vec<Located>,
}

impl<'a> Quantizer<'a> {
    /// Rows that are in memory at once: a multiple of those that formats store together.
    const ROWS: usize = 512;

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
        let mut tensors = if config.tie_word_embeddings {
            locate_once(config, checkpoint, |_, _| true)
        } else {
            // What the config asks for is written, though it be equal to another tensor.
            locate(config, |name| checkpoint.get(name).is_some())
        };
        tensors.sort_by_key(|tensor| preset.format(tensor.spec.role).is_none());
        Ok(Self { checkpoint, preset, tensors })
    }

    /// The bytes that are to be read.
    pub fn num_bytes(&self) -> usize {
        let views = self.tensors.iter().filter_map(|tensor| self.checkpoint.get(&tensor.stored_as));
        views.map(|view| view.bytes().len()).sum()
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
        /// As Hugging Face's libraries split checkpoints.
        const SHARDS: Shards = Shards { max_bytes: 5_000_000_000, alignment: 64 };
        let mut new = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            new.push(self.new_tensor(tensor)?);
        }
        let num_parameters = self.tensors.iter().map(|tensor| tensor.spec.num_elements() as u64);
        let mut writer = CheckpointWriter::create(dir, new, num_parameters.sum(), SHARDS)?;
        for (name, content) in files {
            writer.write_file(name, content)?;
        }
        let mut go_on = |num_bytes| {
            if progress(num_bytes) { Ok(()) } else { Err(Error::Stopped { dir: dir.into() }) }
        };
        for tensor in &self.tensors {
            let view = self.checkpoint.tensor(&tensor.stored_as)?;
            let Some(format) = self.preset.format(tensor.spec.role) else {
                writer.write(view.bytes())?;
                go_on(view.bytes().len())?;
                continue;
            };
            let num_rows = view.shape()[0];
            for first in (0..num_rows).step_by(Self::ROWS) {
                let rows = first..num_rows.min(first + Self::ROWS);
                let num_bytes_packed = packed_bytes(format, rows.len(), view.shape()[1]);
                let mut packed = AlignedBytes::zeroed(num_bytes_packed);
                let num_bytes = view.bytes().len() / num_rows * rows.len();
                quantize_rows(pool, format, view, rows, packed.as_mut_slice())?;
                writer.write(packed.as_slice())?;
                go_on(num_bytes)?;
            }
            view.release();
        }
        Ok(writer.finish()?)
    }

    /// The tensor as it is stored in the new checkpoint, under its name in the graph.
    fn new_tensor(&self, tensor: &Located) -> Result<NewTensor> {
        let view = self.checkpoint.tensor(&tensor.stored_as)?;
        let name = tensor.spec.name.clone();
        Ok(match self.preset.format(tensor.spec.role) {
            Some(format) => {
                let shape = vec![packed_bytes(format, view.shape()[0], view.shape()[1])];
                NewTensor { name, dtype: Dtype::U8, shape }
            }
            None => NewTensor { name, dtype: view.dtype(), shape: view.shape().to_vec() },
        })
    }
}
