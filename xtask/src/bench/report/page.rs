//! The page of a record: what was measured on what, in tables and plots.

use std::fmt::Write;

use anyhow::{Result, ensure};
use nv_kernels::Isa;

use super::plot::{Curve, Look, Plot};
use super::roofline::{self, Kernel};
use super::series::{Series, exponent};
use crate::bench::record::{Record, Row};

/// How many sizes say how a cost grows.
const MIN_SIZES: usize = 3;

/// The model's benchmarks against the number in their names: group, title, axis.
const MODEL_PLOTS: [(&str, &str, &str); 4] = [
    ("model/prefill", "Prompts", "length of the prompt (tokens)"),
    ("model/prefill of 128", "Prompts of 128 tokens together", "batch (sequences)"),
    ("model/decode", "Generation, one sequence", "context (tokens)"),
    ("model/decode at 128", "Generation after 128 tokens, together", "batch (sequences)"),
];

/// A page in Markdown, and the plots that it shows.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) page: String,
    /// Names of files, and SVG.
    pub(super) plots: Vec<(String, String)>,
    /// The plots' folder, as seen from the page.
    folder: String,
}

impl Report {
    /// The page of a record whose plots will be in `folder` beside it.
    ///
    /// # Errors
    /// If the record is empty, or has times that can't be drawn.
    pub(super) fn of(record: &Record, folder: &str) -> Result<Self> {
        ensure!(!record.rows.is_empty(), "it has no rows");
        let mut report = Self { page: String::new(), plots: Vec::new(), folder: folder.to_owned() };
        let series = Series::of(&record.rows);
        report.about(record)?;
        report.roofline(record)?;
        report.model(&series)?;
        report.growth(&series)?;
        report.rows(&record.rows)?;
        Ok(report)
    }

    fn about(&mut self, record: &Record) -> Result<()> {
        let Record { date, cpu, num_cpus, isa, commit, command, limits, rows } = record;
        let page = &mut self.page;
        writeln!(page, "# {cpu}, {date}\n")?;
        writeln!(
            page,
            "{} benchmarks: medians, and the intervals that hold them with 95 % confidence.\n",
            rows.len()
        )?;
        let lines = [
            ("processors", num_cpus),
            ("kernels", isa),
            ("commit", commit),
            ("command", &format!("`{command}`")),
        ];
        writeln!(page, "| | |\n| --- | --- |")?;
        for (what, value) in lines {
            writeln!(page, "| {what} | {} |", cell(value))?;
        }
        let bandwidth = significant(limits.read_bandwidth / 1e9);
        writeln!(page, "| memory, read | {bandwidth} GB/s |")?;
        for (isa, peak) in &limits.product_peaks {
            let ridge = significant(peak / limits.read_bandwidth);
            let peak = significant(peak / 1e9);
            writeln!(
                page,
                "| arithmetic, {isa} | {peak} GFLOP/s; memory is enough from {ridge} FLOP/byte |"
            )?;
        }
        writeln!(page)?;
        Ok(())
    }

    fn roofline(&mut self, record: &Record) -> Result<()> {
        let mut kernels = Kernel::of(record);
        if kernels.is_empty() {
            return Ok(());
        }
        writeln!(
            self.page,
            "## Kernels\n\nBytes are what a kernel has to read and to write at least. One whose data a cache holds may be above \
             the roof, which is that of memory.\n"
        )?;
        for isa in Isa::ALL {
            if let Some(plot) = roofline::plot(&kernels, &record.limits, isa) {
                self.plot(&format!("roofline-{isa}"), plot)?;
            }
        }
        kernels.sort_by_cached_key(|kernel| (kernel.name, natural(kernel.shape), kernel.isa));
        let page = &mut self.page;
        writeln!(page, "| kernel | shape | tier | FLOP/byte | GFLOP/s | GB/s | of the roof |")?;
        writeln!(page, "| --- | --- | --- | --: | --: | --: | --: |")?;
        for Kernel { name, shape, isa, intensity, operations, bandwidth, roof } in kernels {
            let [intensity, gflops, gbytes] =
                [intensity, operations / 1e9, bandwidth / 1e9].map(significant);
            let share = 100.0 * operations / roof;
            writeln!(
                page,
                "| {} | {} | {isa} | {intensity} | {gflops} | {gbytes} | {share:.0} % |",
                cell(name),
                cell(shape)
            )?;
        }
        writeln!(page)?;
        Ok(())
    }

    fn model(&mut self, series: &[Series<'_>]) -> Result<()> {
        let mut heading = "## Model\n\n";
        for (group, title, x) in MODEL_PLOTS {
            let of_group = series.iter().filter(|series| series.group() == Some(group));
            let curves = of_group.map(|series| Curve {
                name: series.member().unwrap_or(&series.name).to_owned(),
                points: series.speeds(),
                look: Look::Line,
            });
            let curves: Vec<Curve> = curves.filter(|curve| !curve.points.is_empty()).collect();
            if !curves.is_empty() {
                self.page += heading;
                heading = "";
                let plot = Plot { title: title.to_owned(), x, y: "speed (tokens/s)", curves };
                self.plot(&group.trim_start_matches("model/").replace(' ', "-"), plot)?;
            }
        }
        Ok(())
    }

    fn growth(&mut self, series: &[Series<'_>]) -> Result<()> {
        let is_model = |series: &Series<'_>| {
            MODEL_PLOTS.iter().any(|(group, ..)| series.group() == Some(group))
        };
        let growing: Vec<&Series<'_>> = series
            .iter()
            .filter(|series| series.rows.len() >= MIN_SIZES && !is_model(series))
            .collect();
        if growing.is_empty() {
            return Ok(());
        }
        writeln!(
            self.page,
            "## Growth\n\nTimes as a power of n: the exponent is 0 where the cost stays, 1 where it grows with n. The fit is over all \
             sizes, of which small ones may show what each call costs; the last step is between the two largest.\n"
        )?;
        let curve = |series: &&Series<'_>| Curve {
            name: series.name.clone(),
            points: series.times(),
            look: Look::Line,
        };
        let curves = growing.iter().map(curve).collect();
        let title = "Cost against size".to_owned();
        let x = "n (tensors, messages, sequences, …)";
        self.plot("growth", Plot { title, x, y: "median (s)", curves })?;
        let page = &mut self.page;
        writeln!(page, "| benchmark | n | exponent, fitted | exponent, last step |")?;
        writeln!(page, "| --- | --- | --: | --: |")?;
        for series in growing {
            let times = series.times();
            let sizes: Vec<String> = series.rows.iter().map(|(n, _)| n.to_string()).collect();
            let [fitted, last] = [&times[..], &times[times.len() - 2..]].map(|points| {
                exponent(points).map_or_else(|| "–".to_owned(), |e| format!("{e:.2}"))
            });
            writeln!(
                page,
                "| {} | {} | {fitted} | {last} |",
                cell(&series.name),
                sizes.join(", ")
            )?;
        }
        writeln!(page)?;
        Ok(())
    }

    /// All of them, by the first part of their names.
    fn rows(&mut self, rows: &[Row]) -> Result<()> {
        let mut rows: Vec<(&str, &str, &Row)> = rows
            .iter()
            .map(|row| {
                let (group, rest) = row.name.split_once('/').unwrap_or(("", &row.name));
                (group, rest, row)
            })
            .collect();
        rows.sort_by_cached_key(|(group, rest, _)| (*group, natural(rest)));
        let page = &mut self.page;
        writeln!(page, "## All benchmarks")?;
        for group in rows.chunk_by(|a, b| a.0 == b.0) {
            if !group[0].0.is_empty() {
                writeln!(page, "\n### {}", group[0].0)?;
            }
            writeln!(page, "\n| benchmark | median | interval | throughput |")?;
            writeln!(page, "| --- | --: | --- | --: |")?;
            for (_, rest, row) in group {
                let (name, median, interval) = (cell(rest), time(row.median_ns), interval(row));
                writeln!(page, "| {name} | {median} | {interval} | {} |", throughput(row))?;
            }
        }
        Ok(())
    }

    fn plot(&mut self, name: &str, plot: Plot) -> Result<()> {
        writeln!(self.page, "![{}]({}/{name}.svg)\n", plot.title, self.folder)?;
        self.plots.push((format!("{name}.svg"), plot.to_svg()?));
        Ok(())
    }
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Three digits, or all before the point.
fn significant(number: f64) -> String {
    let digits = match number.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        _ => 3,
    };
    format!("{number:.digits$}")
}

/// The largest unit of time of which `ns` is one or more, and its nanoseconds.
fn unit(ns: f64) -> (&'static str, f64) {
    match ns {
        ns if ns >= 1e9 => ("s", 1e9),
        ns if ns >= 1e6 => ("ms", 1e6),
        ns if ns >= 1e3 => ("µs", 1e3),
        _ => ("ns", 1.0),
    }
}

fn time(ns: f64) -> String {
    let (name, size) = unit(ns);
    format!("{} {name}", significant(ns / size))
}

/// The interval around the median, in the median's unit.
fn interval(row: &Row) -> String {
    let (name, size) = unit(row.median_ns);
    let [lower, upper] = [row.lower_ns, row.upper_ns].map(|ns| significant(ns / size));
    format!("{lower} – {upper} {name}")
}

/// What an iteration works through, a second.
fn throughput(row: &Row) -> String {
    // A unit for each nanosecond is a billion a second.
    let giga = |count: u64| significant(count as f64 / row.median_ns);
    match (row.elements, row.bytes) {
        (None, None) => String::new(),
        (None, Some(bytes)) => format!("{} GB/s", giga(bytes)),
        (Some(operations), Some(bytes)) => {
            format!("{} GB/s, {} GFLOP/s", giga(bytes), giga(operations))
        }
        (Some(elements), None) => {
            let speed = elements as f64 / row.median_ns * 1e9;
            let (prefix, size) = match speed {
                speed if speed >= 1e9 => ("G", 1e9),
                speed if speed >= 1e6 => ("M", 1e6),
                speed if speed >= 1e3 => ("k", 1e3),
                _ => ("", 1.0),
            };
            format!("{} {prefix}elements/s", significant(speed / size))
        }
    }
}

/// A key by which `16 tokens` comes before `128 tokens`: texts, each with the number behind it.
fn natural(text: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0_u64)];
    let mut is_number = false;
    for c in text.chars() {
        let last = parts.len() - 1;
        if let Some(digit) = c.to_digit(10) {
            parts[last].1 = parts[last].1.saturating_mul(10).saturating_add(digit.into());
            is_number = true;
        } else if is_number {
            parts.push((c.into(), 0));
            is_number = false;
        } else {
            parts[last].0.push(c);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::super::tests::RECORD;
    use super::*;

    #[test]
    fn the_page_has_every_number() {
        let report = Report::of(&Record::parse(RECORD).unwrap(), "plots").unwrap();
        let lines: Vec<&str> = report.page.lines().collect();
        for line in [
            "# Some CPU | 3 GHz, 2026-01-31",
            "11 benchmarks: medians, and the intervals that hold them with 95 % confidence.",
            "| processors | 2 |",
            "| kernels | avx2 |",
            "| commit | abc+ |",
            "| command | `cargo bench` |",
            "| memory, read | 10.0 GB/s |",
            "| arithmetic, scalar | 2.00 GFLOP/s; memory is enough from 0.200 FLOP/byte |",
            "| arithmetic, avx2 | 40.0 GFLOP/s; memory is enough from 4.00 FLOP/byte |",
            "## Kernels",
            "![Roofline of scalar](plots/roofline-scalar.svg)",
            "![Roofline of avx2](plots/roofline-avx2.svg)",
            "| qkv_proj | 1 tokens | scalar | 1.00 | 1.00 | 1.00 | 50 % |",
            "| qkv_proj | 1 tokens | avx2 | 1.00 | 8.00 | 8.00 | 80 % |",
            "| qkv_proj | 16 tokens | avx2 | 14.2 | 25.6 | 1.80 | 64 % |",
            "## Model",
            "![Prompts of 128 tokens together](plots/prefill-of-128.svg)",
            "![Generation, one sequence](plots/decode.svg)",
            "## Growth",
            "![Cost against size](plots/growth.svg)",
            // 1, 10 and 1000 µs: slopes of 1/2 and 1; of n's logarithms 0, 2, 4 and times' 0, 1, 3 the fit is 3/4.
            "| checkpoint/header/n | 1, 100, 10000 | 0.75 | 1.00 |",
            "## All benchmarks",
            "### checkpoint",
            "| header/1 | 1.00 µs | 0.990 – 1.01 µs | 1.00 Melements/s |",
            "| header/10000 | 1.00 ms | 0.990 – 1.01 ms | 10.0 Melements/s |",
            "### chat_template",
            "| render/1 messages | 1.00 µs | 0.990 – 1.01 µs | 0.200 GB/s |",
            "### model",
            "| decode/f32/context 128 | 2.00 ms | 1.90 – 2.10 ms | 8.00 kelements/s |",
            "### qkv_proj",
            "| 1 tokens/candle | 2.00 µs | 1.99 – 2.01 µs | 4.00 GB/s, 4.00 GFLOP/s |",
        ] {
            assert!(lines.contains(&line), "{line} is not in\n{}", report.page);
        }
        // Each in a row: those of kernels in two tables, but for candle's.
        let num_rows =
            lines.iter().filter(|line| line.contains("s | ") && line.contains(" – ")).count();
        assert_eq!(num_rows, 11);
        let position = |start: &str| lines.iter().position(|line| line.starts_with(start)).unwrap();
        assert!(position("| header/100 ") < position("| header/10000 "));
        let prompts = report.plots.iter().find(|(name, _)| name == "prefill-of-128.svg").unwrap();
        for text in ["batch (sequences)", "speed (tokens/s)", "f32"] {
            assert!(prompts.1.contains(text), "{text}");
        }
    }

    #[test]
    fn what_was_not_measured_is_not_on_the_page() {
        let mut record = Record::parse(RECORD).unwrap();
        record.rows.retain(|row| row.name.starts_with("chat_template"));
        let report = Report::of(&record, "plots").unwrap();
        assert!(report.plots.is_empty());
        for heading in ["## Kernels", "## Model", "## Growth"] {
            assert!(!report.page.contains(heading), "{heading}");
        }
        assert!(report.page.contains("render/1 messages"));
    }

    #[test]
    fn numbers_have_three_digits() {
        for (number, expected) in
            [(0.1234, "0.123"), (1.0, "1.00"), (9.996, "10.0"), (99.96, "100"), (12345.6, "12346")]
        {
            assert_eq!(significant(number), expected);
        }
        for (ns, expected) in
            [(999.0, "999 ns"), (1e3, "1.00 µs"), (2.5e7, "25.0 ms"), (6e10, "60.0 s")]
        {
            assert_eq!(time(ns), expected);
        }
    }

    #[test]
    fn numbers_in_names_are_compared_as_numbers() {
        let mut names =
            ["16 tokens", "128 tokens", "4 tokens", "decode at 128", "decode at 4096", "b", ""];
        names.sort_by_key(|name| natural(name));
        assert_eq!(
            names,
            ["", "4 tokens", "16 tokens", "128 tokens", "b", "decode at 128", "decode at 4096"]
        );
    }
}
