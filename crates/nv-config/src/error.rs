//! What can be wrong with a configuration file.

use std::io;
use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a JSON object.
    #[error("{} is not a JSON object; download it again if it came from a hub", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where the JSON ends to make sense.
        source: serde_json::Error,
    },
    /// The file was read, but what it says was refused.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was refused: one of the variants below.
        source: Box<Error>,
    },
    /// A required field is absent or null.
    #[error("field `{field}`: missing, and it has no default")]
    Missing {
        /// The field, with the object that holds it: `rope_scaling.factor`.
        field: String,
    },
    /// A field has a value that no model can have.
    #[error("field `{field}`: expected {expected}, found {found}")]
    Invalid {
        /// The field, or the product of fields, that is wrong.
        field: String,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Two spellings of one setting contradict each other.
    #[error("fields `{first}` ({first_value}) and `{second}` ({second_value}) disagree; keep one")]
    Conflict {
        /// One of the fields.
        first: String,
        /// What it says.
        first_value: String,
        /// The other field.
        second: String,
        /// What that one says.
        second_value: String,
    },
    /// The configuration asks for something that the Qwen3 graph does not compute.
    #[error("field `{field}`: {value} is not supported, only {supported}")]
    Unsupported {
        /// The field that asks for it.
        field: String,
        /// What it asks for.
        value: String,
        /// What it may ask for.
        supported: String,
    },
}

impl Error {
    pub(crate) fn invalid(
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        Self::Invalid { field: field.into(), expected: expected.into(), found: found.to_string() }
    }

    pub(crate) fn unsupported(
        field: impl Into<String>,
        value: impl ToString,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            field: field.into(),
            value: value.to_string(),
            supported: supported.into(),
        }
    }
}
