//! `cargo xtask openai`: the official Python client of the OpenAI API against the server.
//!
//! Needs Python 3 with `venv`, and the Python Package Index the first time.

use std::io::Write;
use std::process::Command;

use anyhow::Result;

use crate::served::Served;
use crate::{python, root};

/// Runs the tests in `tests/openai`.
///
/// # Errors
/// If there is no Python, the client can't be installed, a server doesn't start, or a test fails.
pub fn run(out: &mut dyn Write) -> Result<()> {
    let dir = root().join("tests/openai");
    let python = python::with_requirements("openai", &dir.join("requirements.txt"))?;

    let demo = ["serve", "--port", "0", "--kv-cache-memory", "256MiB", "--api-key", "key"];
    let quiet = ["--log-level", "warn"];
    let demo = Served::start(["--bin", "nv"], "dev", &[&demo[..], &quiet].concat())?;
    let scripted = Served::start(["--example", "scripted_server"], "dev", &[])?;
    writeln!(out, "demo at {}, scripted at {}", demo.address, scripted.address)?;
    python::run(
        Command::new(python)
            .arg(dir.join("client.py"))
            .env("NV_DEMO", format!("http://{}", demo.address))
            .env("NV_SCRIPTED", format!("http://{}", scripted.address)),
    )
}
