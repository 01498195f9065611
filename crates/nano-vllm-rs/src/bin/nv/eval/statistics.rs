//! Probabilities from logits, how far two of them are apart, and what many tokens come to.
//!
//! Knows nothing of models and texts. Logits are f32; everything made from them is f64, in nats unless a name says bits.

use std::f64::consts::LN_2;

/// The probabilities of all tokens in one place, as logits give them.
#[derive(Debug)]
pub(super) struct Distribution<'a> {
    logits: &'a [f32],
    /// The likeliest token; of equally likely ones the lowest id.
    likeliest: usize,
    max: f64,
    /// The natural logarithm of the sum of all `exp(logit - max)`.
    log_sum: f64,
}

/// A logit that gives no probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct NotFinite {
    pub(super) token_id: usize,
    pub(super) logit: f32,
}

impl<'a> Distribution<'a> {
    /// The softmax of `logits`, at least one.
    ///
    /// # Errors
    /// [`NotFinite`] for the first logit that is NaN or infinite.
    pub(super) fn new(logits: &'a [f32]) -> Result<Self, NotFinite> {
        let mut likeliest = 0;
        for (token_id, &logit) in logits.iter().enumerate() {
            if !logit.is_finite() {
                return Err(NotFinite { token_id, logit });
            }
            if logit > logits[likeliest] {
                likeliest = token_id;
            }
        }
        let max = f64::from(logits[likeliest]);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        Ok(Self { logits, likeliest, max, log_sum: sum.ln() })
    }

    /// The natural logarithm of a token's probability.
    pub(super) fn logprob(&self, token_id: usize) -> f64 {
        f64::from(self.logits[token_id]) - self.max - self.log_sum
    }

    /// KL(self || other), the sum of `p * ln(p / q)`: never negative, and 0 for equal logits.
    pub(super) fn divergence(&self, other: &Self) -> f64 {
        let terms = (0..self.logits.len()).map(|token_id| {
            let logprob = self.logprob(token_id);
            logprob.exp() * (logprob - other.logprob(token_id))
        });
        // Rounding may leave a little less than nothing.
        terms.sum::<f64>().max(0.0)
    }

    /// Whether both find the same token likeliest.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        self.likeliest == other.likeliest
    }
}

/// How likely a model found the tokens of a text.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Likelihood {
    pub(super) num_tokens: usize,
    /// What the tokens stand for.
    pub(super) num_bytes: usize,
    /// The sum of the tokens' negative log-probabilities.
    nats: f64,
}

impl Likelihood {
    /// Counts a token that stands for `num_bytes` bytes.
    pub(super) fn add(&mut self, logprob: f64, num_bytes: usize) {
        self.num_tokens += 1;
        self.num_bytes += num_bytes;
        self.nats -= logprob;
    }

    pub(super) fn perplexity(&self) -> f64 {
        (self.nats / self.num_tokens as f64).exp()
    }

    pub(super) fn bits_a_token(&self) -> f64 {
        self.nats / LN_2 / self.num_tokens as f64
    }

    pub(super) fn bits_a_byte(&self) -> f64 {
        self.nats / LN_2 / self.num_bytes as f64
    }
}

/// How far a model is from its reference.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// How likely the reference found the same tokens.
    pub(super) reference: Likelihood,
    /// KL(reference || model) of each token.
    divergences: Vec<f64>,
    num_agreeing: usize,
}

/// What [`Comparison`] comes to.
#[derive(Debug, PartialEq)]
pub(super) struct Divergence {
    pub(super) mean: f64,
    pub(super) median: f64,
    pub(super) percentile_99: f64,
    /// The share of tokens for which both find the same one likeliest.
    pub(super) agreement: f64,
}

impl Comparison {
    /// Counts a token.
    pub(super) fn add(&mut self, divergence: f64, agrees: bool) {
        self.divergences.push(divergence);
        self.num_agreeing += usize::from(agrees);
    }

    /// The mean, and what half and 99 hundredths of the tokens stay below.
    pub(super) fn summary(&self) -> Divergence {
        let mut sorted = self.divergences.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let num_tokens = sorted.len() as f64;
        Divergence {
            mean: sorted.iter().sum::<f64>() / num_tokens,
            median: quantile(&sorted, 1, 2),
            percentile_99: quantile(&sorted, 99, 100),
            agreement: self.num_agreeing as f64 / num_tokens,
        }
    }
}

/// The value that `part / whole` of `sorted` stay below, on the straight line between its two neighbours.
///
/// Source: numpy's `quantile` by default, and llama-perplexity. NaN for no values.
fn quantile(sorted: &[f64], part: usize, whole: usize) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let (below, rest) = (last * part / whole, last * part % whole);
    let above = sorted[(below + 1).min(last)];
    sorted[below] + (above - sorted[below]) * (rest as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-14 * expected.abs(), "{found} is not {expected}");
    }

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let logits = [1.0, 2.0, 3.0];
        let found = Distribution::new(&logits).unwrap();
        // Python: 1 - math.log(sum(map(math.exp, [1, 2, 3])))
        close(found.logprob(0), -2.407_605_964_444_38);
        close(found.logprob(2), -0.407_605_964_444_380_1);
        // Neither end of the range of float32 overflows or vanishes.
        for offset in [-3e38, 3e38] {
            let logits = [offset, offset];
            close(Distribution::new(&logits).unwrap().logprob(1), -LN_2);
        }
        close(Distribution::new(&[-5.0]).unwrap().logprob(0), 0.0);
    }

    #[test]
    fn divergence_is_summed_over_all_tokens() {
        let (p, q) = ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]);
        let (p, q) = (Distribution::new(&p).unwrap(), Distribution::new(&q).unwrap());
        // Python: p = [math.exp(x) / sum(map(math.exp, [1, 2, 3])) for x in [1, 2, 3]]; q = p[::-1];
        // sum(a * math.log(a / b) for a, b in zip(p, q))
        close(p.divergence(&q), 1.150_420_765_208_883);
        assert!(!p.agrees(&q));

        let half = [0.0, 0.0];
        let three_quarters = [3f32.ln(), 0.0];
        let half = Distribution::new(&half).unwrap();
        let three_quarters = Distribution::new(&three_quarters).unwrap();
        // 0.75 ln 1.5 + 0.25 ln 0.5, and 0.5 ln(2/3) + 0.5 ln 2; float32 rounds ln 3.
        assert!((three_quarters.divergence(&half) - 0.130_812_035_941_137).abs() < 1e-7);
        assert!((half.divergence(&three_quarters) - 0.143_841_036_225_890).abs() < 1e-7);
        // Of equals the lower id is the likelier.
        assert!(half.agrees(&three_quarters));
    }

    #[test]
    fn equal_logits_do_not_diverge_and_a_shift_is_no_difference() {
        let logits: Vec<f32> = (0..1000u16).map(|i| f32::from(i * 41 % 1000) / 64.0).collect();
        let shifted: Vec<f32> = logits.iter().map(|logit| logit + 32.0).collect();
        let found = Distribution::new(&logits).unwrap();
        assert_eq!(found.divergence(&found).to_bits(), 0.0f64.to_bits());
        let divergence = found.divergence(&Distribution::new(&shifted).unwrap());
        assert!((0.0..1e-13).contains(&divergence), "{divergence}");
    }

    #[test]
    fn a_logit_that_is_not_finite_is_named() {
        for logit in [f32::INFINITY, f32::NEG_INFINITY] {
            let found = Distribution::new(&[0.0, 1.0, logit, f32::NAN]).unwrap_err();
            assert_eq!(found, NotFinite { token_id: 2, logit });
        }
        let found = Distribution::new(&[f32::NAN, 0.0]).unwrap_err();
        assert!(found.token_id == 0 && found.logit.is_nan());
    }

    #[test]
    fn likelihood_is_per_token_and_per_byte() {
        let mut likelihood = Likelihood::default();
        likelihood.add(0.5f64.ln(), 3);
        likelihood.add(0.125f64.ln(), 5);
        assert_eq!((likelihood.num_tokens, likelihood.num_bytes), (2, 8));
        close(likelihood.perplexity(), 4.0);
        close(likelihood.bits_a_token(), 2.0);
        close(likelihood.bits_a_byte(), 0.5);
    }

    #[test]
    fn a_comparison_has_numpys_quantiles() {
        let mut comparison = Comparison::default();
        for (divergence, agrees) in [(4.0, true), (1.0, false), (2.0, true), (3.0, true)] {
            comparison.add(divergence, agrees);
        }
        let found = comparison.summary();
        assert_eq!((found.mean, found.agreement), (2.5, 0.75));
        // numpy.quantile([1, 2, 3, 4], [0.5, 0.99])
        close(found.median, 2.5);
        close(found.percentile_99, 3.97);

        let mut comparison = Comparison::default();
        comparison.add(0.25, true);
        let expected = Divergence { mean: 0.25, median: 0.25, percentile_99: 0.25, agreement: 1.0 };
        assert_eq!(comparison.summary(), expected);
    }
}
