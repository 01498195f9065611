//! What a user waits for: starting up, reading the prompt, each token. Groups are named `what/how`; those of the
//! kernels, which that comes down to, `kernel/shape/tier`.
//!
//! Inputs are the demo checkpoint and seeded data; each benchmark checks its result before it times it.

mod checkpoint;
mod kernels;
mod model;
mod sampler;
mod scheduler;
mod server;
mod text;

use std::path::PathBuf;

use criterion::{criterion_group, criterion_main};

/// A file of the demo checkpoint.
fn demo(file: &str) -> PathBuf {
    xtask::root().join("assets/demo").join(file)
}

criterion_group!(
    benches,
    checkpoint::benches,
    kernels::benches,
    model::benches,
    sampler::benches,
    scheduler::benches,
    server::benches,
    text::benches
);
criterion_main!(benches);
