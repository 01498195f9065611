//! Benchmarks that differ in one number, and how their cost grows with it.

use std::collections::BTreeMap;

use crate::bench::record::Row;

/// Benchmarks of one thing in several sizes.
#[derive(Debug)]
pub(super) struct Series<'r> {
    /// The benchmarks' name, with `n` where the number was.
    pub(super) name: String,
    /// The numbers, ascending, and what was measured with them.
    pub(super) rows: Vec<(u64, &'r Row)>,
}

impl Series<'_> {
    /// All series of a record, by name; those of one size too.
    pub(super) fn of(rows: &[Row]) -> Vec<Series<'_>> {
        let mut series: BTreeMap<String, Vec<(u64, &Row)>> = BTreeMap::new();
        for row in rows {
            if let Some((name, n)) = sized(&row.name) {
                series.entry(name).or_default().push((n, row));
            }
        }
        let sorted = |(name, mut rows): (String, Vec<(u64, _)>)| {
            rows.sort_by_key(|(n, _)| *n);
            Series { name, rows }
        };
        series.into_iter().map(sorted).collect()
    }

    /// The name up to the last two parts: `model/decode` of `model/decode/bf16/context n`.
    pub(super) fn group(&self) -> Option<&str> {
        Some(self.name.rsplit_once('/')?.0.rsplit_once('/')?.0)
    }

    /// The last but one part of the name: `bf16` of `model/decode/bf16/context n`.
    pub(super) fn member(&self) -> Option<&str> {
        self.name.rsplit('/').nth(1)
    }

    /// Numbers and medians in seconds.
    pub(super) fn times(&self) -> Vec<(f64, f64)> {
        self.rows.iter().map(|(n, row)| (*n as f64, row.median_ns / 1e9)).collect()
    }

    /// Numbers and elements a second.
    pub(super) fn speeds(&self) -> Vec<(f64, f64)> {
        let speed = |(n, row): &(u64, &Row)| {
            Some((*n as f64, row.elements? as f64 / (row.median_ns / 1e9)))
        };
        self.rows.iter().filter_map(speed).collect()
    }
}

/// The name of a benchmark with `n` for the only whole number among the words of its last part, and that number.
fn sized(name: &str) -> Option<(String, u64)> {
    let (rest, last) = name.rsplit_once('/')?;
    let number = |word: &str| word.parse::<u64>().ok().filter(|n| *n > 0);
    let mut numbers = last.split(' ').filter_map(number);
    let (Some(n), None) = (numbers.next(), numbers.next()) else { return None };
    let words = last.split(' ').map(|word| if number(word).is_some() { "n" } else { word });
    Some((format!("{rest}/{}", words.collect::<Vec<_>>().join(" ")), n))
}

/// The exponent `e` of the power law `y ∝ x^e` that fits the points best, in logarithms and least squares.
///
/// `None` for fewer than two different `x`.
pub(super) fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let num_points = logs.len() as f64;
    let mean_x = logs.iter().map(|(x, _)| x).sum::<f64>() / num_points;
    let mean_y = logs.iter().map(|(_, y)| y).sum::<f64>() / num_points;
    let covariance: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    (variance > 0.0).then(|| covariance / variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_the_only_number_of_the_last_part() {
        let check = |name, expected: Option<(&str, u64)>| {
            assert_eq!(sized(name), expected.map(|(name, n)| (name.to_owned(), n)), "{name}");
        };
        check("checkpoint/header/100000", Some(("checkpoint/header/n", 100_000)));
        check("chat_template/render/11 messages", Some(("chat_template/render/n messages", 11)));
        check(
            "scheduler/64 running/step, 1 waiting",
            Some(("scheduler/64 running/step, n waiting", 1)),
        );
        check("model/prefill of 128/f32/batch 4", Some(("model/prefill of 128/f32/batch n", 4)));
        check("qkv_proj/16 tokens/avx2", None);
        check("sampler/151936/top_p 0.95", None);
        check("sampler/151936/top_k 20, top_p 0.95", None);
        check("a/1 of 2", None);
        check("a/0", None);
        check("7", None);
    }

    fn row(name: &str, median_ns: f64, elements: Option<u64>) -> Row {
        let name = name.to_owned();
        Row { name, median_ns, lower_ns: median_ns, upper_ns: median_ns, elements, bytes: None }
    }

    #[test]
    fn sizes_ascend_in_their_series() {
        let rows = [
            row("model/decode/f32/context 512", 2e9, Some(16)),
            row("model/decode/f32/context 64", 1e9, Some(16)),
            row("a/1000", 1e3, None),
            row("a/b", 1.0, None),
        ];
        let series = Series::of(&rows);
        assert_eq!(series.len(), 2);
        assert_eq!(
            (&*series[0].name, series[0].group(), series[0].speeds()),
            ("a/n", None, vec![])
        );
        assert_eq!(series[0].times(), [(1000.0, 1e-6)]);
        assert_eq!(series[1].group(), Some("model/decode"));
        assert_eq!(series[1].member(), Some("f32"));
        assert_eq!(series[1].times(), [(64.0, 1.0), (512.0, 2.0)]);
        assert_eq!(series[1].speeds(), [(64.0, 16.0), (512.0, 8.0)]);
    }

    #[test]
    fn an_exponent_is_that_of_the_power_law() {
        for e in [0.0, 0.5, 1.0, 2.0] {
            let points = [1.0f64, 10.0, 1e5].map(|x| (x, 3.0 * x.powf(e)));
            assert!((exponent(&points).unwrap() - e).abs() < 1e-12, "{e}");
        }
        // Least squares: the slope of (0, 0), (1, 0), (2, 3) is 3/2.
        let points = [(0.0, 0.0), (1.0, 0.0), (2.0, 3.0)].map(|(x, y)| (f64::exp(x), f64::exp(y)));
        assert!((exponent(&points).unwrap() - 1.5).abs() < 1e-12);
        assert_eq!(exponent(&[(2.0, 1.0)]), None);
        assert_eq!(exponent(&[]), None);
    }
}
