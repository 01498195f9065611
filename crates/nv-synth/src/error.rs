//! Why a checkpoint could not be written.

use std::io;
use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The config is not one of a Qwen3 model.
    #[error(transparent)]
    Config(#[from] nv_config::Error),
    /// The folder is there already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
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
    /// The writer was told to stop.
    #[error("stopped before {} was complete; nothing of it is left", dir.display())]
    Stopped {
        /// The folder of the checkpoint.
        dir: PathBuf,
    },
    /// A name that is none of the published sizes.
    #[error("`{name}` is not a published size; use {known}")]
    UnknownSize {
        /// The name that was given.
        name: String,
        /// The names there are.
        known: String,
    },
}
