//! What verification found, as a table and as JSON.

use std::fmt;

use nv_kernels::Isa;
use serde::{Serialize, Serializer};

use super::metrics::Distance;

/// The verdict on one checkpoint.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The reference's name.
    pub name: String,
    /// What wrote the reference.
    pub made_by: String,
    /// Positions compared.
    pub num_tokens: usize,
    /// Logits per position.
    pub vocab_size: usize,
    /// Standard deviation of the reference logits: the tolerances are for one of about 1.
    pub logit_deviation: f64,
    /// Whether the checkpoint is, to the byte, the one that the reference was made from.
    pub same_checkpoint: bool,
    /// Whether another checkpoint is a failure whatever its logits are.
    pub needs_same_checkpoint: bool,
    /// How far transformers' own bfloat16 is off.
    pub transformers_bf16: Distance,
    /// Why rows of one tier and dtype may differ in bits; `None` if each difference is a failure.
    pub why_bits_may_differ: Option<String>,
    /// One verdict each.
    pub tiers: Vec<Tier>,
}

/// The verdict on one tier of kernels.
#[derive(Debug, Serialize)]
pub struct Tier {
    /// The tier.
    #[serde(serialize_with = "isa_name")]
    pub isa: Isa,
    /// One comparison each.
    pub rows: Vec<Row>,
    /// The greedy continuation, if the reference has one.
    pub greedy: Option<Greedy>,
}

/// One comparison with the float32 reference.
#[derive(Debug, Serialize)]
pub struct Row {
    /// How the logits were computed.
    pub path: &'static str,
    /// What they were computed in.
    pub dtype: &'static str,
    /// How far off they are.
    #[serde(flatten)]
    pub distance: Distance,
    /// How many logits have other bits than those of the whole prompt; `None` for the whole prompt.
    pub num_other_bits: Option<usize>,
    /// The verdict.
    pub passed: bool,
}

/// A greedy continuation in float32, compared by token id.
#[derive(Debug, Serialize)]
pub struct Greedy {
    /// Tokens in the reference.
    pub num_tokens: usize,
    /// Tokens before the first difference.
    pub num_equal: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn isa_name<S: Serializer>(isa: &Isa, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(isa)
}

impl Report {
    /// Whether nothing failed, and something was compared.
    pub fn passed(&self) -> bool {
        let checkpoint = self.same_checkpoint || !self.needs_same_checkpoint;
        checkpoint && !self.tiers.is_empty() && self.tiers.iter().all(Tier::passed)
    }
}

impl Tier {
    /// Whether nothing failed, and something was compared.
    pub fn passed(&self) -> bool {
        !self.rows.is_empty()
            && self.rows.iter().all(|row| row.passed)
            && self.greedy.as_ref().is_none_or(Greedy::passed)
    }
}

impl Greedy {
    /// Whether all tokens are equal.
    pub fn passed(&self) -> bool {
        self.num_equal == self.num_tokens
    }
}

pub(super) fn verdict(passed: bool) -> &'static str {
    if passed { "pass" } else { "FAIL" }
}

/// The rows of one tier and dtype; those that pass with the bits of the first are only counted.
fn fmt_rows(f: &mut fmt::Formatter<'_>, tier: &str, rows: &[Row]) -> fmt::Result {
    let repeats = |row: &&Row| row.passed && row.num_other_bits == Some(0);
    for (i, row) in rows.iter().filter(|row| !repeats(row)).enumerate() {
        let (tier, dtype) = if i == 0 { (tier, row.dtype) } else { ("", "") };
        let result = match row.num_other_bits {
            Some(num @ 1..) if !row.passed => format!("FAIL, {num} logits of other bits"),
            _ => verdict(row.passed).to_owned(),
        };
        fmt_line(f, [tier, dtype, row.path], &row.distance.to_string(), &result)?;
    }
    match rows.iter().filter(repeats).count() {
        0 => Ok(()),
        num => fmt_line(f, ["", "", &format!("{num} other ways")], "same bits", verdict(true)),
    }
}

fn fmt_line(
    f: &mut fmt::Formatter<'_>,
    [tier, dtype, path]: [&str; 3],
    found: &str,
    verdict: &str,
) -> fmt::Result {
    let line = format!("  {tier:<12}  {dtype:<5}  {path:<27}  {found:<37}  {verdict}");
    writeln!(f, "{}", line.trim_end())
}

/// The columns of the table.
impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_abs, mean_abs, kl, top1 } = self;
        write!(f, "{max_abs:>8.1e}  {mean_abs:>8.1e}  {kl:>8.1e}  {:>5.1} %", 100.0 * top1)
    }
}

/// The table that people read.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, made_by, num_tokens, vocab_size, logit_deviation, .. } = self;
        writeln!(
            f,
            "{name}: {num_tokens} tokens, {vocab_size} logits of deviation {logit_deviation:.2}; {made_by}"
        )?;
        if !self.same_checkpoint {
            let consequence = if self.needs_same_checkpoint { "FAIL" } else { "the logits decide" };
            writeln!(f, "  the reference was made from another checkpoint: {consequence}")?;
        }
        if let Some(reason) = &self.why_bits_may_differ {
            writeln!(f, "  bits may differ: {reason}")?;
        }
        let columns = format!("{:>8}  {:>8}  {:>8}  {:>7}", "max abs", "mean abs", "KL", "top-1");
        fmt_line(f, ["tier", "dtype", "path"], &columns, "")?;
        fmt_line(f, ["transformers", "bf16", ""], &self.transformers_bf16.to_string(), "")?;
        for tier in &self.tiers {
            let mut name = tier.isa.to_string();
            for rows in tier.rows.chunk_by(|a, b| a.dtype == b.dtype) {
                fmt_rows(f, &name, rows)?;
                name.clear();
            }
            if let Some(greedy) = &tier.greedy {
                let equal = format!("{} of {} tokens equal", greedy.num_equal, greedy.num_tokens);
                fmt_line(f, ["", "f32", "greedy"], &equal, verdict(greedy.passed()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let distance = Distance { max_abs: 1.234e-5, mean_abs: 1e-6, kl: 2.5e-12, top1: 0.975 };
        let row = |path, dtype, num_other_bits| Row {
            path,
            dtype,
            distance,
            num_other_bits,
            passed: true,
        };
        Report {
            name: "demo".into(),
            made_by: "transformers 5".into(),
            num_tokens: 40,
            vocab_size: 257,
            logit_deviation: 1.0,
            same_checkpoint: true,
            needs_same_checkpoint: true,
            transformers_bf16: distance,
            why_bits_may_differ: None,
            tiers: vec![Tier {
                isa: Isa::Scalar,
                rows: vec![
                    row("whole prompt", "f32", None),
                    row("token by token", "f32", Some(0)),
                    row("8 threads", "f32", Some(0)),
                    row("whole prompt", "bf16", None),
                    row("token by token", "bf16", Some(0)),
                ],
                greedy: Some(Greedy { num_tokens: 128, num_equal: 128 }),
            }],
        }
    }

    #[test]
    fn the_table_is_aligned_and_counts_what_repeats() {
        let table = "\
demo: 40 tokens, 257 logits of deviation 1.00; transformers 5
  tier          dtype  path                          max abs  mean abs        KL    top-1
  transformers  bf16                                  1.2e-5    1.0e-6   2.5e-12   97.5 %
  scalar        f32    whole prompt                   1.2e-5    1.0e-6   2.5e-12   97.5 %  pass
                       2 other ways                 same bits                              pass
                bf16   whole prompt                   1.2e-5    1.0e-6   2.5e-12   97.5 %  pass
                       1 other ways                 same bits                              pass
                f32    greedy                       128 of 128 tokens equal                pass
";
        assert_eq!(report().to_string(), table);
    }

    #[test]
    fn the_table_shows_each_way_that_is_not_the_first_one_again() {
        let mut report = report();
        report.why_bits_may_differ = Some("heads of 8".into());
        report.tiers[0].greedy = None;
        let rows = &mut report.tiers[0].rows;
        rows.truncate(3);
        (rows[1].num_other_bits, rows[2].num_other_bits, rows[2].passed) =
            (Some(7), Some(9), false);
        let table = "\
demo: 40 tokens, 257 logits of deviation 1.00; transformers 5
  bits may differ: heads of 8
  tier          dtype  path                          max abs  mean abs        KL    top-1
  transformers  bf16                                  1.2e-5    1.0e-6   2.5e-12   97.5 %
  scalar        f32    whole prompt                   1.2e-5    1.0e-6   2.5e-12   97.5 %  pass
                       token by token                 1.2e-5    1.0e-6   2.5e-12   97.5 %  pass
                       8 threads                      1.2e-5    1.0e-6   2.5e-12   97.5 %  FAIL, 9 logits of other bits
";
        assert_eq!(report.to_string(), table);
    }

    #[test]
    fn one_failure_fails_the_report() {
        assert!(report().passed());
        let check = |change: fn(&mut Report)| {
            let mut report = report();
            change(&mut report);
            assert!(!report.passed(), "{report}");
        };
        check(|report| report.tiers[0].rows[1].passed = false);
        check(|report| report.tiers[0].greedy.as_mut().unwrap().num_equal = 127);
        check(|report| report.same_checkpoint = false);
        check(|report| report.tiers[0].rows.clear());
        check(|report| report.tiers.clear());

        let mut other_checkpoint = report();
        (other_checkpoint.same_checkpoint, other_checkpoint.needs_same_checkpoint) = (false, false);
        assert!(other_checkpoint.passed());
    }

    #[test]
    fn json_has_every_row_and_names_the_tier() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["tiers"][0]["isa"], "scalar");
        assert_eq!(json["tiers"][0]["rows"].as_array().unwrap().len(), 5);
        assert_eq!(json["tiers"][0]["rows"][1]["num_other_bits"], 0);
        assert_eq!(json["tiers"][0]["rows"][1]["max_abs"], 1.234e-5);
    }
}
