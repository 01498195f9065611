//! `nv completions` and `nv man`: what shells and manuals want to know of the command line.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Args, CompletionsArgs, ManArgs};

pub(crate) fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    // Into memory first: `generate` panics where it can't write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "nv", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(args: &ManArgs) -> Result<ExitCode> {
    match &args.dir {
        None => clap_mangen::Man::new(Args::command()).render(&mut io::stdout())?,
        Some(dir) => clap_mangen::generate_to(Args::command(), dir)
            .with_context(|| format!("cannot write manual pages to {}", dir.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}
