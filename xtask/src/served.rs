//! Servers that tasks start as a user would, and end when they are done with them.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::root;

/// A server that runs until this is dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    /// Host and port.
    pub address: String,
    /// Kept open, so that the server can write to it.
    _stdout: BufReader<ChildStdout>,
}

impl Served {
    /// Builds a target of the package `nano-vllm-rs` with `profile`, and starts it with `args`.
    ///
    /// # Errors
    /// If it can't be built, or ends before it listens.
    pub fn start(target: [&str; 2], profile: &str, args: &[&str]) -> Result<Self> {
        let program = build(target, profile)?;
        let mut child = Command::new(&program)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut stdout = BufReader::new(child.stdout.take().context("its output is not piped")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let address = line.trim_end().strip_prefix("listening on http://").map(str::to_owned);
        let served = Self { child, address: address.clone().unwrap_or_default(), _stdout: stdout };
        ensure!(address.is_some(), "{} does not say where it listens", program.display());
        Ok(served)
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // If it has ended by itself, there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds `--bin NAME` or `--example NAME` of the package `nano-vllm-rs` with `profile`, and says where it is.
///
/// # Errors
/// If it can't be built.
pub(crate) fn build([kind, name]: [&str; 2], profile: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Dev-dependencies turn features on. What is in dev was compiled with them by `cargo test`, what is in release
    // without them by `cargo xtask`: in another way candle would be compiled once more.
    let features_of_tests: &[&str] = if profile == "dev" { &["--test", "main"] } else { &[] };
    let output = Command::new(cargo)
        .args(["build", kind, name, "--profile", profile, "--message-format", "json"])
        .args(features_of_tests)
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "cannot build {name}: {}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    let messages =
        messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut paths = messages.filter(|message| message["target"]["name"] == name);
    let path = paths.find_map(|message| Some(message["executable"].as_str()?.into()));
    path.with_context(|| format!("cargo does not say where {name} is"))
}
