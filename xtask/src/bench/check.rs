//! Two records side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::record::{Record, Row};

/// How a benchmark's time changed from one record to the other.
#[derive(Debug, PartialEq)]
pub struct Change {
    /// The benchmark.
    pub name: String,
    /// The median before, in nanoseconds.
    pub old: f64,
    /// The median now, in nanoseconds.
    pub new: f64,
    /// Whether it takes longer, by more than both measurements' noise and what is allowed.
    pub is_slower: bool,
    /// Whether it takes less time, likewise.
    pub is_faster: bool,
}

/// The changes of all benchmarks that both records have; `allowed` is a share of a benchmark's time.
///
/// Noise is what criterion measured: the interval that holds the median with 95 % confidence.
pub fn changes(old: &Record, new: &Record, allowed: f64) -> Vec<Change> {
    let before: BTreeMap<&str, &Row> = old.rows.iter().map(|row| (&*row.name, row)).collect();
    let rows = new.rows.iter().filter_map(|row| before.get(&*row.name).map(|old| (*old, row)));
    rows.map(|(old, new)| Change {
        name: new.name.clone(),
        old: old.median_ns,
        new: new.median_ns,
        is_slower: new.lower_ns > old.upper_ns * (1.0 + allowed),
        is_faster: new.upper_ns * (1.0 + allowed) < old.lower_ns,
    })
    .collect()
}

/// The names of benchmarks that only the old record has.
pub fn lost<'a>(old: &'a Record, new: &Record) -> Vec<&'a str> {
    let now: BTreeSet<&str> = new.rows.iter().map(|row| &*row.name).collect();
    old.rows.iter().map(|row| &*row.name).filter(|name| !now.contains(name)).collect()
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, old, new, is_slower, .. } = self;
        let word = if *is_slower { "slower" } else { "faster" };
        let (ratio, old, new) = (new / old, old / 1e3, new / 1e3);
        write!(f, "{word}  {name}: {old:.3} µs before, {new:.3} µs now, {ratio:.2} of the time")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(rows: &[(&str, [f64; 3])]) -> Record {
        let row = |&(name, [lower_ns, median_ns, upper_ns]): &(&str, [f64; 3])| Row {
            name: name.to_owned(),
            median_ns,
            lower_ns,
            upper_ns,
            elements: None,
            bytes: None,
        };
        Record { rows: rows.iter().map(row).collect(), ..Record::default() }
    }

    #[test]
    fn noise_is_no_change() {
        let old = record(&[("a", [90.0, 100.0, 110.0]), ("gone", [1.0, 1.0, 1.0])]);
        let check = |interval: [f64; 3], expected: (bool, bool)| {
            let new = record(&[("a", interval), ("added", [1.0, 1.0, 1.0])]);
            let found = changes(&old, &new, 0.1);
            assert_eq!(found.len(), 1);
            assert_eq!(lost(&old, &new), ["gone"]);
            assert_eq!((found[0].is_slower, found[0].is_faster), expected, "{interval:?}");
        };
        check([90.0, 100.0, 110.0], (false, false));
        check([115.0, 125.0, 130.0], (false, false));
        check([122.0, 125.0, 130.0], (true, false));
        check([70.0, 75.0, 80.0], (false, true));
        check([70.0, 75.0, 85.0], (false, false));
    }

    #[test]
    fn a_change_says_how_much() {
        let (old, new) = (record(&[("a", [1e6; 3])]), record(&[("a", [1.5e6; 3])]));
        let expected = "slower  a: 1000.000 µs before, 1500.000 µs now, 1.50 of the time";
        assert_eq!(changes(&old, &new, 0.1)[0].to_string(), expected);
    }
}
