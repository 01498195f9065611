//! The tensors of a model, by name, borrowed from the bytes of its files.
//!
//! Knows nothing of which tensors a model should have.

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::AnyBitPattern;
use candle_core::DType;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::header::{Header, TensorInfo};
use crate::mapping::Mapping;

/// How many bytes a mapped byte that is touched brings along on Linux (`fault_around_bytes`), if they are in memory.
const FAULT_AROUND_BYTES: usize = 64 << 10;

/// The tensors of one or more safetensors files, checked in full and not yet read.
///
/// Opening costs what parsing the headers costs. Tensors are borrowed from the files' bytes; nothing is converted.
///
/// A name that no file stores may still be a tensor's: safetensors' `save_model` writes tensors that share memory once, and
/// says in the file's metadata what the others are [stored as](Self::stored_as). Tensors are found by these names, too.
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
    /// one changes tensors under their readers; one that cuts it short has the system kill the process that reads behind
    /// the new end (`SIGBUS` on Unix). A file that was cut before is refused with the sizes. Replacing a
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

    /// The name that the metadata of a file give for `name`, which no file stores. There may be no tensor of that name.
    pub fn stored_as(&self, name: &str) -> Option<&str> {
        let stored_as = || self.files.iter().find_map(|file| file.metadata.get(name));
        self.position(name).map_or_else(stored_as, |_| None).map(String::as_str)
    }

    /// All tensors, sorted by the names that they are stored under.
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

    /// Touches the files' pages from first to last until `stop` is raised, so that they are in memory and in the
    /// process's page table when tensors are used.
    ///
    /// For a thread with nothing better to do: a mapped page that nobody has touched costs its first reader a page
    /// fault, or a read from disk. Pages stay shared with other processes.
    pub fn prefetch(&self, stop: &AtomicBool) {
        for file in &self.files {
            for bytes in file.bytes().chunks(FAULT_AROUND_BYTES) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                black_box(bytes[0]);
            }
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.position(name).or_else(|| self.position(self.stored_as(name)?))
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|(_, info)| info.name.as_str().cmp(name)).ok()
    }

    fn view(&self, index: usize) -> TensorView<'_> {
        let (file, info) = &self.tensors[index];
        TensorView { file: &self.files[*file], info }
    }

    fn not_found(&self, name: &str) -> Error {
        let paths = self.files.iter().map(|file| file.path.clone()).collect();
        let stored_as = self.stored_as(name).map(str::to_owned);
        Error::TensorNotFound { name: name.into(), stored_as, paths }
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

    /// The whole file, header included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The notes that the file's writer left in its header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl<'a> TensorView<'a> {
    /// The name that the tensor is stored under.
    pub fn name(&self) -> &'a str {
        &self.info.name
    }

    /// The dtype that the tensor is stored in.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// The dtype in candle's terms.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`] unless it is BF16, F16, F32 or F64, which the `VarBuilder` converts.
    pub fn float_dtype(&self) -> Result<DType> {
        match self.dtype() {
            Dtype::BF16 => Ok(DType::BF16),
            Dtype::F16 => Ok(DType::F16),
            Dtype::F32 => Ok(DType::F32),
            Dtype::F64 => Ok(DType::F64),
            dtype => {
                let (path, name) = (self.path().into(), self.name().into());
                Err(Error::UnsupportedDtype { path, name, dtype })
            }
        }
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

    /// Takes the tensor's pages out of the process, if the checkpoint maps its files: for one that isn't read again soon. It can
    /// still be read.
    pub fn release(&self) {
        self.file.bytes.release(self.info.range.clone());
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

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    #[cfg(target_os = "linux")]
    use std::slice;

    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    #[cfg(target_os = "linux")]
    use crate::child;

    /// A safetensors file of these tensors, `(name, dtype, shape, bytes)`; its data begin at a multiple of 8,
    /// plus `shift`.
    pub(crate) fn safetensors(tensors: &[(&str, &str, &[usize], &[u8])], shift: usize) -> Vec<u8> {
        let mut data = Vec::new();
        let mut entries = Vec::new();
        for (name, dtype, shape, bytes) in tensors {
            let begin = data.len();
            data.extend_from_slice(bytes);
            let end = data.len();
            entries.push(format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
            ));
        }
        let mut json = format!("{{{}}}", entries.join(","));
        json += &" ".repeat(json.len().next_multiple_of(8) - json.len() + shift);
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.into_bytes());
        file.extend(data);
        file
    }

    /// Writes `content` into `dir`; returns the path.
    pub(crate) fn write(dir: &tempfile::TempDir, name: &str, content: &[u8]) -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/from_python.safetensors")
    }

    /// What the fixture's script writes into a tensor of `len` elements, before rounding.
    pub(crate) fn fixture_values(len: u8) -> impl Iterator<Item = f32> {
        (0..len).map(|i| (f32::from(i) - 3.0) / 3.0)
    }

    #[test]
    fn a_file_of_pythons_writer_reads_equal() {
        for open in [Checkpoint::open, Checkpoint::read] {
            let checkpoint = open(&[fixture()]).unwrap();
            let names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name()).collect();
            assert_eq!(names, ["bf16", "empty", "f16", "f32", "f64", "ids", "scalar"]);
            let tensor = |name| checkpoint.tensor(name).unwrap();

            assert_eq!(tensor("bf16").shape(), [4, 5]);
            let expected: Vec<_> = fixture_values(20).map(bf16::from_f32).collect();
            assert_eq!(tensor("bf16").as_bf16().unwrap(), expected);
            assert_eq!(tensor("f16").shape(), [3, 1, 2]);
            let expected: Vec<_> = fixture_values(6).map(f16::from_f32).collect();
            assert_eq!(tensor("f16").as_f16().unwrap(), expected);
            assert_eq!(tensor("f32").shape(), [2, 3]);
            let expected: Vec<_> = fixture_values(6).collect();
            assert_eq!(tensor("f32").as_f32().unwrap(), expected);
            assert!(tensor("scalar").shape().is_empty());
            assert_eq!(tensor("scalar").as_f32().unwrap(), [-1.0]);
            assert_eq!(tensor("empty").shape(), [0, 3]);
            assert!(tensor("empty").as_f32().unwrap().is_empty());
            assert_eq!(tensor("ids").dtype(), Dtype::I64);
            assert_eq!(tensor("ids").bytes()[8..16], 1i64.to_le_bytes());

            let [file] = checkpoint.files() else { panic!("one file") };
            assert_eq!(file.path(), fixture());
            assert_eq!(file.num_bytes() as u64, fs::metadata(fixture()).unwrap().len());
            assert_eq!(file.metadata()["format"], "pt");
            assert_eq!(checkpoint.num_bytes(), 20 * 2 + 6 * 2 + 6 * 4 + 7 * 8 + 4 + 4 * 8);
        }
    }

    /// `tensors` as [`safetensors`] has them, with `metadata`.
    fn with_metadata(tensors: &[(&str, &str, &[usize], &[u8])], metadata: &str) -> Vec<u8> {
        let file = safetensors(tensors, 0);
        let (len, rest) = file.split_first_chunk().unwrap();
        let (json, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*len)).unwrap());
        let json = str::from_utf8(json).unwrap();
        let json = json.replacen('{', &format!(r#"{{"__metadata__":{metadata},"#), 1);
        [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
    }

    #[test]
    fn tensors_are_found_by_the_names_that_metadata_give_them() {
        let dir = tempfile::tempdir().unwrap();
        let metadata = r#"{"format": "pt", "b": "a", "a": "c", "gone": "nowhere", "x": "y", "y": "x",
            "chain": "b"}"#;
        let first = with_metadata(&[("a", "U8", &[2], &[1, 2])], metadata);
        let second = with_metadata(&[("c", "U8", &[1], &[3])], r#"{"e": "a"}"#);
        let paths = [write(&dir, "1.safetensors", &first), write(&dir, "2.safetensors", &second)];
        let checkpoint = Arc::new(Checkpoint::open(&paths).unwrap());
        for name in ["a", "b", "e"] {
            let tensor = checkpoint.tensor(name).unwrap();
            assert_eq!((tensor.name(), tensor.bytes()), ("a", &[1, 2][..]), "{name}");
            assert_eq!(checkpoint.shared_tensor(name).unwrap().view().name(), "a");
        }
        let vb = checkpoint.var_builder(DType::F32, &Device::Cpu);
        assert!(vb.contains_tensor("b") && !vb.contains_tensor("chain"));
        assert_eq!(
            checkpoint.tensors().map(|tensor| tensor.name()).collect::<Vec<_>>(),
            ["a", "c"]
        );
        // A note, a tensor that is nowhere, a cycle, and a chain, which no writer makes.
        for name in ["format", "pt", "gone", "x", "y", "chain"] {
            assert!(checkpoint.get(name).is_none(), "{name}");
        }
        assert_eq!([checkpoint.stored_as("b"), checkpoint.stored_as("a")], [Some("a"), None]);
        let message = checkpoint.tensor("gone").unwrap_err().to_string();
        assert!(message.starts_with("tensor `gone` (stored as `nowhere`) is not in "), "{message}");
    }

    #[test]
    fn a_shared_tensor_outlives_its_checkpoint() {
        let checkpoint = Arc::new(Checkpoint::open(&[fixture()]).unwrap());
        let shared = checkpoint.shared_tensor("f32").unwrap();
        let address = checkpoint.tensor("f32").unwrap().bytes().as_ptr();
        assert!(checkpoint.shared_tensor("f31").is_err());
        drop(checkpoint);
        assert_eq!(shared.view().bytes().as_ptr(), address);
        assert_eq!(shared.clone().view().as_f32().unwrap()[3].to_bits(), 0);
    }

    #[test]
    fn a_file_that_was_cut_is_refused_with_its_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let whole = safetensors(&[("a", "U8", &[8], &[1; 8]), ("b", "U8", &[8], &[2; 8])], 0);
        let path = write(&dir, "x.safetensors", &whole);
        let copied = Checkpoint::read(std::slice::from_ref(&path)).unwrap();
        let len = whole.len();
        fs::File::options().write(true).open(&path).unwrap().set_len(len as u64 - 3).unwrap();
        for open in [Checkpoint::open, Checkpoint::read] {
            let error = open(std::slice::from_ref(&path)).unwrap_err();
            assert!(matches!(&error, Error::Truncated { name, .. } if name == "b"), "{error:?}");
            let message = error.to_string();
            assert!(
                message.contains(&format!("{len}")) && message.contains(&format!("{}", len - 3))
            );
        }
        // A copy doesn't notice.
        assert_eq!(copied.tensor("b").unwrap().bytes(), [2; 8]);
    }

    /// What the docs of `open` say of those who cut a file that is mapped.
    #[cfg(target_os = "linux")]
    #[test]
    fn whoever_reads_behind_the_end_of_a_mapped_file_that_was_cut_is_killed() {
        use std::os::unix::process::ExitStatusExt;

        const SIGBUS: i32 = 7;
        let name = "checkpoint::tests::whoever_reads_behind_the_end_of_a_mapped_file_that_was_cut_is_killed";
        let Some(dir) = child::dir() else {
            let dir = tempfile::tempdir().unwrap();
            let content = vec![1; 1 << 20];
            write(&dir, "x.safetensors", &safetensors(&[("a", "U8", &[1 << 20], &content)], 0));
            let output = child::run(name, "ulimit -c 0", dir.path());
            return assert_eq!(output.status.signal(), Some(SIGBUS), "{output:?}");
        };
        let path = Path::new(&dir).join("x.safetensors");
        let checkpoint = Checkpoint::open(std::slice::from_ref(&path)).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(1 << 12).unwrap();
        black_box(*checkpoint.tensor("a").unwrap().bytes().last().unwrap());
    }

    #[test]
    fn another_dtype_is_refused_by_name() {
        let checkpoint = Checkpoint::open(&[fixture()]).unwrap();
        let error = checkpoint.tensor("f16").unwrap().as_bf16().unwrap_err();
        let expected =
            format!("{}: tensor `f16`: expected dtype BF16, found F16", fixture().display());
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn misaligned_data_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let tensors: [(_, _, &[usize], &[u8]); 2] =
            [("a", "F32", &[1], &1.0f32.to_le_bytes()), ("b", "BF16", &[1], &[0x80, 0x3f])];
        let check = |shift, f32_fits, bf16_fits| {
            let path = write(&dir, "x.safetensors", &safetensors(&tensors, shift));
            let checkpoint = Checkpoint::open(std::slice::from_ref(&path)).unwrap();
            let a = checkpoint.tensor("a").unwrap();
            let b = checkpoint.tensor("b").unwrap();
            assert_eq!(a.as_f32().is_ok(), f32_fits, "{shift}");
            match b.as_bf16() {
                Ok(b) => assert!(bf16_fits && b == [bf16::ONE], "{shift}"),
                Err(Error::Misaligned { path: found, name, .. }) => {
                    assert!(!bf16_fits && found == path && name == "b", "{shift}");
                }
                Err(other) => panic!("{other}"),
            }
        };
        check(0, true, true);
        check(1, false, false);
        check(2, false, true);
        check(4, true, true);
    }

    #[test]
    fn tensors_of_several_files() {
        let dir = tempfile::tempdir().unwrap();
        let one: &[usize] = &[1];
        let first = write(
            &dir,
            "1.safetensors",
            &safetensors(&[("b", "U8", one, b"b"), ("d", "U8", one, b"d")], 0),
        );
        let second = write(
            &dir,
            "2.safetensors",
            &safetensors(&[("a", "U8", one, b"a"), ("c", "U8", one, b"c")], 0),
        );
        let checkpoint = Checkpoint::open(&[first.clone(), second.clone()]).unwrap();
        let found: Vec<_> = checkpoint
            .tensors()
            .map(|tensor| (tensor.name(), tensor.bytes(), tensor.path()))
            .collect();
        let expected: [(_, &[u8], _); 4] = [
            ("a", b"a", &*second),
            ("b", b"b", &*first),
            ("c", b"c", &*second),
            ("d", b"d", &*first),
        ];
        assert_eq!(found, expected);
        match checkpoint.tensor("e") {
            Err(Error::TensorNotFound { name, paths, .. }) => {
                assert_eq!((name.as_str(), paths), ("e", vec![first.clone(), second]));
            }
            other => panic!("{other:?}"),
        }

        let third = write(&dir, "3.safetensors", &safetensors(&[("d", "U8", one, b"d")], 0));
        match Checkpoint::open(&[first.clone(), third.clone()]) {
            Err(Error::DuplicateTensor { name, first: one, second: other }) => {
                assert_eq!(name, "d");
                assert!(
                    [one.clone(), other.clone()] == [first.clone(), third.clone()]
                        || [other, one] == [first, third]
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(Checkpoint::open(&[]), Err(Error::NoFiles)));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let whole = fs::read(fixture()).unwrap();
        for len in 0..whole.len() {
            let path = write(&dir, "cut.safetensors", &whole[..len]);
            match Checkpoint::open(std::slice::from_ref(&path)) {
                Err(
                    Error::TruncatedHeader { path: named, found, .. }
                    | Error::Truncated { path: named, found, .. },
                ) => assert_eq!((named, found), (path, len)),
                other => panic!("{len}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_refused_or_read(
            changes in prop::collection::vec((0..640usize, any::<u8>()), 1..4),
            len in prop_oneof![Just(usize::MAX), 0..640usize],
        ) {
            let mut bytes = fs::read(fixture()).unwrap();
            for (index, byte) in changes {
                *bytes.get_mut(index).unwrap_or(&mut 0) = byte;
            }
            bytes.truncate(len);
            let dir = tempfile::tempdir().unwrap();
            let path = write(&dir, "damaged.safetensors", &bytes);
            if let Ok(checkpoint) = Checkpoint::open(&[path]) {
                let checkpoint = Arc::new(checkpoint);
                let vb = checkpoint.var_builder(DType::F32, &Device::Cpu);
                for tensor in checkpoint.tensors() {
                    let elements: usize = tensor.shape().iter().product();
                    prop_assert_eq!(tensor.bytes().len() * 8, elements * tensor.dtype().bitsize());
                    let _ = (tensor.as_bf16(), tensor.as_f16(), tensor.as_f32());
                    if let Ok(copy) = vb.get_unchecked(tensor.name()) {
                        prop_assert_eq!(copy.dims(), tensor.shape());
                    }
                }
            }
        }
    }

    /// Bytes of the mapped file at `path` that are in this process's page table.
    #[cfg(target_os = "linux")]
    fn resident_bytes(path: &Path) -> usize {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let of_file = smaps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let kib = of_file.skip(1).find_map(|line| line.strip_prefix("Rss:")).unwrap();
        kib.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn prefetching_brings_every_page_until_it_is_told_to_stop() {
        const LEN: usize = 32 << 20;
        let dir = tempfile::tempdir().unwrap();
        let bytes = safetensors(&[("x", "U8", &[LEN], &vec![1; LEN])], 0);
        let path = write(&dir, "model.safetensors", &bytes);
        let checkpoint = Checkpoint::open(slice::from_ref(&path)).unwrap();

        checkpoint.prefetch(&AtomicBool::new(true));
        assert!(resident_bytes(&path) < LEN / 2);
        checkpoint.prefetch(&AtomicBool::new(false));
        assert!(resident_bytes(&path) >= LEN, "{}", resident_bytes(&path));
    }
}
