//! Bytes of a whole file, mapped or copied; the only unsafe code of this crate.
//!
//! Knows nothing of what the bytes mean.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::{Deref, Range};
use std::path::Path;

#[cfg(unix)]
use memmap2::UncheckedAdvice;
use memmap2::{Mmap, MmapMut};

use crate::error::{Error, Result};

/// The bytes of one file, at an address that is a multiple of the page size.
#[derive(Debug)]
pub(crate) struct Mapping {
    bytes: Mmap,
    /// Of the file itself, which gives pages again that were released.
    is_mapped: bool,
}

impl Mapping {
    /// Maps the file at `path` read-only: pages are read when they are touched.
    ///
    /// The file must not be changed in place while the mapping lives.
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let (file, num_bytes) = open(path)?;
        #[expect(unsafe_code, reason = "mapping a file is unsafe in itself")]
        // SAFETY: `Mmap` owns the pages, so they stay mapped for as long as they can be borrowed; they are mapped
        // read-only and are only ever borrowed as shared bytes, for which every bit pattern is valid. That no one
        // changes or cuts the file meanwhile is beyond what any process can prove of a file: it is the condition that
        // the docs of `Checkpoint::open` and `load_safetensors` state, and `Self::read` serves whoever can't meet it.
        let map = unsafe { Mmap::map(&file) };
        map.map(|bytes| Self { bytes, is_mapped: true }).map_err(|source| Error::Map {
            path: path.into(),
            num_bytes,
            source,
        })
    }

    /// Copies the file at `path` into memory.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let (mut file, num_bytes) = open(path)?;
        let len = usize::try_from(num_bytes).map_err(|_| io::ErrorKind::OutOfMemory.into());
        let mut bytes = len.and_then(MmapMut::map_anon).map_err(|source| Error::Memory {
            path: path.into(),
            num_bytes,
            source,
        })?;
        file.read_exact(&mut bytes)
            .and_then(|()| bytes.make_read_only())
            .map(|bytes| Self { bytes, is_mapped: false })
            .map_err(|source| Error::Read { path: path.into(), source })
    }

    /// Takes the pages of `range` out of the process, if they are those of a file: who reads them next gets them from the
    /// system's cache, or from the disk.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if self.is_mapped && !range.is_empty() {
            let dont_need = UncheckedAdvice::DontNeed;
            #[expect(
                unsafe_code,
                reason = "pages that were written to would lose what was written"
            )]
            // SAFETY: the bytes are a file's, mapped read-only, so nothing was written to the pages: they are read from the file
            // again, which holds the same bytes for as long as `map`'s condition is met.
            let advised =
                unsafe { self.bytes.unchecked_advise_range(dont_need, range.start, range.len()) };
            // It is advice: pages that stay do no harm.
            drop(advised);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
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

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_os = "linux")]
    use crate::child;

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

    #[cfg(target_os = "linux")]
    #[test]
    fn a_limit_on_memory_is_told_with_the_size() {
        let Some(dir) = child::dir() else {
            let dir = tempfile::tempdir().unwrap();
            // Sparse: it takes no room on the disk.
            File::create(dir.path().join("file")).unwrap().set_len(8 << 30).unwrap();
            let name = "mapping::tests::a_limit_on_memory_is_told_with_the_size";
            return child::passes(name, "ulimit -v 4194304", dir.path());
        };
        let path = Path::new(&dir).join("file");
        let shown = path.display();
        let expected = format!(
            "cannot map {shown} into memory: 8589934592 bytes, which `ulimit -v` may limit"
        );
        assert_eq!(Mapping::map(&path).unwrap_err().to_string(), expected);
        let expected = format!("no memory for a copy of {shown}: 8589934592 bytes; map it instead");
        assert_eq!(Mapping::read(&path).unwrap_err().to_string(), expected);
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
