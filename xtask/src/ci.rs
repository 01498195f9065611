//! `cargo xtask ci`: everything that a change must pass, in the order that fails soonest.
//!
//! Dependencies are compiled once in each of three ways: checked (clippy, doc), dev (test, bench) and release (this
//! program, and so verify).

use std::env;
use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nv_kernels::Isa;

use crate::{deny, openai, page, root, router, tidy, verify};

enum Step {
    Cargo(&'static [&'static str]),
    Task(&'static str, fn(&mut dyn Write) -> Result<()>),
}

const STEPS: &[Step] = &[
    Step::Cargo(&["fmt", "--all", "--check"]),
    Step::Task("tidy", tidy::run),
    Step::Task("deny", deny::run),
    Step::Task("verify", |out| verify::run(&verify::Args::default(), out)),
    Step::Cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
    // In the workspace the binary turns every feature on; alone, the libraries have none.
    Step::Cargo(&[
        "clippy",
        "--no-default-features",
        "--package",
        "nv-config",
        "--package",
        "nv-weights",
        "--package",
        "nv-kernels",
        "--package",
        "nv-text",
        "--package",
        "nv-qwen3",
        "--package",
        "nv-engine",
        "--package",
        "nv-server",
        "--",
        "--deny",
        "warnings",
    ]),
    // A workspace of its own, which uses the engine as others do.
    Step::Cargo(&[
        "clippy",
        "--locked",
        "--manifest-path",
        "benches/peers/rust/Cargo.toml",
        "--target-dir",
        "target",
        "--",
        "--deny",
        "warnings",
    ]),
    Step::Cargo(&["doc", "--workspace", "--no-deps"]),
    Step::Cargo(&["test"]),
    // What the compiler made of the kernels, which only the profile that users run shows.
    Step::Cargo(&["test", "--release", "--package", "nv-kernels", "--lib", "disassembly"]),
    Step::Task("openai", openai::run),
    Step::Task("page", page::run),
    Step::Task("router", |out| router::run(&router::Args::default(), out)),
    // With the dependencies of the step before: in release, dev-dependencies would have them compiled once more.
    Step::Cargo(&["bench", "--profile", "dev", "--", "--test"]),
];

/// Runs every step and prints how long each took.
///
/// # Errors
/// If a step fails; the later ones don't run.
pub fn run(out: &mut dyn Write) -> Result<()> {
    let (here, lacking): (Vec<Isa>, Vec<Isa>) =
        Isa::ALL.into_iter().partition(|isa| isa.is_available());
    writeln!(
        out,
        "tiers tested: {}; not of this machine: {}",
        verify::list(&here),
        verify::list(&lacking)
    )?;
    if thread::available_parallelism()?.get() == 1 {
        writeln!(out, "skipped: the pool's fair share of a contended core, which needs two cores")?;
    }
    for step in STEPS {
        let name = step.name();
        writeln!(out, "== {name}")?;
        let start = Instant::now();
        step.run(out).with_context(|| format!("`{name}` failed"))?;
        writeln!(out, "== {name}: passed in {:.0} s\n", start.elapsed().as_secs_f64())?;
    }
    Ok(())
}

impl Step {
    fn name(&self) -> String {
        match self {
            Self::Cargo(args) => format!("cargo {}", args.join(" ")),
            Self::Task(name, _) => format!("cargo xtask {name}"),
        }
    }

    fn run(&self, out: &mut dyn Write) -> Result<()> {
        match self {
            Self::Task(_, task) => task(out),
            Self::Cargo(args) => {
                // Set by the cargo that runs this, and then the same one.
                let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
                let status = Command::new(cargo)
                    .args(*args)
                    .env("RUSTDOCFLAGS", "-D warnings")
                    .current_dir(root())
                    .status()?;
                ensure!(status.success(), "{status}");
                Ok(())
            }
        }
    }
}
