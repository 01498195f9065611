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
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder or its files could not be written.
    #[error(transparent)]
    Write(#[from] nv_weights::WriteError),
    /// The writer was told to stop.
    #[error("stopped before {} was complete; nothing of it is left", dir.display())]
    Stopped {
        /// The folder of the checkpoint.
        dir: PathBuf,
    },
    /// The model can't be quantised.
    #[error(transparent)]
    Quantize(nv_qwen3::Error),
    /// A name that is none of the published sizes.
    #[error("`{name}` is not a published size; use {known}")]
    UnknownSize {
        /// The name that was given.
        name: String,
        /// The names there are.
        known: String,
    },
}

impl From<nv_qwen3::Error> for Error {
    fn from(error: nv_qwen3::Error) -> Self {
        match error {
            nv_qwen3::Error::Write(source) => Self::Write(source),
            nv_qwen3::Error::Stopped { dir } => Self::Stopped { dir },
            error => Self::Quantize(error),
        }
    }
}
