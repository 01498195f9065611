//! `cargo xtask page`: the server's page in headless Chromium.
//!
//! Needs Chromium, Python 3 with `venv`, and the Python package index the first time.

use std::io::Write;
use std::process::Command;

use anyhow::Result;

use crate::served::Served;
use crate::{python, root};

/// Runs the tests in `tests/page`; the screenshots that they take are in `target/page/screenshots` then.
///
/// # Errors
/// If there is no Python or no Chromium, a server doesn't start, or a test fails.
pub fn run(out: &mut dyn Write) -> Result<()> {
    let dir = root().join("tests/page");
    let python = python::with_requirements("page", &dir.join("requirements.txt"))?;
    let screenshots = root().join("target/page/screenshots");

    let demo = ["serve", "--port", "0", "--kv-cache-memory", "256MiB", "--log-level", "warn"];
    let demo = Served::start(["--bin", "nv"], "dev", &demo)?;
    let scripted = Served::start(["--example", "scripted_server"], "dev", &[])?;
    writeln!(out, "demo at {}, scripted at {}", demo.address, scripted.address)?;
    python::run(
        Command::new(python)
            .arg(dir.join("page.py"))
            .env("NV_DEMO", format!("http://{}", demo.address))
            .env("NV_SCRIPTED", format!("http://{}", scripted.address))
            .env("NV_SCREENSHOTS", &screenshots),
    )?;
    writeln!(out, "screenshots are in {}", screenshots.display())?;
    Ok(())
}
