//! `cargo xtask fuzz`: libFuzzer on the targets of `tests/fuzz`, one after the other.
//!
//! Only a nightly compiler has its instrumentation, so this is no part of `ci`; the committed corpora are replayed by
//! `cargo test`. What a run finds anew stays below `target`, and what breaks a target is an error.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{nightly, root};

/// What to run, and for how long.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Targets to run; without any, all of them
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Megabytes that a target may take: what takes more would end a server.
const MAX_MEMORY_MB: u32 = 2048;

/// Seconds that one input may take.
const MAX_INPUT_SECONDS: u32 = 20;

/// What libFuzzer says of a run.
#[derive(Debug, Default, PartialEq)]
struct Report {
    executions: u64,
    /// Edges of the control flow.
    coverage: u64,
    /// Inputs and bytes, as libFuzzer writes them.
    corpus: String,
    /// The inputs that broke the target.
    findings: Vec<String>,
}

/// Runs the targets and prints a table of what they came to.
///
/// # Errors
/// If there is no nightly toolchain or no cargo-fuzz, a target is unknown or doesn't compile, or an input breaks one.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    nightly::require("libFuzzer", out)?;
    let version = nightly::command(&["cargo", "fuzz", "--version"]).output()?;
    ensure!(version.status.success(), "cargo-fuzz is missing: cargo install cargo-fuzz");

    let all = targets()?;
    if let Some(unknown) = args.targets.iter().find(|target| !all.contains(target)) {
        bail!("there is no target `{unknown}`: expected {}", all.join(", "));
    }
    let targets = if args.targets.is_empty() { &all } else { &args.targets };
    // The same dependencies as everybody else's.
    fs::copy(root().join("Cargo.lock"), package().join("Cargo.lock"))?;

    let mut num_findings = 0;
    writeln!(
        out,
        "{:<24} {:>11} {:>9} {:>14}  findings",
        "target", "executions", "coverage", "corpus"
    )?;
    for target in targets {
        let report = fuzz(target, args.seconds).with_context(|| format!("target `{target}`"))?;
        let Report { executions, coverage, corpus, findings } = &report;
        let shown = if findings.is_empty() { "none".to_owned() } else { findings.join(", ") };
        writeln!(out, "{target:<24} {executions:>11} {coverage:>9} {corpus:>14}  {shown}")?;
        out.flush()?;
        num_findings += findings.len();
    }
    ensure!(
        num_findings == 0,
        "{num_findings} findings: `cargo +nightly fuzz run --fuzz-dir tests/fuzz TARGET FILE` shows each"
    );
    Ok(())
}

/// The package of the targets.
fn package() -> PathBuf {
    root().join("tests/fuzz")
}

/// The names of all targets, sorted.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(package().join("fuzz_targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn fuzz(target: &str, seconds: u32) -> Result<Report> {
    let found = package().join("target/corpus").join(target);
    fs::create_dir_all(&found)?;
    // Without a sanitizer: nothing but the kernels and the map is unsafe, and `asan` is for those.
    let mut command = nightly::command(&["cargo", "fuzz", "run", "--sanitizer", "none"]);
    command.arg("--fuzz-dir").arg(package()).arg(target).arg(&found);
    command.arg(package().join("corpus").join(target)).arg("--");
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-rss_limit_mb={MAX_MEMORY_MB}"),
        format!("-timeout={MAX_INPUT_SECONDS}"),
        "-print_final_stats=1".to_owned(),
    ]);
    let mut child = command.current_dir(root()).stderr(Stdio::piped()).spawn()?;
    let (report, log) = read(&mut child)?;
    let status = child.wait()?;
    ensure!(status.success() || !report.findings.is_empty(), "{status}:\n{}", log.join("\n"));
    Ok(report)
}

/// Reads what a run says, to its end; gives back the last lines too.
fn read(child: &mut Child) -> Result<(Report, Vec<String>)> {
    const MAX_LINES: usize = 30;
    let stderr = child.stderr.take().context("the run has no standard error")?;
    let (mut report, mut log) = (Report::default(), Vec::new());
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        report.read(&line);
        if log.len() == MAX_LINES {
            log.remove(0);
        }
        log.push(line);
    }
    Ok((report, log))
}

impl Report {
    /// Takes up one line of libFuzzer's.
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1).copied()
        };
        let number = |name: &str| after(name).and_then(|word| word.parse().ok());
        if let Some(coverage) = number("cov:") {
            self.coverage = coverage;
        }
        if let Some(corpus) = after("corp:") {
            corpus.clone_into(&mut self.corpus);
        }
        if let Some(executions) = number("stat::number_of_executed_units:") {
            self.executions = executions;
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.findings.push(path.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lib_fuzzer_says_is_read() {
        let mut report = Report::default();
        for line in [
            "INFO: seed corpus: files: 12 min: 3b max: 981b total: 5021b rss: 51Mb",
            "#12\tINITED cov: 901 ft: 1204 corp: 11/4kb exec/s: 0 rss: 60Mb",
            "#40021\tNEW    cov: 945 ft: 2201 corp: 80/12kb lim: 981 exec/s: 4002 rss: 75Mb L: 12/981 MS: 1 EraseBytes-",
            "artifact_prefix='artifacts/x/'; Test unit written to artifacts/x/crash-0a",
            "stat::number_of_executed_units: 40100",
        ] {
            report.read(line);
        }
        let findings = vec!["artifacts/x/crash-0a".to_owned()];
        let expected =
            Report { executions: 40100, coverage: 945, corpus: "80/12kb".to_owned(), findings };
        assert_eq!(report, expected);
    }

    #[test]
    fn the_targets_are_those_of_the_package() {
        let targets = targets().unwrap();
        assert!(targets.contains(&"config_json".to_owned()) && targets.is_sorted(), "{targets:?}");
    }
}
