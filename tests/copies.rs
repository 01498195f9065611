//! Copies of checkpoints, to be changed.

use std::fs;
use std::path::Path;

use nv_weights::ModelFiles;
use serde_json::Value;
use tempfile::TempDir;

/// Copies the files of the model in `from` to `to`, which are then free to change.
pub(crate) fn copy_model(from: &Path, to: &Path) -> ModelFiles {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(to.join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
        }
    }
    ModelFiles::from_dir(to).unwrap()
}

/// A copy of the demo checkpoint after `change` of the bytes of its weight file.
pub(crate) fn demo_with(change: impl FnOnce(&mut Vec<u8>)) -> (TempDir, ModelFiles) {
    let dir = tempfile::tempdir().unwrap();
    let files = copy_model(&xtask::root().join("assets/demo"), dir.path());
    let mut bytes = fs::read(&files.weights[0]).unwrap();
    change(&mut bytes);
    fs::write(&files.weights[0], bytes).unwrap();
    (dir, files)
}

/// The demo with element `index` of a tensor set to NaN.
pub(crate) fn demo_with_nan(tensor: &str, index: usize) -> (TempDir, ModelFiles) {
    demo_with(|bytes| {
        let at = start_of(tensor, bytes) + 2 * index;
        bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    })
}

/// The demo with some of its weight file's header written differently, in as many bytes.
pub(crate) fn demo_with_header(from: &str, to: &str) -> (TempDir, ModelFiles) {
    assert_eq!(from.len(), to.len());
    demo_with(|bytes| {
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    })
}

/// Where the elements of `tensor` start in the safetensors file `bytes`.
pub(crate) fn start_of(tensor: &str, bytes: &[u8]) -> usize {
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
    let header: Value = serde_json::from_slice(&rest[..length]).unwrap();
    let offset = header[tensor]["data_offsets"][0].as_u64().unwrap();
    8 + length + usize::try_from(offset).unwrap()
}
