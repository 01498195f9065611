//! What `cargo xtask` does, as a library, so that `cargo test` can hold the project to the same checks.
//!
//! Not part of the engine: nothing in `crates` depends on it.

pub mod asan;
pub mod bench;
pub mod cases;
pub mod ci;
pub mod deny;
pub mod fetch;
pub mod fuzz;
pub mod load;
mod nightly;
pub mod openai;
pub mod overhead;
pub mod page;
mod process;
mod python;
pub mod reference;
pub mod router;
pub mod served;
pub mod simulate;
mod streaming;
pub mod synth;
pub mod tidy;
pub mod verify;

use std::path::Path;

/// The root of the repository that this was built in.
///
/// # Panics
/// If the manifest of this package has no parent folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository")
}
