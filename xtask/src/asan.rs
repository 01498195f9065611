//! `cargo xtask asan`: the tests of the kernels under the address sanitizer, which finds reads and writes past a slice.
//!
//! Only a nightly compiler has it, so this is no part of `ci`.

use std::env::consts::{ARCH, OS};
use std::io::Write;

use anyhow::{Result, ensure};

use crate::{nightly, root};

/// Runs the tests, in a target folder of their own.
///
/// # Errors
/// If there is no nightly toolchain, or a test fails.
pub fn run(out: &mut dyn Write) -> Result<()> {
    ensure!(OS == "linux", "AddressSanitizer is set up for Linux only, and this is {OS}");
    nightly::require("AddressSanitizer", out)?;

    // Without a target, build scripts and macros would be built with the sanitizer too.
    let target = format!("{ARCH}-unknown-linux-gnu");
    let test =
        ["cargo", "test", "--package", "nv-kernels", "--lib", "--tests", "--target", &target];
    let status = nightly::command(&test)
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", root().join("target/asan"))
        .current_dir(root())
        .status()?;
    ensure!(status.success(), "the kernels' tests failed under AddressSanitizer: {status}");
    Ok(())
}
