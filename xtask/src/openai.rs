//! `cargo xtask openai`: clients of the OpenAI API against the server, and the server against its own description.
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
/// If there is no Python, the packages can't be installed, a server doesn't start, or a test fails.
pub fn run(out: &mut dyn Write) -> Result<()> {
    let dir = root().join("tests/openai");
    let python = python::with_requirements("openai", &dir.join("requirements.txt"))?;

    let demo = ["serve", "--port", "0", "--kv-cache-memory", "256MiB", "--api-key", "key"];
    let quiet = ["--log-level", "warn"];
    let demo = Served::start(["--bin", "nv"], "dev", &[&demo[..], &quiet].concat())?;
    let scripted = Served::start(["--example", "scripted_server"], "dev", &[])?;
    writeln!(out, "demo at {}, scripted at {}", demo.address, scripted.address)?;
    // The official client; requests of others; schemathesis.
    for program in ["client.py", "clients.py", "document.py"] {
        python::run(
            Command::new(&python)
                .arg(dir.join(program))
                .env("NV_DEMO", format!("http://{}", demo.address))
                .env("NV_SCRIPTED", format!("http://{}", scripted.address)),
        )?;
    }
    Ok(())
}
