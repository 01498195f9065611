//! The cache on disk, laid out as Hugging Face's own tools do:
//! `blobs/ETAG` holds a file, `snapshots/COMMIT/NAME` links to it, `refs/REVISION` holds the commit of a branch.
//!
//! Whatever stands under one of these names is whole: it is written under another name first. All names are checked
//! by whoever calls.

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::{Cache, CacheRepo, Repo};

use super::remote::Metadata;
use super::retry::Stop;
use super::{System, names};
use crate::error::{Error, Result};

/// The part of a cache that belongs to one model.
pub(super) struct Store {
    dir: PathBuf,
    locks_dir: PathBuf,
    layout: CacheRepo,
    system: System,
}

impl Store {
    pub(super) fn new(cache: &Cache, repo: Repo, system: System) -> Self {
        let folder_name = repo.folder_name();
        Self {
            dir: cache.path().join(&folder_name),
            locks_dir: cache.path().join(".locks").join(folder_name),
            layout: cache.repo(repo),
            system,
        }
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// Where the content of the file with this etag is kept.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// Whether the content of the file that `metadata` describes is there.
    pub(super) fn has_blob(&self, metadata: &Metadata) -> bool {
        let is_whole = |len| metadata.size.is_none_or(|size| len == size);
        self.blob(&metadata.etag)
            .metadata()
            .is_ok_and(|found| found.is_file() && is_whole(found.len()))
    }

    /// Where the content of the file with this etag grows until it is whole, and what is left of it stays.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(&format!("{etag}.incomplete"))
    }

    /// As [`incomplete`](Self::incomplete), but under a name that nobody else has.
    pub(super) fn own_incomplete(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(&format!("{etag}.{}.incomplete", unique()))
    }

    /// The commit that `revision` last stood for; itself if it is a commit.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if names::is_commit(revision) {
            return Some(revision.into());
        }
        let commit = fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| names::is_commit(commit))
    }

    /// Remembers that `revision` stands for `commit`.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        replace(&self.dir.join("refs").join(revision), |path| fs::write(path, commit))
    }

    /// Whether the snapshot of `commit` has `file`.
    pub(super) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Whether the hub is known to have no `file` at `commit`.
    pub(super) fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absence(commit, file).is_file()
    }

    /// Remembers that the hub has no `file` at `commit`. If that fails, the hub will be asked again.
    pub(super) fn mark_absent(&self, commit: &str, file: &str) {
        let path = self.absence(commit, file);
        let _ = create_parent(&path).and_then(|()| File::create(path));
    }

    fn absence(&self, commit: &str, file: &str) -> PathBuf {
        self.dir.join(".no_exist").join(commit).join(file)
    }

    /// Makes `file` in the snapshot of `commit` a name of the blob `etag`.
    ///
    /// Where the file system has no links the blob moves in, as it does with Hugging Face's tools, or is copied if it
    /// `is_shared`: then another snapshot may lead to it.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str, is_shared: bool) -> Result<()> {
        let blob = self.blob(etag);
        replace(&self.snapshot(commit).join(file), |path| {
            // A file may lie in a folder of the snapshot.
            let up = "../".repeat(2 + file.matches('/').count());
            let original = format!("{up}blobs/{etag}");
            (self.system.symlink)(Path::new(&original), path).or_else(|_| {
                if is_shared { fs::copy(&blob, path).map(drop) } else { fs::rename(&blob, path) }
            })
        })
    }

    /// Locks the blob `etag` against other processes until the returned file is dropped.
    /// Calls `waiting` once if another one holds the lock. `None` if the file system has no locks, or `stop` is raised.
    ///
    /// A lock saves work. Nothing relies on it: on a network's file systems two machines may have the same one.
    pub(super) fn lock(
        &self,
        etag: &str,
        stop: &Stop,
        waiting: impl FnOnce(),
    ) -> Result<Option<File>> {
        let path = self.locks_dir.join(format!("{etag}.lock"));
        let mut waiting = Some(waiting);
        let mut lock = || {
            create_parent(&path)?;
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            loop {
                match (self.system.try_lock)(&file) {
                    Ok(()) => return Ok(Some(file)),
                    Err(TryLockError::WouldBlock) => {
                        if let Some(waiting) = waiting.take() {
                            waiting();
                        }
                        if stop.wait(Duration::from_millis(100)) {
                            return Ok(None);
                        }
                    }
                    Err(TryLockError::Error(error)) => match error.kind() {
                        io::ErrorKind::Interrupted => {}
                        _ if is_without_locks(&error) => return Ok(None),
                        _ => return Err(error),
                    },
                }
            }
        };
        lock().map_err(|source| write_error(&path, source))
    }
}

/// Whether a failure to lock says that the file system has no locks, as NFS without its daemon.
fn is_without_locks(error: &io::Error) -> bool {
    const ENOLCK: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 37 } else { 77 };
    error.kind() == io::ErrorKind::Unsupported || cfg!(unix) && error.raw_os_error() == Some(ENOLCK)
}

/// The error for a failed write to `path`.
pub(super) fn write_error(path: &Path, source: io::Error) -> Error {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::DiskFull { path, source }
        }
        io::ErrorKind::FileTooLarge => Error::FileTooLarge { path, source },
        _ => Error::Write { path, source },
    }
}

pub(super) fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// A part of a name that nobody else has, on no machine that shares the file system.
fn unique() -> String {
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

/// Puts what `create` makes under the name `path`, in place of what is there, in one step.
pub(super) fn replace(path: &Path, create: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let temporary = path.with_file_name(format!(".{}.tmp", unique()));
    create_parent(path)
        .and_then(|()| create(&temporary))
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|source| {
            let _ = fs::remove_file(&temporary);
            write_error(path, source)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_system_without_locks_is_told_from_other_failures() {
        let [enolck, eopnotsupp, enosys, eio] = [37, 95, 38, 5];
        for (errno, expected) in [(enolck, true), (eopnotsupp, true), (enosys, true), (eio, false)]
        {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(is_without_locks(&error), expected, "{error}");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let check = |kind: io::ErrorKind, full| {
            let error = write_error(Path::new("f"), kind.into());
            assert_eq!(matches!(error, Error::DiskFull { .. }), full, "{kind:?}");
        };
        check(io::ErrorKind::StorageFull, true);
        check(io::ErrorKind::FileTooLarge, false);
        check(io::ErrorKind::QuotaExceeded, true);
        check(io::ErrorKind::PermissionDenied, false);
    }
}
