//! `cargo xtask asan`: the tests of the kernels under the address sanitizer, which finds reads and writes past a slice.
//!
//! Only a nightly compiler has it, so this is no part of `ci`.

use std::env::consts::{ARCH, OS};
use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::root;

/// Runs the tests, in a target folder of their own.
///
/// # Errors
/// If there is no nightly toolchain, or a test fails.
pub fn run(out: &mut dyn Write) -> Result<()> {
    ensure!(OS == "linux", "AddressSanitizer is set up for Linux only, and this is {OS}");
    // Its own words for a missing toolchain say less.
    let compiler = nightly(&["rustc", "--version"])
        .output()
        .context("cannot run rustup, which finds nightly")?;
    ensure!(
        compiler.status.success(),
        "AddressSanitizer needs a nightly compiler: rustup toolchain install nightly"
    );
    write!(out, "{}", String::from_utf8_lossy(&compiler.stdout))?;
    out.flush()?;

    // Without a target, build scripts and macros would be built with the sanitizer too.
    let target = format!("{ARCH}-unknown-linux-gnu");
    let test =
        ["cargo", "test", "--package", "nv-kernels", "--lib", "--tests", "--target", &target];
    let status = nightly(&test)
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", root().join("target/asan"))
        .current_dir(root())
        .status()?;
    ensure!(status.success(), "the kernels' tests failed under AddressSanitizer: {status}");
    Ok(())
}

/// A command line of the nightly toolchain.
fn nightly(args: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).args(args);
    command
}
