//! Tells `nv --version` the commit that it is built from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    if let Some(commit) = of_package(&dir).or_else(|| of_repository(&dir)) {
        println!("cargo::rustc-env=NV_COMMIT={}", &commit[..commit.len().min(12)]);
    }
    println!("cargo::rerun-if-changed=build.rs");
}

/// The commit that a published package was made from.
fn of_package(dir: &Path) -> Option<String> {
    let info = fs::read_to_string(dir.join(".cargo_vcs_info.json")).ok()?;
    let (_, rest) = info.split_once("\"sha1\": \"")?;
    rest.split_once('"').map(|(commit, _)| commit.to_owned())
}

/// The commit of the repository that `dir` lies in, if git knows it. Has cargo run this again when another is checked out.
fn of_repository(dir: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(dir).args(args).output().ok()?;
        let output = output.status.success().then_some(output.stdout)?;
        Some(String::from_utf8(output).ok()?.trim().to_owned())
    };
    // A crate that was copied into somebody else's repository is not of its commits.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    let log = dir.join(git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    if log.exists() {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    git(&["rev-parse", "HEAD"])
}
