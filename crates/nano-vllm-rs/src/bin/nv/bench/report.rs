//! What was measured, for people and for programs.

use std::fmt;

use clap::ValueEnum;
use nano_vllm_rs::kernels::Isa;
use nano_vllm_rs::qwen3::Preset;
use serde_json::{Value, json};

use super::floor::{Floor, Work};
use super::limits::{Peak, Products};
use super::serving::Served;
use super::timing::{Timing, median};
use crate::args::Section;
use crate::format::{bytes, grouped, seconds};
use crate::table::{Align, Table};

/// All of a run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) model: String,
    pub(crate) num_parameters: u64,
    /// Bytes of matrices that each step reads.
    pub(crate) weight_bytes: u64,
    pub(crate) dtype: &'static str,
    /// What its matrices are stored as.
    pub(crate) formats: String,
    /// How they were quantised for the run, if they were.
    pub(crate) quantize: Option<Preset>,
    pub(crate) products: Products,
    pub(crate) cpu_name: Option<String>,
    pub(crate) isa: Isa,
    pub(crate) threads: usize,
    pub(crate) peaks: Vec<Peak>,
    pub(crate) memory: Option<Memory>,
    pub(crate) rows: Vec<Row>,
    /// What `--requests` measured, which is nothing else then.
    pub(crate) served: Option<Served>,
    pub(crate) skipped: Vec<Skipped>,
    /// Whether the user ended it before everything was measured.
    pub(crate) interrupted: bool,
}

/// One measurement.
#[derive(Debug)]
pub(crate) struct Row {
    section: Section,
    name: String,
    pub(crate) timing: Timing,
    /// What there is a floor for: tokens that the time is for, and their work.
    work: Option<(usize, Work)>,
}

/// Private memory at its peak, while a prompt was computed.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) num_tokens: usize,
    pub(crate) peak_bytes: u64,
    /// What the keys and values of the prompt take of it.
    pub(crate) kv_cache_bytes: u64,
}

/// What was not measured, and why.
#[derive(Debug)]
pub(crate) struct Skipped {
    pub(crate) section: Section,
    pub(crate) name: String,
    pub(crate) why: String,
}

impl Row {
    pub(crate) fn new(section: Section, name: String, timing: Timing) -> Self {
        Self { section, name, timing, work: None }
    }

    /// A row of the time in which `num_tokens` tokens take `work`.
    pub(crate) fn with_work(self, num_tokens: usize, work: Work) -> Self {
        Self { work: Some((num_tokens, work)), ..self }
    }

    /// `decode, context 128`
    pub(crate) fn full_name(&self) -> String {
        format!("{}, {}", name(self.section), self.name)
    }

    fn tokens_a_second(&self) -> Option<f64> {
        self.work.map(|(num_tokens, _)| num_tokens as f64 / self.timing.seconds)
    }

    fn floor(&self) -> Option<Floor> {
        self.work.map(|(_, work)| work.floor(self.timing.limits))
    }
}

impl Memory {
    fn besides_kv_cache_bytes(&self) -> u64 {
        self.peak_bytes.saturating_sub(self.kv_cache_bytes)
    }
}

impl Report {
    /// The numbers of the table in seconds, bytes, and operations a second.
    pub(crate) fn to_json(&self) -> Value {
        let peaks = self.peaks.iter().map(|peak| {
            json!({
                "isa": peak.isa.to_string(),
                "precision": peak.products.name(),
                "operations_per_second": peak.operations_a_second,
            })
        });
        let rows = self.rows.iter().map(|row| {
            let (timing, floor) = (row.timing, row.floor());
            json!({
                "section": name(row.section),
                "name": row.name,
                "repetitions": timing.repetitions,
                "seconds": timing.seconds,
                "tokens": row.work.map(|(num_tokens, _)| num_tokens),
                "tokens_per_second": row.tokens_a_second(),
                "bytes": row.work.map(|(_, work)| work.bytes),
                "operations": row.work.map(|(_, work)| work.operations),
                "read_bandwidth": timing.limits.read_bandwidth,
                "product_peak": timing.limits.product_peak,
                "limit": floor.map(|floor| floor.limit.name()),
                "floor_seconds": floor.map(|floor| floor.seconds),
                "ratio": floor.map(|floor| floor.seconds / timing.seconds),
            })
        });
        let memory = self.memory.as_ref().map(|memory| {
            json!({
                "prompt_tokens": memory.num_tokens,
                "peak_private_bytes": memory.peak_bytes,
                "kv_cache_bytes": memory.kv_cache_bytes,
            })
        });
        let skipped = self.skipped.iter().map(|skipped| {
            json!({ "section": name(skipped.section), "name": skipped.name, "why": skipped.why })
        });
        json!({
            "model": {
                "name": self.model,
                "dtype": self.dtype,
                "formats": self.formats,
                "parameters": self.num_parameters,
                "bytes_per_step": self.weight_bytes,
            },
            "machine": {
                "cpu": self.cpu_name,
                "isa": self.isa.to_string(),
                "threads": self.threads,
                "product_peaks": peaks.collect::<Vec<_>>(),
            },
            "memory": memory,
            "rows": rows.collect::<Vec<_>>(),
            "requests": self.served.as_ref().map(Served::to_json),
            "skipped": skipped.collect::<Vec<_>>(),
            "interrupted": self.interrupted,
        })
    }

    fn model_table(&self) -> Table<2> {
        let mut table = Table::new("model", [Align::Left, Align::Left]);
        table.row([&"name", &self.model]);
        table.row([&"dtype", &self.dtype]);
        table.row([&"matrices", &self.formats]);
        table.row([&"parameters", &grouped(self.num_parameters)]);
        table.row([&"read by every step", &bytes(self.weight_bytes)]);
        table
    }

    fn machine_table(&self) -> Table<2> {
        let mut table = Table::new("machine", [Align::Left, Align::Left]);
        table.row([&"CPU", &self.cpu_name.as_deref().unwrap_or("n/a: this system does not tell")]);
        table.row([&"kernels", &self.isa]);
        table.row([&"threads", &self.threads]);
        table
    }

    fn limit_table(&self) -> Table<5> {
        let align = [Align::Left, Align::Right, Align::Right, Align::Right, Align::Left];
        let mut table = Table::new("limits of the machine", align);
        table.row([&"", &"median", &"lowest", &"highest", &""]);
        let of_rows = self.rows.iter().map(|row| row.timing.limits);
        let limits = of_rows.chain(self.served.iter().map(|served| served.limits));
        let bandwidths = limits.clone().map(|limits| limits.read_bandwidth);
        if let Some(range) = Range::of(bandwidths) {
            table.row([
                &"reading the mapped weights",
                &giga(range.median),
                &giga(range.lowest),
                &giga(range.highest),
                &"GB/s",
            ]);
        }
        if let Some(range) = Range::of(limits.map(|limits| limits.product_peak)) {
            table.row([
                &format!("{} products, {}", self.products.name(), self.isa),
                &giga(range.median),
                &giga(range.lowest),
                &giga(range.highest),
                &self.products.unit(),
            ]);
        }
        for peak in &self.peaks {
            let name = format!("{} products, {}", peak.products.name(), peak.isa);
            let unit = format!("{}, at the start", peak.products.unit());
            table.row([&name, &giga(peak.operations_a_second), &"", &"", &unit]);
        }
        table
    }

    fn row_table(&self) -> Table<9> {
        const RIGHT: Align = Align::Right;
        let align =
            [Align::Left, Align::Left, RIGHT, RIGHT, RIGHT, RIGHT, Align::Left, RIGHT, RIGHT];
        let mut table = Table::new("measured", align);
        table.row([&"", &"", &"time", &"tok/s", &"ratio", &"floor", &"limit", &"GB/s", &"GFLOP/s"]);
        for row in &self.rows {
            let (limits, floor) = (row.timing.limits, row.floor());
            let of_floor = |text: fn(Floor) -> String| floor.map(text).unwrap_or_default();
            table.row([
                &name(row.section),
                &row.name,
                &seconds(row.timing.seconds),
                &row.tokens_a_second().map(|speed| format!("{speed:.1}")).unwrap_or_default(),
                &floor
                    .map(|floor| format!("{:.2}", floor.seconds / row.timing.seconds))
                    .unwrap_or_default(),
                &of_floor(|floor| seconds(floor.seconds)),
                &of_floor(|floor| floor.limit.name().to_owned()),
                &giga(limits.read_bandwidth),
                &giga(limits.product_peak),
            ]);
        }
        table
    }

    fn memory_table(memory: &Memory) -> Table<2> {
        let title = format!("private memory, prompt of {}", grouped(memory.num_tokens as u64));
        let mut table = Table::new(title, [Align::Left, Align::Right]);
        table.row([&"peak", &bytes(memory.peak_bytes)]);
        table.row([&"of which the KV cache", &bytes(memory.kv_cache_bytes)]);
        table.row([&"besides", &bytes(memory.besides_kv_cache_bytes())]);
        table
    }

    fn skipped_table(&self) -> Table<3> {
        let mut table = Table::new("not measured", [Align::Left; 3]);
        for Skipped { section, name: row, why } in &self.skipped {
            table.row([&name(*section), row, why]);
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}", self.model_table(), self.machine_table(), self.limit_table())?;
        if !self.rows.is_empty() {
            write!(f, "\n{}", self.row_table())?;
        }
        if let Some(served) = &self.served {
            write!(f, "\n{served}")?;
        }
        if let Some(memory) = &self.memory {
            write!(f, "\n{}", Self::memory_table(memory))?;
        }
        if !self.skipped.is_empty() {
            write!(f, "\n{}", self.skipped_table())?;
        }
        if self.interrupted {
            writeln!(f, "\ninterrupted: this is a part, what was measured until then")?;
        }
        Ok(())
    }
}

/// How far a limit went while rows were measured.
struct Range {
    median: f64,
    lowest: f64,
    highest: f64,
}

impl Range {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Option<Self> {
        Some(Self {
            lowest: values.clone().min_by(f64::total_cmp)?,
            highest: values.clone().max_by(f64::total_cmp)?,
            median: median(values),
        })
    }
}

/// In units of 10⁹.
fn giga(number: f64) -> String {
    format!("{:.1}", number / 1e9)
}

/// The section's name on the command line.
fn name(section: Section) -> String {
    let value = section.to_possible_value();
    value.map(|value| value.get_name().to_owned()).unwrap_or_default()
}
