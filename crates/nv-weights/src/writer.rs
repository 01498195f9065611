//! Writing a checkpoint: a folder of safetensors files that appears under its name only when it is complete.
//!
//! Tensors are written as they are made, in pieces: memory stays the same for any size of checkpoint. Knows nothing of what
//! the bytes mean.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::vec;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use tempfile::TempDir;

/// A result of the writer.
type Result<T, E = WriteError> = std::result::Result<T, E>;

const INDEX: &str = "model.safetensors.index.json";

/// How tensors are put into files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shards {
    /// The bytes of a file's tensors at most; one holds more only if a single tensor does.
    pub max_bytes: usize,
    /// The first tensor of a file starts at a multiple of it, and so do all others whose predecessors' sizes are. 8 or more.
    pub alignment: usize,
}

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// What its elements are.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Why a checkpoint could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The folder is there already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A folder could not be created.
    #[error("cannot create {}", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the checkpoint could not be written.
    #[error("cannot write {file} for {}", dir.display())]
    Write {
        /// The file's name.
        file: String,
        /// The folder of the checkpoint.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A checkpoint that is being written. One that is dropped before it is [finished](Self::finish) leaves nothing behind.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: PathBuf,
    /// Removed when dropped.
    scratch: TempDir,
    /// Only now: they hold the folder above.
    #[expect(dead_code, reason = "is there to be dropped")]
    new_parents: NewFolders,
    index: Option<String>,
    names: Vec<String>,
    alignment: usize,
    shards: vec::IntoIter<(String, Vec<NewTensor>)>,
    file: Option<ShardFile>,
}

/// The file that is being written.
#[derive(Debug)]
struct ShardFile {
    name: String,
    file: BufWriter<File>,
    /// Bytes of tensors that are still to come.
    num_missing: usize,
}

impl NewTensor {
    /// The bytes of its elements.
    ///
    /// # Panics
    /// If they are no whole number of bytes, or more than there are addresses.
    pub fn num_bytes(&self) -> usize {
        let num_elements = self.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let num_bits = num_elements.and_then(|n| n.checked_mul(self.dtype.bitsize()));
        let num_bits = num_bits.unwrap_or_else(|| panic!("`{}` is too large", self.name));
        assert!(num_bits.is_multiple_of(8), "`{}` has {num_bits} bits", self.name);
        num_bits / 8
    }
}

impl CheckpointWriter {
    /// Begins the new folder `dir` with weights of `num_parameters` as `tensors`, in this order, in files as `shards` says.
    ///
    /// # Errors
    /// [`WriteError::Exists`] if `dir` does; [`WriteError::Create`] for what the system says.
    pub fn create(
        dir: &Path,
        tensors: Vec<NewTensor>,
        num_parameters: u64,
        shards: Shards,
    ) -> Result<Self> {
        if dir.symlink_metadata().is_ok() {
            return Err(WriteError::Exists { path: dir.into() });
        }
        let parent = match dir.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let create = |path: &Path| {
            let path = path.to_owned();
            move |source| WriteError::Create { path, source }
        };
        let new_parents = NewFolders::create(parent).map_err(create(parent))?;
        // Beside it, so that it is renamed within a file system.
        let scratch =
            tempfile::Builder::new().prefix(".nv-").tempdir_in(parent).map_err(create(dir))?;
        fs::create_dir(scratch.path().join(PART)).map_err(create(dir))?;
        let alignment = shards.alignment;
        let shards = split(tensors, shards.max_bytes);
        let names = file_names(shards.len());
        let index = (shards.len() > 1).then(|| index(&shards, &names, num_parameters));
        let shards: Vec<_> = names.iter().cloned().zip(shards).collect();
        let (dir, shards) = (dir.to_owned(), shards.into_iter());
        Ok(Self { dir, scratch, new_parents, index, names, alignment, shards, file: None })
    }

    /// Writes another file, by its name within the folder.
    ///
    /// # Errors
    /// [`WriteError::Write`] for what the system says.
    pub fn write_file(&self, name: impl AsRef<Path>, content: &[u8]) -> Result<()> {
        let path = self.scratch.path().join(PART).join(&name);
        let written = match path.parent() {
            Some(parent) => fs::create_dir_all(parent).and_then(|()| fs::write(&path, content)),
            None => fs::write(&path, content),
        };
        written.map_err(|source| self.failed(&name.as_ref().to_string_lossy(), source))
    }

    /// Writes the next bytes of the tensors, which may be a part of one or parts of several.
    ///
    /// # Errors
    /// [`WriteError::Write`] for what the system says.
    ///
    /// # Panics
    /// If there are more bytes than the tensors have.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let mut shard = match self.file.take() {
                Some(shard) => shard,
                None => self.next_shard()?,
            };
            let (now, later) = bytes.split_at(bytes.len().min(shard.num_missing));
            shard.file.write_all(now).map_err(|source| self.failed(&shard.name, source))?;
            shard.num_missing -= now.len();
            bytes = later;
            if shard.num_missing == 0 {
                self.close(shard)?;
            } else {
                self.file = Some(shard);
            }
        }
        Ok(())
    }

    /// Gives the folder its name, and returns the paths of its weight files, in order.
    ///
    /// # Errors
    /// [`WriteError::Write`] and [`WriteError::Create`] for what the system says; [`WriteError::Exists`] if there is such a folder by now.
    ///
    /// # Panics
    /// If bytes of tensors are missing.
    pub fn finish(mut self) -> Result<Vec<PathBuf>> {
        // Tensors without elements may be all that is left.
        while self.file.is_none() && self.shards.len() > 0 {
            let shard = self.next_shard()?;
            assert_eq!(shard.num_missing, 0, "{} lacks tensors", shard.name);
            self.close(shard)?;
        }
        assert!(self.file.is_none(), "the last file is not complete");
        if let Some(index) = &self.index {
            self.write_file(INDEX, index.as_bytes())?;
        }
        let create = |source| WriteError::Create { path: self.dir.clone(), source };
        if self.dir.symlink_metadata().is_ok() {
            return Err(WriteError::Exists { path: self.dir });
        }
        fs::rename(self.scratch.path().join(PART), &self.dir).map_err(create)?;
        Ok(self.names.iter().map(|name| self.dir.join(name)).collect())
    }

    fn next_shard(&mut self) -> Result<ShardFile> {
        let (name, tensors) = self.shards.next().expect("tensors have as many bytes as they say");
        let create = || {
            let mut file = BufWriter::new(File::create(self.path_of(&name))?);
            file.write_all(&header(&tensors, self.alignment))?;
            Ok(file)
        };
        let file = create().map_err(|source| self.failed(&name, source))?;
        let num_missing = tensors.iter().map(NewTensor::num_bytes).sum();
        Ok(ShardFile { name, file, num_missing })
    }

    fn close(&self, shard: ShardFile) -> Result<()> {
        let ShardFile { name, file, .. } = shard;
        let synced = file.into_inner().map_err(io::IntoInnerError::into_error);
        synced.and_then(|file| file.sync_all()).map_err(|source| self.failed(&name, source))
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.scratch.path().join(PART).join(name)
    }

    fn failed(&self, file: &str, source: io::Error) -> WriteError {
        WriteError::Write { file: file.into(), dir: self.dir.clone(), source }
    }
}

/// Folders that were created for what is to stand in them. When dropped, those that are empty go.
#[derive(Debug)]
struct NewFolders {
    /// The innermost first.
    paths: Vec<PathBuf>,
}

impl NewFolders {
    /// Creates `path` with all that it stands in.
    ///
    /// # Errors
    /// What the system says.
    fn create(path: &Path) -> io::Result<Self> {
        let missing = path
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && path.symlink_metadata().is_err());
        let new = Self { paths: missing.map(Path::to_owned).collect() };
        fs::create_dir_all(path)?;
        Ok(new)
    }
}

impl Drop for NewFolders {
    fn drop(&mut self) {
        for path in &self.paths {
            if fs::remove_dir(path).is_err() {
                break;
            }
        }
    }
}

/// The folder's name while it is incomplete.
const PART: &str = "checkpoint";

/// Fills shards in order.
fn split(tensors: Vec<NewTensor>, max_bytes: usize) -> Vec<Vec<NewTensor>> {
    let mut shards: Vec<Vec<NewTensor>> = Vec::new();
    let mut filled = usize::MAX;
    for tensor in tensors {
        let size = tensor.num_bytes();
        match shards.last_mut() {
            Some(shard) if filled.saturating_add(size) <= max_bytes => {
                filled += size;
                shard.push(tensor);
            }
            _ => {
                filled = size;
                shards.push(vec![tensor]);
            }
        }
    }
    shards
}

fn file_names(num_shards: usize) -> Vec<String> {
    if num_shards == 1 {
        return vec!["model.safetensors".to_owned()];
    }
    (1..=num_shards).map(|i| format!("model-{i:05}-of-{num_shards:05}.safetensors")).collect()
}

/// The `model.safetensors.index.json` of `shards`.
fn index(shards: &[Vec<NewTensor>], names: &[String], num_parameters: u64) -> String {
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (shard, file) in shards.iter().zip(names) {
        for tensor in shard {
            weight_map.insert(&tensor.name, file);
            total_size += tensor.num_bytes();
        }
    }
    let metadata = json!({ "total_parameters": num_parameters, "total_size": total_size });
    format!("{:#}\n", json!({ "metadata": metadata, "weight_map": weight_map }))
}

/// The header's length and the header, padded with spaces so that data start at a multiple of `alignment`.
///
/// `safetensors::serialize` wants every tensor in memory; its `Metadata` does the part that doesn't.
fn header(shard: &[NewTensor], alignment: usize) -> Vec<u8> {
    const LEN: usize = size_of::<u64>();
    let mut end = 0;
    let infos = shard.iter().map(|tensor| {
        let start = end;
        end += tensor.num_bytes();
        let (dtype, shape, data_offsets) = (tensor.dtype, tensor.shape.clone(), (start, end));
        (tensor.name.clone(), TensorInfo { dtype, shape, data_offsets })
    });
    // transformers refuses a file that doesn't say which framework wrote it.
    let framework = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata =
        Metadata::new(Some(framework), infos.collect()).expect("tensors follow one another");
    let mut json = serde_json::to_vec(&metadata).expect("a header is plain JSON");
    json.resize((LEN + json.len()).next_multiple_of(alignment) - LEN, b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> NewTensor {
        NewTensor { name: name.into(), dtype, shape: shape.into() }
    }

    const ONE: Shards = Shards { max_bytes: usize::MAX, alignment: 8 };

    fn three() -> Vec<NewTensor> {
        vec![
            tensor("a", Dtype::U8, &[64]),
            tensor("b", Dtype::BF16, &[2, 3]),
            tensor("empty", Dtype::F32, &[0]),
        ]
    }

    #[test]
    fn pieces_of_any_length_make_the_same_tensors() {
        let bytes: Vec<u8> = (0..76).collect();
        for (max_bytes, num_files) in [(usize::MAX, 1), (64, 2), (0, 3)] {
            for piece in [1, 7, 64, 76] {
                let dir = tempfile::tempdir().unwrap();
                let out = dir.path().join("new/model");
                let shards = Shards { max_bytes, alignment: 64 };
                let mut writer = CheckpointWriter::create(&out, three(), 70, shards).unwrap();
                writer.write_file("config.json", b"{}").unwrap();
                for piece in bytes.chunks(piece) {
                    writer.write(piece).unwrap();
                }
                assert!(!out.exists());
                let paths = writer.finish().unwrap();
                assert_eq!(paths.len(), num_files);
                let checkpoint = Checkpoint::open(&paths).unwrap();
                let of = |name| checkpoint.tensor(name).unwrap();
                assert_eq!((of("a").bytes(), of("b").bytes()), (&bytes[..64], &bytes[64..]));
                assert!(of("a").bytes().as_ptr().addr().is_multiple_of(64));
                assert_eq!((of("b").dtype(), of("b").shape()), (Dtype::BF16, &[2, 3][..]));
                assert!(of("empty").bytes().is_empty());
                assert_eq!(out.join(INDEX).exists(), num_files > 1);
                assert_eq!(fs::read(out.join("config.json")).unwrap(), b"{}");
                assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
            }
        }
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("old")).unwrap();
        for out in ["model", "new/deep/model", "old/new/model"] {
            let out = dir.path().join(out);
            let mut writer = CheckpointWriter::create(&out, three(), 70, ONE).unwrap();
            writer.write(&[0; 10]).unwrap();
            assert!(out.parent().unwrap().is_dir());
            drop(writer);
            let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
            assert_eq!(names.collect::<Vec<_>>(), ["old"], "{}", out.display());
            assert_eq!(fs::read_dir(dir.path().join("old")).unwrap().count(), 0);
        }
        // A folder that another process has put something into stays.
        let writer = CheckpointWriter::create(&dir.path().join("new/model"), three(), 70, ONE);
        fs::write(dir.path().join("new/theirs"), "").unwrap();
        drop(writer.unwrap());
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
    }

    #[test]
    fn a_place_where_nothing_can_be_created_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "mine").unwrap();
        let error =
            CheckpointWriter::create(&file.join("new/model"), three(), 70, ONE).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot create {}", file.join("new").display()));
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");
        let create = || CheckpointWriter::create(&out, three(), 70, ONE);
        let mut writer = create().unwrap();
        writer.write(&[0; 76]).unwrap();
        fs::write(&out, "mine").unwrap();
        let expected = format!("{} exists already", out.display());
        assert_eq!(writer.finish().unwrap_err().to_string(), expected);
        assert_eq!(create().unwrap_err().to_string(), expected);
        assert_eq!(fs::read(&out).unwrap(), b"mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
