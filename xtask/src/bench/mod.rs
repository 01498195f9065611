//! What `cargo bench` measured: kept, compared with what it measured before, and shown.

mod check;
mod limits;
mod record;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

pub use check::{Change, changes, lost};
pub use limits::Limits;
pub use record::{Record, Row};
pub use report::{ReportArgs, report};

use crate::root;

/// The variable that adds the benchmarks of a whole Qwen3-0.6B.
pub const FULL: &str = "NV_BENCH_FULL";

/// The arguments of `cargo xtask bench-record`.
#[derive(Debug, clap::Args)]
pub struct RecordArgs {
    /// Only benchmarks whose name this regular expression finds
    filter: Option<String>,
    /// Where to write the record [default: benches/record/DATE-CPU.csv]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The arguments of `cargo xtask bench-check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The record to compare with
    old: PathBuf,
    /// The record that must not be slower
    new: PathBuf,
    /// How much slower a benchmark may be beyond its noise, of its time
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    allow: f64,
}

/// Runs `cargo bench`, between two measurements of the machine's limits, and writes what it measured as a record.
///
/// # Errors
/// If a benchmark fails, or the record can't be written.
pub fn record(args: &RecordArgs, out: &mut dyn Write) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "files bear the time of the same clock")]
    let start = SystemTime::now();
    let mut bench = vec!["bench", "--package", "nv-benches"];
    if let Some(filter) = &args.filter {
        bench.extend(["--", filter]);
    }
    let before = Limits::measure()?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(&bench).current_dir(root()).status()?;
    ensure!(status.success(), "cargo bench failed: {status}");

    let variables = [FULL, "NV_ISA"].into_iter().filter_map(|name| {
        let value = env::var_os(name)?;
        Some(format!("{name}={} ", value.display()))
    });
    let command = format!("{}cargo {}", variables.collect::<String>(), bench.join(" "));
    let limits = before.max(Limits::measure()?);
    let record = Record::of_criterion(&root().join("target/criterion"), start, command, limits)?;
    ensure!(!record.rows.is_empty(), "no benchmark has a name that the filter finds");
    let path = args.out.clone().unwrap_or_else(|| {
        root().join("benches/record").join(format!("{}-{}.csv", record.date, slug(&record.cpu)))
    });
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&path, record.to_csv()?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(out, "{} benchmarks in {}", record.rows.len(), path.display())?;
    Ok(())
}

/// Compares two records, and prints what became faster or slower by more than noise, and what the new one lacks.
///
/// # Errors
/// If something became slower by more than is allowed, or a record can't be read.
pub fn check(args: &CheckArgs, out: &mut dyn Write) -> Result<()> {
    let (old, new) = (Record::read(&args.old)?, Record::read(&args.new)?);
    let machine =
        |record: &Record| format!("{} × {}, kernels {}", record.num_cpus, record.cpu, record.isa);
    let (old_machine, new_machine) = (machine(&old), machine(&new));
    ensure!(
        old_machine == new_machine,
        "the records are not of the same machine and kernels: {old_machine} and {new_machine}"
    );
    let changes = changes(&old, &new, args.allow);
    for change in changes.iter().filter(|change| change.is_slower || change.is_faster) {
        writeln!(out, "{change}")?;
    }
    let lost = lost(&old, &new);
    for name in &lost {
        writeln!(out, "gone    {name}")?;
    }
    let num_slower = changes.iter().filter(|change| change.is_slower).count();
    writeln!(out, "{} compared, {num_slower} slower, {} gone", changes.len(), lost.len())?;
    ensure!(!changes.is_empty(), "the records have no benchmark in common");
    ensure!(num_slower == 0, "{num_slower} benchmarks became slower");
    Ok(())
}

/// A name as a part of a file's name.
fn slug(name: &str) -> String {
    let parts = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    parts.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}
