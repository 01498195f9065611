//! A record: the times of all benchmarks, and what they were measured on.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use nv_kernels::Isa;
use serde::Deserialize;
use serde_json::Value;

use super::limits::Limits;
use crate::root;

const COLUMNS: [&str; 6] = ["name", "median_ns", "lower_ns", "upper_ns", "elements", "bytes"];

/// The limits among what a record says of itself.
const BANDWIDTH: &str = "read bytes a second";
const PEAK: &str = " operations a second";

/// What `cargo bench` measured at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// The day, as 2026-01-31.
    pub date: String,
    /// The processor's name.
    pub cpu: String,
    /// Processors that the benchmarks could use.
    pub num_cpus: String,
    /// The tier of kernels that the models ran on: the best one, or the one that `NV_ISA` names.
    pub isa: String,
    /// The commit, with a `+` behind it if the tree had changes.
    pub commit: String,
    /// How to measure it again.
    pub command: String,
    /// What the machine could do at best, measured before and after the benchmarks.
    pub limits: Limits,
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
    /// What an iteration works through: tokens, tensors, …; floating-point operations, if `bytes` is given too.
    pub elements: Option<u64>,
    /// Bytes that an iteration works through; of a kernel, those that it has to read and to write.
    pub bytes: Option<u64>,
}

impl Record {
    /// What criterion has written to `dir` since `start`, on a machine of these limits.
    ///
    /// # Errors
    /// If its files can't be read.
    pub fn of_criterion(
        dir: &Path,
        start: SystemTime,
        command: String,
        limits: Limits,
    ) -> Result<Self> {
        let mut rows = Vec::new();
        collect(dir, start, &mut rows)?;
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        let changes = said_by("git", &["status", "--porcelain", "--untracked-files=no"])?;
        let mark = if changes.is_empty() { "" } else { "+" };
        Ok(Self {
            date: said_by("date", &["-u", "+%F"])?,
            cpu: cpu(),
            num_cpus: std::thread::available_parallelism().map_or(1, usize::from).to_string(),
            isa: Isa::from_env()?.to_string(),
            commit: format!("{}{mark}", said_by("git", &["rev-parse", "--short=12", "HEAD"])?),
            command,
            limits,
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

    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut record = Self::default();
        let mut told = BTreeSet::new();
        for line in text.lines().take_while(|line| line.starts_with('#')) {
            let (key, value) = line[1..].split_once(':').context("a `#` line is `# key: value`")?;
            let (key, value) = (key.trim(), value.trim());
            ensure!(told.insert(key), "`{key}` is told twice");
            record.set(key, value)?;
        }
        for key in record.about_mut().map(|(key, _)| key).into_iter().chain([BANDWIDTH]) {
            ensure!(told.contains(key), "`{key}` is not told");
        }
        let mut names = BTreeSet::new();
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
        ensure!(reader.headers()? == COLUMNS[..], "the columns are {}", COLUMNS.join(","));
        for row in reader.into_records() {
            let row = row?;
            ensure!(names.insert(row[0].to_owned()), "`{}` is there twice", &row[0]);
            let count = |i: usize| match &row[i] {
                "" => Ok(None),
                count => count.parse().map(Some).with_context(|| format!("`{count}` is no count")),
            };
            record.rows.push(Row {
                name: row[0].to_owned(),
                median_ns: positive(&row[1])?,
                lower_ns: positive(&row[2])?,
                upper_ns: positive(&row[3])?,
                elements: count(4)?,
                bytes: count(5)?,
            });
        }
        Ok(record)
    }

    /// Takes in what a line says of the record.
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        if key == BANDWIDTH {
            self.limits.read_bandwidth = positive(value)?;
        } else if let Some(isa) = key.strip_suffix(PEAK) {
            self.limits.product_peaks.push((isa.parse()?, positive(value)?));
        } else {
            let fields = self.about_mut();
            let field = fields.into_iter().find(|(name, _)| *name == key);
            let (_, field) =
                field.with_context(|| format!("`{key}` is nothing that a record tells"))?;
            value.clone_into(field);
        }
        Ok(())
    }

    /// The record as CSV, below lines that begin with `#` and say what it is of.
    ///
    /// # Errors
    /// None that memory doesn't run out for.
    pub fn to_csv(&self) -> Result<String> {
        let mut about = self.clone();
        let mut head = about.about_mut().map(|(key, value)| format!("# {key}: {value}\n")).concat();
        writeln!(head, "# {BANDWIDTH}: {:.0}", self.limits.read_bandwidth)?;
        for (isa, peak) in &self.limits.product_peaks {
            writeln!(head, "# {isa}{PEAK}: {peak:.0}")?;
        }
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(COLUMNS)?;
        for Row { name, median_ns, lower_ns, upper_ns, elements, bytes } in &self.rows {
            let [median, lower, upper] =
                [median_ns, lower_ns, upper_ns].map(|ns| format!("{ns:.2}"));
            let [elements, bytes] =
                [elements, bytes].map(|count| count.map_or_else(String::new, |it| it.to_string()));
            writer.write_record([name, &median, &lower, &upper, &elements, &bytes])?;
        }
        Ok(head + &String::from_utf8(writer.into_inner()?)?)
    }

    fn about_mut(&mut self) -> [(&'static str, &mut String); 6] {
        let Self { date, cpu, num_cpus, isa, commit, command, limits: _, rows: _ } = self;
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
    let (elements, bytes) = match Option::deserialize(&benchmark["throughput"])? {
        None => (None, None),
        Some(Throughput::Elements(elements)) => (Some(elements), None),
        Some(Throughput::Bytes(bytes)) => (None, Some(bytes)),
        Some(Throughput::ElementsAndBytes { elements, bytes }) => (Some(elements), Some(bytes)),
    };
    Ok(Row {
        name: benchmark["full_id"].as_str().context("there is no full_id")?.to_owned(),
        median_ns: number("/median/point_estimate")?,
        lower_ns: number("/median/confidence_interval/lower_bound")?,
        upper_ns: number("/median/confidence_interval/upper_bound")?,
        elements,
        bytes,
    })
}

/// What an iteration works through, as criterion writes it.
#[derive(Deserialize)]
enum Throughput {
    Elements(u64),
    Bytes(u64),
    ElementsAndBytes { elements: u64, bytes: u64 },
}

fn positive(text: &str) -> Result<f64> {
    let number: f64 = text.parse().with_context(|| format!("`{text}` is no number"))?;
    ensure!(number > 0.0 && number.is_finite(), "`{text}` is not above zero");
    Ok(number)
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
        let row = |name: &str, elements, bytes| Row {
            name: name.to_owned(),
            median_ns: 1234.5,
            lower_ns: 1200.25,
            upper_ns: 1300.75,
            elements,
            bytes,
        };
        Record {
            date: "2026-01-31".into(),
            cpu: "A: B".into(),
            num_cpus: "2".into(),
            isa: "avx2".into(),
            commit: "abc+".into(),
            command: "cargo bench".into(),
            limits: Limits {
                read_bandwidth: 36e9,
                product_peaks: vec![(Isa::Scalar, 1e9), (Isa::Avx2, 16e9)],
            },
            rows: vec![
                row("a/b, \"c\"", None, None),
                row("d", None, Some(10)),
                row("e", Some(7), None),
                row("f", Some(7), Some(10)),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let csv = example().to_csv().unwrap();
        assert!(csv.starts_with("# date: 2026-01-31\n# cpu: A: B\n"), "{csv}");
        assert!(csv.contains("\n# avx2 operations a second: 16000000000\nname,"), "{csv}");
        assert_eq!(Record::parse(&csv).unwrap(), example());
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let check = |text: &str, expected: &str| {
            assert_eq!(Record::parse(text).unwrap_err().to_string(), expected, "{text:?}");
        };
        check("", "`date` is not told");
        check("# wind: north\n", "`wind` is nothing that a record tells");
        check("# wind\n", "a `#` line is `# key: value`");
        check("# cpu: a\n# cpu: b\n", "`cpu` is told twice");
        check("# read bytes a second: -1\n", "`-1` is not above zero");
        check("# avx2 operations a second: NaN\n", "`NaN` is not above zero");
        let isa = "NV_ISA: `mmx` is not an instruction-set tier; use scalar, avx2, avxvnni, avx512 or avx512bf16";
        check("# mmx operations a second: 1\n", isa);

        let csv = example().to_csv().unwrap();
        let (head, _) = csv.split_once("name,").unwrap();
        check(
            &head.replace("# read bytes a second: 36000000000\n", ""),
            "`read bytes a second` is not told",
        );
        let columns = COLUMNS.join(",");
        check(&format!("{head}name,unit\n"), &format!("the columns are {columns}"));
        let check_rows =
            |rows: &str, expected| check(&format!("{head}{columns}\n{rows}"), expected);
        check_rows("a,1,x,3,,\n", "`x` is no number");
        check_rows("a,0,0,0,,\n", "`0` is not above zero");
        check_rows("a,1,2,inf,,\n", "`inf` is not above zero");
        check_rows("a,1,2,3,many,\n", "`many` is no count");
        check_rows("a,1,2,3,,-1\n", "`-1` is no count");
        check_rows("a,1,2,3,,\na,1,2,3,,\n", "`a` is there twice");
        let found = Record::parse(&format!("{head}{columns}\na,1,2\n")).unwrap_err().to_string();
        assert!(found.contains("found record with 3 fields"), "{found}");
    }

    #[test]
    fn throughput_is_as_criterion_writes_it() {
        let median = r#"{"point_estimate": 2.0, "confidence_interval": {"lower_bound": 1.0, "upper_bound": 3.0}}"#;
        let estimates = format!(r#"{{"median": {median}}}"#);
        let check = |throughput: &str, expected| {
            let benchmark = format!(r#"{{"full_id": "a", "throughput": {throughput}}}"#);
            let row = row(&estimates, &benchmark).unwrap();
            assert_eq!((row.elements, row.bytes), expected, "{throughput}");
        };
        check("null", (None, None));
        check(r#"{"Elements": 7}"#, (Some(7), None));
        check(r#"{"Bytes": 8}"#, (None, Some(8)));
        check(r#"{"ElementsAndBytes": {"elements": 7, "bytes": 8}}"#, (Some(7), Some(8)));
        let error = row(&estimates, r#"{"full_id": "a", "throughput": {"Bits": 1}}"#).unwrap_err();
        assert!(error.to_string().contains("unknown variant `Bits`"), "{error}");
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
        let name = "group/bench".to_owned();
        let (elements, bytes) = (Some(7), None);
        let expected = Row { name, median_ns: 2.0, lower_ns: 1.0, upper_ns: 3.0, elements, bytes };
        assert_eq!(rows, [expected]);

        let mut none = Vec::new();
        let written = fs::metadata(result.join("estimates.json")).unwrap().modified().unwrap();
        let later = written + std::time::Duration::from_mins(1);
        collect(dir.path(), later, &mut none).unwrap();
        assert_eq!(none, []);
    }
}
