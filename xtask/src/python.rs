//! Python with the packages that some tests need, in a virtual environment of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::root;

/// The interpreter of the environment `name` under `target`, which has the packages of a requirements file.
///
/// # Errors
/// If there is no Python, or the packages can't be installed.
pub(crate) fn with_requirements(name: &str, requirements: &Path) -> Result<PathBuf> {
    let venv = root().join("target").join(name);
    let python = venv.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let install =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    run(Command::new(&python).args(install).arg(requirements))?;
    Ok(python)
}

/// Runs a command to its end.
///
/// # Errors
/// If it can't be started, or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    // Tests that import each other would leave folders of compiled ones in the tree.
    let status = command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
