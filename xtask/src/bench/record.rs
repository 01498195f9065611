//! A record: the times of all benchmarks, and what they were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use nv_kernels::Isa;
use serde_json::Value;

use crate::root;

const COLUMNS: [&str; 6] = ["name", "median_ns", "lower_ns", "upper_ns", "unit", "units"];

/// What `cargo bench` measured at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// The day, as 2026-01-31.
    pub date: String,
    /// The processor's name.
    pub cpu: String,
    /// Processors that the benchmarks could use.
    pub num_cpus: String,
    /// The best tier of kernels.
    pub isa: String,
    /// The commit, with a `+` behind it if the tree had changes.
    pub commit: String,
    /// How to measure it again.
    pub command: String,
    /// The benchmarks, by name.
    pub rows: Vec<Row>,
}

/// A benchmark's time.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// `group/benchmark`.
    pub name: String,
    /// The median of an iteration, in nanoseconds.
    pub median_ns: f64,
    /// The lower end of the interval that holds the median with 95 % confidence.
    pub lower_ns: f64,
    /// Its upper end.
    pub upper_ns: f64,
    /// What an iteration works through.
    pub throughput: Option<Throughput>,
}

/// What an iteration works through: so many of a unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Throughput {
    /// `bytes` or `elements`.
    pub unit: String,
    /// How many.
    pub units: u64,
}

impl Record {
    /// What criterion has written to `dir` since `start`.
    ///
    /// # Errors
    /// If its files can't be read.
    pub fn of_criterion(dir: &Path, start: SystemTime, command: String) -> Result<Self> {
        let mut rows = Vec::new();
        collect(dir, start, &mut rows)?;
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        let changes = said_by("git", &["status", "--porcelain", "--untracked-files=no"])?;
        let mark = if changes.is_empty() { "" } else { "+" };
        Ok(Self {
            date: said_by("date", &["-u", "+%F"])?,
            cpu: cpu(),
            num_cpus: std::thread::available_parallelism().map_or(1, usize::from).to_string(),
            isa: Isa::detect().to_string(),
            commit: format!("{}{mark}", said_by("git", &["rev-parse", "--short=12", "HEAD"])?),
            command,
            rows,
        })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// If the file is not one; the error says where.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a record", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut record = Self::default();
        for line in text.lines().take_while(|line| line.starts_with('#')) {
            let (key, value) = line[1..].split_once(':').context("a `#` line is `# key: value`")?;
            let (_, field) =
                record
                    .about_mut()
                    .into_iter()
                    .find(|(name, _)| *name == key.trim())
                    .with_context(|| format!("`{}` is nothing that a record tells", key.trim()))?;
            value.trim().clone_into(field);
        }
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
        ensure!(reader.headers()? == COLUMNS[..], "the columns are {}", COLUMNS.join(","));
        for row in reader.into_records() {
            let row = row?;
            let number = |i: usize| {
                row[i].parse::<f64>().with_context(|| format!("`{}` is no number", &row[i]))
            };
            let throughput = match &row[4] {
                "" => None,
                unit => Some(Throughput {
                    unit: unit.to_owned(),
                    units: row[5].parse().with_context(|| format!("`{}` is no count", &row[5]))?,
                }),
            };
            record.rows.push(Row {
                name: row[0].to_owned(),
                median_ns: number(1)?,
                lower_ns: number(2)?,
                upper_ns: number(3)?,
                throughput,
            });
        }
        Ok(record)
    }

    /// The record as CSV, below lines that begin with `#` and say what it is of.
    ///
    /// # Errors
    /// None that memory doesn't run out for.
    pub fn to_csv(&self) -> Result<String> {
        let mut about = self.clone();
        let about = about.about_mut().map(|(key, value)| format!("# {key}: {value}\n")).concat();
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(COLUMNS)?;
        for Row { name, median_ns, lower_ns, upper_ns, throughput } in &self.rows {
            let [median, lower, upper] =
                [median_ns, lower_ns, upper_ns].map(|ns| format!("{ns:.2}"));
            let (unit, units) = throughput
                .as_ref()
                .map_or_else(Default::default, |of| (&*of.unit, of.units.to_string()));
            writer.write_record([name, &*median, &lower, &upper, unit, &units])?;
        }
        Ok(about + &String::from_utf8(writer.into_inner()?)?)
    }

    fn about_mut(&mut self) -> [(&'static str, &mut String); 6] {
        let Self { date, cpu, num_cpus, isa, commit, command, rows: _ } = self;
        [
            ("date", date),
            ("cpu", cpu),
            ("cpus", num_cpus),
            ("kernels", isa),
            ("commit", commit),
            ("command", command),
        ]
    }
}

/// Adds the results below `dir` that are newer than `start`.
fn collect(dir: &Path, start: SystemTime, rows: &mut Vec<Row>) -> Result<()> {
    let estimates = dir.join("new/estimates.json");
    if let Ok(metadata) = fs::metadata(&estimates)
        && metadata.modified()? >= start
    {
        let benchmark = fs::read_to_string(dir.join("new/benchmark.json"))?;
        rows.push(
            row(&fs::read_to_string(&estimates)?, &benchmark)
                .with_context(|| format!("{} is not what criterion writes", estimates.display()))?,
        );
    }
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != "new" {
            collect(&entry.path(), start, rows)?;
        }
    }
    Ok(())
}

fn row(estimates: &str, benchmark: &str) -> Result<Row> {
    let estimates: Value = serde_json::from_str(estimates)?;
    let benchmark: Value = serde_json::from_str(benchmark)?;
    let number = |at: &str| {
        let found = estimates.pointer(at).and_then(Value::as_f64);
        found.with_context(|| format!("there is no number at {at}"))
    };
    let throughput = benchmark["throughput"].as_object().and_then(|units| units.iter().next());
    Ok(Row {
        name: benchmark["full_id"].as_str().context("there is no full_id")?.to_owned(),
        median_ns: number("/median/point_estimate")?,
        lower_ns: number("/median/confidence_interval/lower_bound")?,
        upper_ns: number("/median/confidence_interval/upper_bound")?,
        throughput: throughput.and_then(|(unit, units)| {
            Some(Throughput { unit: unit.to_ascii_lowercase(), units: units.as_u64()? })
        }),
    })
}

/// The processor's name, where Linux tells it.
fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// What a command prints.
fn said_by(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).current_dir(root()).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Record {
        let row = |name: &str, throughput| Row {
            name: name.to_owned(),
            median_ns: 1234.5,
            lower_ns: 1200.25,
            upper_ns: 1300.75,
            throughput,
        };
        Record {
            date: "2026-01-31".into(),
            cpu: "A: B".into(),
            num_cpus: "2".into(),
            isa: "avx2".into(),
            commit: "abc+".into(),
            command: "cargo bench".into(),
            rows: vec![
                row("a/b, \"c\"", None),
                row("d", Some(Throughput { unit: "bytes".into(), units: 10 })),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let csv = example().to_csv().unwrap();
        assert!(csv.starts_with("# date: 2026-01-31\n# cpu: A: B\n"), "{csv}");
        assert_eq!(Record::parse(&csv).unwrap(), example());
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let check = |text: &str, expected: &str| {
            assert_eq!(Record::parse(text).unwrap_err().to_string(), expected, "{text:?}");
        };
        let columns = COLUMNS.join(",");
        check("", &format!("the columns are {columns}"));
        check("# wind: north\n", "`wind` is nothing that a record tells");
        check("# wind\n", "a `#` line is `# key: value`");
        check(&format!("{columns}\na,1,x,3,,\n"), "`x` is no number");
        check(&format!("{columns}\na,1,2,3,bytes,many\n"), "`many` is no count");
    }

    #[test]
    fn new_results_of_criterion_are_taken_and_old_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let result = dir.path().join("group/bench/new");
        fs::create_dir_all(&result).unwrap();
        let median = r#"{"point_estimate": 2.0, "confidence_interval": {"lower_bound": 1.0, "upper_bound": 3.0}}"#;
        fs::write(result.join("estimates.json"), format!(r#"{{"median": {median}}}"#)).unwrap();
        let about = r#"{"full_id": "group/bench", "throughput": {"Elements": 7}}"#;
        fs::write(result.join("benchmark.json"), about).unwrap();

        let mut rows = Vec::new();
        collect(dir.path(), SystemTime::UNIX_EPOCH, &mut rows).unwrap();
        let throughput = Some(Throughput { unit: "elements".into(), units: 7 });
        let name = "group/bench".to_owned();
        let expected = Row { name, median_ns: 2.0, lower_ns: 1.0, upper_ns: 3.0, throughput };
        assert_eq!(rows, [expected]);

        let mut none = Vec::new();
        let written = fs::metadata(result.join("estimates.json")).unwrap().modified().unwrap();
        let later = written + std::time::Duration::from_mins(1);
        collect(dir.path(), later, &mut none).unwrap();
        assert_eq!(none, []);
    }
}
