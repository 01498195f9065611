//! `cargo xtask router`: two replicas of the server behind a router, one of which is killed, or told to end, under load.
//!
//! The router is vLLM's, or Ray Serve. Needs Python 3 with `venv`, and the Python Package Index the first time.

use std::io::Write;
use std::process::Command;

use anyhow::Result;

use crate::{python, root, served};

/// Which router.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Ray Serve, which takes half a gigabyte to install, instead of vLLM's router.
    #[arg(long)]
    ray: bool,
}

/// Runs the tests in `tests/router`, which start replicas and routers themselves: they kill some, and start them anew.
///
/// # Errors
/// If there is no Python, the router can't be installed, or a test fails.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let dir = root().join("tests/router");
    let (name, requirements, test) = if args.ray {
        ("ray", "requirements-ray.txt", "on_ray.py")
    } else {
        ("router", "requirements.txt", "router.py")
    };
    let python = python::with_requirements(name, &dir.join(requirements))?;
    let nv = served::build(["--bin", "nv"], "dev")?;
    writeln!(out, "{test}: replicas of {}", nv.display())?;
    python::run(
        Command::new(python)
            .arg(dir.join(test))
            .env("NV", nv)
            .env("EXAMPLES", root().join("crates/nano-vllm-rs/examples")),
    )
}
