//! Whether the engine gives what the model gives alone, to the bit, in every one of [`ways`]: as rows of a table and as JSON.

use std::fmt;

use anyhow::{Context, Result};
use candle_core::DType;
use nv_engine::SamplingParams;
use nv_kernels::Isa;
use nv_qwen3::Preset;
use nv_weights::ModelFiles;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::report::{isa_name, verdict};
use super::serving::{NUM_ALL_WAYS, Served, Serving, random_checkpoint, ways};
use crate::reference::hex;

/// The committed config of the random checkpoint that is served.
const RANDOM: &str = "untied-gqa2-bias";

/// The verdict on one checkpoint in one dtype.
#[derive(Debug, Serialize)]
pub struct Invariance {
    /// The checkpoint.
    pub checkpoint: &'static str,
    /// The tier of kernels.
    #[serde(serialize_with = "isa_name")]
    pub isa: Isa,
    /// What it was computed in, or how it was quantised; then keys and values are bfloat16.
    pub dtype: &'static str,
    /// SHA-256 of tokens and bits of logits, if it is quantised: then they are the same in all tiers.
    pub digest: Option<String>,
    /// Requests that were served, in as many ways for each kind of sampling.
    pub num_runs: usize,
    /// Rows of logits that were compared.
    pub num_rows: usize,
    /// Rows that have other bits, or whose token is another one.
    pub num_other_rows: usize,
    /// The first way with such a row.
    pub first_other_way: Option<String>,
    /// Guessed tokens that were right.
    pub num_accepted_tokens: u64,
}

impl Invariance {
    /// Whether something was compared, with guesses that were right, for speculation in which nothing is accepted would show
    /// nothing; and nothing is different.
    pub fn passed(&self) -> bool {
        self.num_rows > 0 && self.num_accepted_tokens > 0 && self.num_other_rows == 0
    }
}

impl fmt::Display for Invariance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            checkpoint, dtype, num_runs, num_rows, num_accepted_tokens, num_other_rows, ..
        } = self;
        let (isa, verdict) = (self.isa.to_string(), verdict(self.passed()));
        let digest = self.digest.as_ref().map(|digest| format!(", bits {}", &digest[..16]));
        write!(
            f,
            "  {checkpoint:<16}  {isa:<10}  {dtype:<5}  {num_runs:>4}  {num_rows:>6}  {num_accepted_tokens:>8}  \
             {num_other_rows:>9}  {verdict}{}",
            digest.unwrap_or_default()
        )?;
        if self.num_accepted_tokens == 0 {
            f.write_str(", no guess was right")?;
        }
        match &self.first_other_way {
            Some(way) => write!(f, ", first: {way}"),
            None => Ok(()),
        }
    }
}

/// Whether every row passed, and what is quantised has the same bits in all tiers.
pub fn passed(rows: &[Invariance]) -> bool {
    let is_portable = |row: &Invariance| {
        let of_same =
            |other: &&Invariance| (other.checkpoint, other.dtype) == (row.checkpoint, row.dtype);
        rows.iter().filter(of_same).all(|other| other.digest == row.digest)
    };
    rows.iter().all(|row| row.passed() && is_portable(row))
}

/// Serves the demo checkpoint and a random one, in both dtypes and quantised, greedily, at random, and at random among two tokens,
/// of which guesses come true whatever the model, in all [`ways`].
///
/// # Errors
/// If a checkpoint can't be served, or was not served in a way that it should. A difference is no error but a failing row.
pub fn verify_serving(isa: Isa) -> Result<Vec<Invariance>> {
    let scratch = tempfile::tempdir()?;
    let demo = ModelFiles::from_dir(crate::root().join("assets/demo"))?;
    let random = random_checkpoint(RANDOM, scratch.path())?;
    let mut rows = Vec::new();
    for (checkpoint, files) in [("demo", demo), (RANDOM, random)] {
        let plain = [(DType::F32, None), (DType::BF16, None)];
        let quantized = Preset::ALL.map(|preset| (DType::BF16, Some(preset)));
        for (dtype, quantize) in plain.into_iter().chain(quantized) {
            let serving = Serving::open(files.clone(), dtype, quantize, isa)?;
            let row = verify_one(checkpoint, &serving, isa, (dtype, quantize));
            rows.push(row.with_context(|| format!("cannot serve {checkpoint} with {isa}"))?);
        }
    }
    Ok(rows)
}

fn verify_one(
    checkpoint: &'static str,
    serving: &Serving,
    isa: Isa,
    (dtype, quantize): (DType, Option<Preset>),
) -> Result<Invariance> {
    let greedy = SamplingParams::default();
    let warm = SamplingParams::default().with_temperature(0.9)?.with_seed(11);
    let warm = warm.with_top_p(0.95)?.with_repetition_penalty(1.05)?;
    let mut row = Invariance {
        checkpoint,
        isa,
        dtype: quantize.map_or(dtype.as_str(), Preset::name),
        digest: None,
        num_runs: 0,
        num_rows: 0,
        num_other_rows: 0,
        first_other_way: None,
        num_accepted_tokens: 0,
    };
    let few = warm.clone().with_allowed_token_ids(vec![3, 10])?;
    let mut digest = Sha256::new();
    for params in [greedy, warm, few] {
        let expected = serving.alone(&params)?;
        for number in expected.token_ids.iter().chain(expected.logits.iter().flatten()) {
            digest.update(number.to_le_bytes());
        }
        for way in ways() {
            let (served, found) = serving.serve(&way, &params).with_context(|| way.to_string())?;
            let num_other_rows = num_other_rows(&expected, &served);
            if num_other_rows > 0 {
                row.first_other_way.get_or_insert_with(|| way.to_string());
            }
            row.num_runs += 1;
            row.num_rows += expected.logits.len();
            row.num_other_rows += num_other_rows;
            row.num_accepted_tokens += found.num_accepted_tokens;
        }
    }
    row.digest = quantize.map(|_| hex(digest));
    Ok(row)
}

/// Rows of `expected` that `found` doesn't have.
fn num_other_rows(expected: &Served, found: &Served) -> usize {
    let rows = |served: &Served| served.token_ids.len().max(served.logits.len());
    let is_equal = |&i: &usize| {
        expected.token_ids.get(i) == found.token_ids.get(i)
            && expected.logits.get(i) == found.logits.get(i)
    };
    let num_rows = rows(expected).max(rows(found));
    num_rows - (0..num_rows).filter(is_equal).count()
}

/// The rows as a table.
pub(super) fn table(rows: &[Invariance]) -> String {
    let head = format!(
        "serving: an engine's tokens and bits of logits against the model's alone, greedy, seeded, and seeded among two \
         tokens, each in {} of {NUM_ALL_WAYS} ways,\nin which every two choices meet of others in the batch, chunk, block size, prefix hit, \
         preemption, threads and speculation\n  {:<16}  {:<10}  {:<5}  {:>4}  {:>6}  {:>8}  {:>9}\n",
        ways().len(),
        "checkpoint",
        "tier",
        "dtype",
        "runs",
        "rows",
        "accepted",
        "differing",
    );
    rows.iter().fold(head, |table, row| format!("{table}{row}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(token_ids: &[u32], logits: &[u32]) -> Served {
        let logits = logits.iter().map(|&bits| vec![bits, 7]).collect();
        Served { token_ids: token_ids.to_vec(), logits }
    }

    #[test]
    fn a_row_differs_in_its_token_or_in_any_bit_or_by_its_absence() {
        let expected = served(&[1, 2, 3], &[4, 5, 6]);
        let check = |found: Served, num: usize| assert_eq!(num_other_rows(&expected, &found), num);
        check(served(&[1, 2, 3], &[4, 5, 6]), 0);
        check(served(&[1, 9, 3], &[4, 5, 6]), 1);
        check(served(&[1, 2, 3], &[4, 8, 9]), 2);
        check(served(&[1, 2], &[4, 5]), 1);
        check(served(&[1, 2, 3, 4], &[4, 5, 6, 7]), 1);
    }

    #[test]
    fn a_failing_row_says_where() {
        let row = |num_other_rows, first_other_way: Option<&str>| Invariance {
            checkpoint: "demo",
            isa: Isa::Scalar,
            dtype: "f32",
            digest: None,
            num_runs: 34,
            num_rows: 442,
            num_other_rows,
            first_other_way: first_other_way.map(str::to_owned),
            num_accepted_tokens: 4,
        };
        let (good, bad) = (row(0, None), row(3, Some("whole prompt")));
        assert!(good.passed() && !bad.passed());
        assert!(!Invariance { num_rows: 0, ..row(0, None) }.passed());
        let unguessed = Invariance { num_accepted_tokens: 0, ..row(0, None) };
        assert!(!unguessed.passed());
        assert!(passed(&[row(0, None), row(0, None)]));
        assert!(!passed(&[row(0, None), row(3, None)]));
        let packed = |isa, digest: &str| Invariance {
            isa,
            dtype: "q8",
            digest: Some(digest.to_owned()),
            ..row(0, None)
        };
        let digests = ["0123456789abcdef01", "0123456789abcdef02"];
        let of_tiers = |other| [packed(Isa::Scalar, digests[0]), packed(Isa::Avx2, other)];
        assert!(passed(&of_tiers(digests[0])) && !passed(&of_tiers(digests[1])));
        let table = table(&[good, bad, unguessed, packed(Isa::Avx2, digests[0])]);
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "  checkpoint        tier        dtype  runs    rows  accepted  differing",
                "  demo              scalar      f32      34     442         4          0  pass",
                "  demo              scalar      f32      34     442         4          3  FAIL, first: whole prompt",
                "  demo              scalar      f32      34     442         0          0  FAIL, no guess was right",
                "  demo              avx2        q8       34     442         4          0  pass, bits 0123456789abcdef",
            ]
        );
    }
}
