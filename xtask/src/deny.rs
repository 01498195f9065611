//! `cargo xtask deny`: the licences, sources and versions of all dependencies, and what is known against them.

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::root;

const VERSION: &str = "0.20.2";

/// Checks the lock file by `.cargo/deny.toml`. Advisories are in a database that is fetched; where it can't be reached, that
/// part is skipped, which is said.
///
/// # Errors
/// If a dependency breaks a rule or an advisory is against it, or cargo-deny can't be installed.
pub fn run(out: &mut dyn Write) -> Result<()> {
    let program = installed(out)?;
    let deny = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).current_dir(root());
        command
    };
    let status = deny(&["check", "licenses", "bans", "sources"]).status()?;
    ensure!(status.success(), "dependencies break the rules of .cargo/deny.toml: {status}");

    let fetched = deny(&["fetch", "db"]).output()?;
    if !fetched.status.success() {
        let reason = String::from_utf8_lossy(&fetched.stderr);
        let reason = reason.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        writeln!(out, "skipped: advisories, whose database can't be fetched: {reason}")?;
        return Ok(());
    }
    let status = deny(&["check", "--disable-fetch", "advisories"]).status()?;
    ensure!(status.success(), "there are advisories against dependencies: {status}");
    Ok(())
}

/// cargo-deny, which is compiled the first time.
fn installed(out: &mut dyn Write) -> Result<PathBuf> {
    let tools = root().join("target/tools");
    let program = tools.join("bin/cargo-deny");
    let is_there = Command::new(&program)
        .arg("--version")
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(VERSION));
    if !is_there {
        writeln!(out, "installing cargo-deny {VERSION}")?;
        out.flush()?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            // Compiling it takes much longer than what it does: not optimised.
            .args(["install", "cargo-deny", "--locked", "--quiet", "--debug", "--version", VERSION])
            .arg("--root")
            .arg(&tools)
            .status()
            .context("cannot start cargo")?;
        ensure!(status.success(), "cargo-deny {VERSION} can't be installed: {status}");
    }
    Ok(program)
}
