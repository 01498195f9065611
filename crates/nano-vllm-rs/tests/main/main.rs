//! The `nv` binary and the engine behind it, on the demo checkpoint.

mod batch;
mod bench;
mod chat;
mod copies;
mod engine;
mod eval;
#[cfg(unix)]
mod faults;
mod hub;
mod log;
mod manual;
mod memory;
mod nv;
mod quantize;
mod serve;
mod server;
mod trace;

use std::path::{Path, PathBuf};

use nano_vllm_rs::weights::Checkpoint;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn demo() -> PathBuf {
    repository().join("assets/demo")
}

/// A prompt, and the tokens with which transformers goes on in float32, the likeliest each time.
fn greedy_reference() -> (Vec<u32>, Vec<u32>) {
    let reference =
        Checkpoint::open(&[repository().join("tests/references/demo.safetensors")]).unwrap();
    let ids = |name| {
        let bytes = reference.tensor(name).unwrap().bytes();
        let ids = bytes.as_chunks().0.iter().map(|id| i64::from_le_bytes(*id));
        ids.map(|id| u32::try_from(id).unwrap()).collect::<Vec<u32>>()
    };
    (ids("greedy_prompt"), ids("greedy_ids"))
}
