//! Bytes of a whole file, mapped or copied; the only unsafe code of this crate.
//!
//! Knows nothing of what the bytes mean.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Deref;
use std::path::Path;

use memmap2::{Mmap, MmapMut};

use crate::error::{Error, Result};

/// The bytes of one file, at an address that is a multiple of the page size.
#[derive(Debug)]
pub(crate) struct Mapping(Mmap);

impl Mapping {
    /// Maps the file at `path` read-only: pages are read when they are touched.
    ///
    /// The file must not be changed in place while the mapping lives.
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let (file, _) = open(path)?;
        #[expect(unsafe_code, reason = "mapping a file is unsafe in itself")]
        // SAFETY: `Mmap` owns the pages, so they stay mapped for as long as they can be borrowed; they are mapped
        // read-only and are only ever borrowed as shared bytes, for which every bit pattern is valid. That no one
        // changes or cuts the file meanwhile is beyond what any process can prove of a file: it is the condition that
        // the docs of `Checkpoint::open` and `load_safetensors` state, and `Self::read` serves whoever can't meet it.
        let map = unsafe { Mmap::map(&file) };
        map.map(Self).map_err(|source| Error::Map { path: path.into(), source })
    }

    /// Copies the file at `path` into memory.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let (mut file, len) = open(path)?;
        read_exact(&mut file, len)
            .map(Self)
            .map_err(|source| Error::Read { path: path.into(), source })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Opens the regular file at `path`; returns its length too. Never blocks, as opening a pipe would.
fn open(path: &Path) -> Result<(File, u64)> {
    let read = |source| Error::Read { path: path.into(), source };
    let metadata = fs::metadata(path).map_err(read)?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.into() });
    }
    Ok((File::open(path).map_err(read)?, metadata.len()))
}

fn read_exact(file: &mut File, len: u64) -> io::Result<Mmap> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = MmapMut::map_anon(len)?;
    file.read_exact(&mut bytes)?;
    bytes.make_read_only()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_and_copied_bytes_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for content in [&b""[..], b"x", &[7; 10_000]] {
            fs::write(&path, content).unwrap();
            assert_eq!(&*Mapping::map(&path).unwrap(), content);
            assert_eq!(&*Mapping::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_folder_or_a_missing_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for mapping in [Mapping::map, Mapping::read] {
            assert!(
                matches!(mapping(dir.path()), Err(Error::NotAFile { path }) if path == dir.path())
            );
            let missing = dir.path().join("missing");
            assert!(matches!(mapping(&missing), Err(Error::Read { path, .. }) if path == missing));
        }
    }
}
