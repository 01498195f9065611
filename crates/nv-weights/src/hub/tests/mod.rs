//! Downloads from hubs on loopback.

mod answers;
mod downloads;
mod resuming;
mod server;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::Result;
use crate::files::ModelFiles;

use self::server::Files;

const MODEL: &str = "owner/model";
const COMMIT: &str = "1111111111111111111111111111111111111111";
const OLD_COMMIT: &str = "2222222222222222222222222222222222222222";

fn cache(dir: &TempDir) -> PathBuf {
    dir.path().join("cache")
}

fn repo_dir(dir: &TempDir) -> PathBuf {
    cache(dir).join("models--owner--model")
}

fn tempdir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Every path under `dir`, relative to it.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(dir).unwrap().to_path_buf());
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

fn has_unfinished(dir: &TempDir) -> bool {
    let is_unfinished = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "incomplete" || extension == "tmp")
    };
    tree(dir.path()).iter().any(is_unfinished)
}

/// Checks that every one of `files` is where `found` says, byte for byte.
fn assert_downloaded(found: &Result<ModelFiles>, files: &Files) {
    let found = found.as_ref().unwrap();
    let snapshot = found.config.parent().unwrap();
    for (name, content) in files {
        assert_eq!(&fs::read(snapshot.join(name)).unwrap(), content, "{name}");
    }
    let weights: Vec<_> = files.keys().filter(|name| name.ends_with(".safetensors")).collect();
    let found_weights: Vec<_> =
        found.weights.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(found_weights, weights.into_iter().copied().collect::<Vec<_>>());
    let is_text = |name: &&&str| {
        !["config.json", "generation_config.json"].contains(*name) && !name.contains("safetensors")
    };
    let mut text = files.keys().filter(is_text).map(|name| snapshot.join(name));
    assert!(text.all(|path| found.text.contains(&path)), "{:?}", found.text);
}
