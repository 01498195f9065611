//! The fuzz targets: functions of bytes, each of which panics if a promise is broken.
//!
//! Any bytes may come. What is malformed has to be refused by an error that says where.
#![expect(clippy::missing_panics_doc, reason = "a panic is what they are for")]

mod chat_template;
mod checkpoint;
mod config;
mod detokeniser;
mod openai_request;
mod packed_checkpoint;
mod scheduler;
mod scratch;

pub use chat_template::chat_template;
pub use checkpoint::{checkpoint, safetensors_header, shard_index};
pub use config::{config_json, generation_config_json};
pub use detokeniser::detokeniser;
pub use openai_request::openai_request;
pub use packed_checkpoint::packed_checkpoint;
pub use scheduler::scheduler;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, under the names that `cargo fuzz` has them by.
pub const TARGETS: [(&str, Target); 10] = [
    ("chat_template", chat_template),
    ("checkpoint", checkpoint),
    ("config_json", config_json),
    ("detokeniser", detokeniser),
    ("generation_config_json", generation_config_json),
    ("openai_request", openai_request),
    ("packed_checkpoint", packed_checkpoint),
    ("safetensors_header", safetensors_header),
    ("scheduler", scheduler),
    ("shard_index", shard_index),
];

/// Takes a target's bytes one by one: what to do next, and with which numbers.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// The next byte; `None` when all are taken.
    fn next(&mut self) -> Option<u8> {
        self.take(1).first().copied()
    }

    /// A number below `bound`; 0 when all are taken.
    fn below(&mut self, bound: u8) -> u8 {
        self.next().unwrap_or(0) % bound
    }

    /// The next `len` bytes, fewer if there are not so many.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
