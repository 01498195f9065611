//! The tensors of a model, by name, borrowed from the bytes of its files.
//!
//! Knows nothing of which tensors a model should have.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::header::{Header, TensorInfo};
use crate::mapping::Mapping;
use crate::var_builder;

/// The tensors of one or more safetensors files, checked in full and not yet read.
///
/// Opening costs what parsing the headers costs. Tensors are borrowed from the files' bytes; nothing is converted.
pub struct Checkpoint {
    files: Vec<CheckpointFile>,
    /// Each with the index of its file; sorted by name, all names different.
    tensors: Vec<(usize, TensorInfo)>,
}

/// One file of a [`Checkpoint`].
pub struct CheckpointFile {
    path: PathBuf,
    bytes: Mapping,
    metadata: BTreeMap<String, String>,
}

/// A tensor borrowed from a [`Checkpoint`]: name, dtype, shape and little-endian bytes in row-major order.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    file: &'a CheckpointFile,
    info: &'a TensorInfo,
}

/// A tensor that keeps its [`Checkpoint`] open: for weights that outlive the scope that loaded them.
#[derive(Clone)]
pub struct SharedTensor {
    checkpoint: Arc<Checkpoint>,
    index: usize,
}

impl Checkpoint {
    /// Maps the safetensors files at `paths` read-only.
    ///
    /// The files must not be changed in place for as long as the checkpoint lives: another process that writes into
    /// one changes tensors under their readers, one that cuts it short kills the process that reads there. Replacing a
    /// file by renaming another over it is harmless. [`Self::read`] makes a copy instead.
    ///
    /// # Errors
    /// An error that names the file, and the tensor if there is one, for a file that can't be opened, is no safetensors
    /// file, is cut short, or has a header that contradicts itself or the file's size; [`Error::DuplicateTensor`] for a
    /// tensor in two files; [`Error::NoFiles`] if `paths` is empty.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        Self::from_mappings(paths, Mapping::map)
    }

    /// Copies the safetensors files at `paths` into memory: for files that others may change.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        Self::from_mappings(paths, Mapping::read)
    }

    fn from_mappings(paths: &[PathBuf], mapping: fn(&Path) -> Result<Mapping>) -> Result<Self> {
        if paths.is_empty() {
            return Err(Error::NoFiles);
        }
        let mut files = Vec::with_capacity(paths.len());
        let mut tensors = Vec::new();
        for (file, path) in paths.iter().enumerate() {
            let bytes = mapping(path)?;
            let header = Header::parse(path, &bytes)?;
            tensors.extend(header.tensors.into_iter().map(|info| (file, info)));
            files.push(CheckpointFile { path: path.clone(), bytes, metadata: header.metadata });
        }
        tensors.sort_unstable_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        match tensors.array_windows().find(|[(_, a), (_, b)]| a.name == b.name) {
            None => Ok(Self { files, tensors }),
            Some([(first, info), (second, _)]) => Err(Error::DuplicateTensor {
                name: info.name.clone(),
                first: paths[*first].clone(),
                second: paths[*second].clone(),
            }),
        }
    }

    /// The tensor `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        Some(self.view(self.find(name)?))
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// [`Error::TensorNotFound`], which lists the files that were searched.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.get(name).ok_or_else(|| self.not_found(name))
    }

    /// The tensor `name`, with a share in the checkpoint.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn shared_tensor(self: &Arc<Self>, name: &str) -> Result<SharedTensor> {
        let index = self.find(name).ok_or_else(|| self.not_found(name))?;
        Ok(SharedTensor { checkpoint: Arc::clone(self), index })
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        (0..self.tensors.len()).map(|index| self.view(index))
    }

    /// The files, in the order they were given.
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// The size of all tensors together, in bytes.
    pub fn num_bytes(&self) -> usize {
        self.tensors().map(|tensor| tensor.bytes().len()).sum()
    }

    /// A candle `VarBuilder` over these tensors, which it keeps open.
    ///
    /// BF16, F16, F32 and F64 tensors are copied to `device` and converted to `dtype` when they are asked for; candle's
    /// own tensors can't borrow a mapping. Other dtypes, other shapes and absent tensors are errors then.
    pub fn var_builder(self: &Arc<Self>, dtype: DType, device: &Device) -> VarBuilder<'static> {
        var_builder::new(Arc::clone(self), dtype, device)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|(_, info)| info.name.as_str().cmp(name)).ok()
    }

    fn view(&self, index: usize) -> TensorView<'_> {
        let (file, info) = &self.tensors[index];
        TensorView { file: &self.files[*file], info }
    }

    fn not_found(&self, name: &str) -> Error {
        let paths = self.files.iter().map(|file| file.path.clone()).collect();
        Error::TensorNotFound { name: name.into(), paths }
    }
}

impl CheckpointFile {
    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the file, in bytes.
    pub fn num_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The notes that the file's writer left in its header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl<'a> TensorView<'a> {
    /// The name.
    pub fn name(&self) -> &'a str {
        &self.info.name
    }

    /// The dtype that the tensor is stored in.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// The shape; empty for a scalar.
    pub fn shape(&self) -> &'a [usize] {
        &self.info.shape
    }

    /// The stored bytes: little-endian elements in row-major order, as many as dtype and shape say.
    pub fn bytes(&self) -> &'a [u8] {
        &self.file.bytes[self.info.range.clone()]
    }

    /// The file that holds the tensor.
    pub fn path(&self) -> &'a Path {
        &self.file.path
    }

    /// The elements of a BF16 tensor, borrowed from the file.
    ///
    /// # Errors
    /// [`Error::Dtype`] for another dtype; [`Error::Misaligned`] if the file stores the data at an odd address:
    /// the `VarBuilder` still reads such a tensor, for it copies.
    pub fn as_bf16(&self) -> Result<&'a [bf16]> {
        self.elements(Dtype::BF16)
    }

    /// The elements of an F16 tensor, borrowed from the file.
    ///
    /// # Errors
    /// As [`Self::as_bf16`].
    pub fn as_f16(&self) -> Result<&'a [f16]> {
        self.elements(Dtype::F16)
    }

    /// The elements of an F32 tensor, borrowed from the file.
    ///
    /// # Errors
    /// As [`Self::as_bf16`].
    pub fn as_f32(&self) -> Result<&'a [f32]> {
        self.elements(Dtype::F32)
    }

    /// `T` must be the type of `dtype`'s elements.
    fn elements<T: AnyBitPattern>(&self, dtype: Dtype) -> Result<&'a [T]> {
        let (path, name) = (|| self.path().to_path_buf(), || self.name().to_owned());
        if self.dtype() != dtype {
            let (expected, found) = (dtype, self.dtype());
            return Err(Error::Dtype { path: path(), name: name(), expected, found });
        }
        bytemuck::try_cast_slice(self.bytes()).map_err(|_| Error::Misaligned {
            path: path(),
            name: name(),
            dtype,
        })
    }
}

impl SharedTensor {
    /// The tensor, borrowed. Costs next to nothing.
    pub fn view(&self) -> TensorView<'_> {
        self.checkpoint.view(self.index)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("files", &self.files)
            .field("num_tensors", &self.tensors.len())
            .finish()
    }
}

impl fmt::Debug for CheckpointFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointFile")
            .field("path", &self.path)
            .field("num_bytes", &self.num_bytes())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorView")
            .field("name", &self.name())
            .field("dtype", &self.dtype())
            .field("shape", &self.shape())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SharedTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedTensor").field(&self.view()).finish()
    }
}
