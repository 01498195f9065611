//! What the tests, benchmarks and examples of several crates share. It isn't published, and no crate needs it to be built.
//!
//! A crate's own unit tests see their crate compiled a second time: they get only what names none of its types, which is
//! all but the scripted server.
#![expect(
    clippy::missing_panics_doc,
    reason = "a panic fails the test, which is what tests are for"
)]

mod byte_tokenizer;
mod random;
#[cfg(feature = "server")]
mod scripted;
mod slots;

pub use byte_tokenizer::{AddedToken, byte_tokenizer_json};
pub use random::{Random, values};
#[cfg(feature = "server")]
pub use scripted::{scripted_server, scripted_tokenizer};
pub use slots::Slots;
