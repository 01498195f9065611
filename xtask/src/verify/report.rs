//! What verification found, as a table and as JSON.

use std::fmt;

use serde::Serialize;

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
    /// One comparison each.
    pub rows: Vec<Row>,
    /// The greedy continuation, if the reference has one.
    pub greedy: Option<Greedy>,
}

/// One comparison with the float32 reference.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What computed the logits: a way to feed our model, or transformers.
    pub path: &'static str,
    /// What it computed in.
    pub dtype: &'static str,
    /// How far off it is.
    #[serde(flatten)]
    pub distance: Distance,
    /// The verdict; `None` for a row that others are measured against.
    pub passed: Option<bool>,
}

/// A greedy continuation in float32, compared by token id.
#[derive(Debug, Serialize)]
pub struct Greedy {
    /// Tokens in the reference.
    pub num_tokens: usize,
    /// Tokens before the first difference.
    pub num_equal: usize,
}

impl Report {
    /// Whether nothing failed.
    pub fn passed(&self) -> bool {
        let greedy = self.greedy.as_ref().is_none_or(Greedy::passed);
        let checkpoint = self.same_checkpoint || !self.needs_same_checkpoint;
        let judged = self.rows.iter().filter_map(|row| row.passed);
        greedy
            && checkpoint
            && judged.clone().count() > 0
            && judged.into_iter().all(|passed| passed)
    }
}

impl Greedy {
    /// Whether all tokens are equal.
    pub fn passed(&self) -> bool {
        self.num_equal == self.num_tokens
    }
}

fn verdict(passed: Option<bool>) -> &'static str {
    match passed {
        None => "",
        Some(true) => "pass",
        Some(false) => "FAIL",
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
        writeln!(
            f,
            "  {:<27}  {:<5}  {:>8}  {:>8}  {:>8}  {:>7}",
            "path", "dtype", "max abs", "mean abs", "KL", "top-1"
        )?;
        for Row { path, dtype, distance: Distance { max_abs, mean_abs, kl, top1 }, passed } in
            &self.rows
        {
            let (top1, verdict) = (100.0 * top1, verdict(*passed));
            let line = format!(
                "  {path:<27}  {dtype:<5}  {max_abs:>8.1e}  {mean_abs:>8.1e}  {kl:>8.1e}  {top1:>5.1} %  {verdict}"
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        if let Some(greedy) = &self.greedy {
            let equal = format!("{} of {} tokens equal", greedy.num_equal, greedy.num_tokens);
            writeln!(
                f,
                "  {:<27}  {:<5}  {equal:<37}  {}",
                "greedy",
                "f32",
                verdict(Some(greedy.passed()))
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let row = |path, dtype, passed| Row {
            path,
            dtype,
            distance: Distance { max_abs: 1.234e-5, mean_abs: 1e-6, kl: 2.5e-12, top1: 0.975 },
            passed,
        };
        Report {
            name: "demo".into(),
            made_by: "transformers 5".into(),
            num_tokens: 40,
            vocab_size: 257,
            logit_deviation: 1.0,
            same_checkpoint: true,
            needs_same_checkpoint: true,
            rows: vec![row("whole prompt", "f32", Some(true)), row("transformers", "bf16", None)],
            greedy: Some(Greedy { num_tokens: 128, num_equal: 128 }),
        }
    }

    #[test]
    fn the_table_is_aligned() {
        let table = "\
demo: 40 tokens, 257 logits of deviation 1.00; transformers 5
  path                         dtype   max abs  mean abs        KL    top-1
  whole prompt                 f32      1.2e-5    1.0e-6   2.5e-12   97.5 %  pass
  transformers                 bf16     1.2e-5    1.0e-6   2.5e-12   97.5 %
  greedy                       f32    128 of 128 tokens equal                pass
";
        assert_eq!(report().to_string(), table);
    }

    #[test]
    fn one_failure_fails_the_report() {
        assert!(report().passed());
        let check = |change: fn(&mut Report)| {
            let mut report = report();
            change(&mut report);
            assert!(!report.passed(), "{report}");
        };
        check(|report| report.rows[0].passed = Some(false));
        check(|report| report.greedy.as_mut().unwrap().num_equal = 127);
        check(|report| report.same_checkpoint = false);
        check(|report| report.rows.clear());

        let mut other_checkpoint = report();
        (other_checkpoint.same_checkpoint, other_checkpoint.needs_same_checkpoint) = (false, false);
        assert!(other_checkpoint.passed());
    }
}
