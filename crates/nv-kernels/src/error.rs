//! What can go wrong before a kernel runs. Inside, shapes are the caller's contract and are asserted.

use std::io;

use crate::isa::Isa;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the kernels cannot be set up as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is no tier.
    #[error(
        "NV_ISA: `{name}` is not an instruction-set tier; use scalar, avx2, avxvnni, avx512 or avx512bf16"
    )]
    UnknownIsa {
        /// The name that was given.
        name: String,
    },
    /// A tier that this machine lacks.
    #[error("NV_ISA: this machine does not have {isa}; its best tier is {best}")]
    IsaUnavailable {
        /// The tier that was asked for.
        isa: Isa,
        /// The strongest tier there is.
        best: Isa,
    },
    /// The system refused a thread.
    #[error("threads: the system starts {started} of {asked_for} ({kind}); ask for fewer")]
    Spawn {
        /// How many there were by then, the caller's included.
        started: usize,
        /// How many were asked for.
        asked_for: usize,
        /// What the system says.
        kind: io::ErrorKind,
    },
    /// A number of threads that makes no sense.
    #[error("threads: expected 1 to {max}, found {found}")]
    Threads {
        /// The number that was asked for.
        found: usize,
        /// The most that are accepted.
        max: usize,
    },
}
