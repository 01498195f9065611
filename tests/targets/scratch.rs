//! Files that hold a target's bytes, for readers that are given paths.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static SCRATCH: TempDir = tempfile::tempdir().expect("a folder for temporary files");
}

/// The folder of this thread, which lasts as long as the thread.
pub(super) fn dir() -> PathBuf {
    SCRATCH.with(|dir| dir.path().to_owned())
}

/// Writes a file of that folder anew; returns its path.
pub(super) fn write(name: &str, content: &[u8]) -> PathBuf {
    let path = dir().join(name);
    fs::write(&path, content).expect("a file in a temporary folder");
    path
}

/// Asserts that an error says where it was found.
pub(super) fn assert_names(error: &impl std::error::Error, path: &Path) {
    let message = error.to_string();
    assert!(
        message.contains(&path.display().to_string()),
        "{message}: no word of {}",
        path.display()
    );
}
