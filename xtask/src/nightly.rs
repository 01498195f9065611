//! The nightly toolchain, for what only its compiler has.

use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A command line of the nightly toolchain.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).args(args);
    command
}

/// Prints the compiler's version; an error that says what `what` needs, if there is none.
pub(crate) fn require(what: &str, out: &mut dyn Write) -> Result<()> {
    // Its own words for a missing toolchain say less.
    let compiler = command(&["rustc", "--version"])
        .output()
        .context("cannot run rustup, which finds nightly")?;
    ensure!(
        compiler.status.success(),
        "{what} needs a nightly compiler: rustup toolchain install nightly"
    );
    write!(out, "{}", String::from_utf8_lossy(&compiler.stdout))?;
    out.flush()?;
    Ok(())
}
