//! How far one set of logits is from another.

use serde::Serialize;

/// Distances of logits from a reference, over all positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distance {
    /// The largest absolute difference of a logit.
    pub max_abs: f64,
    /// The mean absolute difference of a logit.
    pub mean_abs: f64,
    /// The mean over positions of KL(reference ‖ found), in nats, computed in f64.
    pub kl: f64,
    /// The share of positions where both have the same largest logit.
    pub top1: f64,
}

impl Distance {
    /// Compares `found` with `reference`. A NaN on either side makes all but `top1` NaN.
    ///
    /// Shapes: both `[num_tokens, vocab_size]`.
    ///
    /// # Panics
    /// If the lengths differ or aren't a positive multiple of `vocab_size`.
    pub fn between(reference: &[f32], found: &[f32], vocab_size: usize) -> Self {
        assert_eq!(reference.len(), found.len(), "logits of different lengths");
        assert!(
            !reference.is_empty() && reference.len().is_multiple_of(vocab_size),
            "not whole rows of logits"
        );
        let (mut max_abs, mut sum_abs, mut kl, mut same_top) = (0.0_f64, 0.0, 0.0, 0);
        for (reference, found) in
            reference.chunks_exact(vocab_size).zip(found.chunks_exact(vocab_size))
        {
            for (&a, &b) in reference.iter().zip(found) {
                let difference = (f64::from(a) - f64::from(b)).abs();
                // Not f64::max, which loses a NaN.
                if difference > max_abs || difference.is_nan() {
                    max_abs = difference;
                }
                sum_abs += difference;
            }
            kl += divergence(reference, found);
            same_top += usize::from(argmax(reference) == argmax(found));
        }
        let num_tokens = (reference.len() / vocab_size) as f64;
        Self {
            max_abs,
            mean_abs: sum_abs / reference.len() as f64,
            kl: kl / num_tokens,
            top1: same_top as f64 / num_tokens,
        }
    }
}

/// How many of `found` are not, to the bit, those of `expected`.
///
/// # Panics
/// If the lengths differ.
pub fn num_other_bits(expected: &[f32], found: &[f32]) -> usize {
    assert_eq!(expected.len(), found.len(), "logits of different lengths");
    expected.iter().zip(found).filter(|(a, b)| a.to_bits() != b.to_bits()).count()
}

/// The index of the largest value, the first of equal ones, as in torch and transformers.
///
/// # Panics
/// If `logits` is empty.
pub fn argmax(logits: &[f32]) -> usize {
    assert!(!logits.is_empty(), "the largest of no logits");
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// KL(softmax(a) ‖ softmax(b)).
fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let (log_sum_a, log_sum_b) = (log_sum_exp(a), log_sum_exp(b));
    let terms = a.iter().zip(b).map(|(&a, &b)| {
        let (log_p, log_q) = (f64::from(a) - log_sum_a, f64::from(b) - log_sum_b);
        log_p.exp() * (log_p - log_q)
    });
    terms.sum()
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits[argmax(logits)]);
    max + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

/// The standard deviation of `logits`.
pub fn deviation(logits: &[f32]) -> f64 {
    let num = logits.len() as f64;
    let mean = logits.iter().map(|&x| f64::from(x)).sum::<f64>() / num;
    (logits.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / num).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_have_no_distance() {
        let logits = [1.0, -2.0, 0.5, 3.0, 3.0, 0.0];
        let distance = Distance::between(&logits, &logits, 3);
        assert_eq!(distance, Distance { max_abs: 0.0, mean_abs: 0.0, kl: 0.0, top1: 1.0 });
    }

    #[test]
    fn distances_are_those_worked_out_by_hand() {
        // softmax [1/2, 1/2] against [3/4, 1/4] in the first row; the second is the same in both.
        let ln3 = 3.0_f32.ln();
        let distance = Distance::between(&[0.0, 0.0, 1.0, 2.0], &[ln3, 0.0, 1.0, 2.0], 2);
        assert!((distance.max_abs - f64::from(ln3)).abs() < 1e-12);
        assert!((distance.mean_abs - f64::from(ln3) / 4.0).abs() < 1e-12);
        assert!((distance.kl - (4.0_f64 / 3.0).ln() / 4.0).abs() < 1e-7, "{}", distance.kl);
        assert!((distance.top1 - 1.0).abs() < 1e-12, "the first of equal logits is the largest");
        assert!((Distance::between(&[0.0, 1.0], &[1.0, 0.0], 2).top1).abs() < 1e-12);
    }

    #[test]
    fn nan_is_never_lost() {
        for position in 0..4 {
            let mut found = [1.0, 2.0, 3.0, 4.0];
            found[position] = f32::NAN;
            let distance = Distance::between(&[1.0, 2.0, 3.0, 4.0], &found, 2);
            assert!(
                distance.max_abs.is_nan() && distance.mean_abs.is_nan() && distance.kl.is_nan()
            );
        }
    }

    #[test]
    fn bits_tell_apart_what_compares_equal() {
        assert_eq!(num_other_bits(&[0.0, f32::NAN, 1.0], &[0.0, f32::NAN, 1.0]), 0);
        assert_eq!(num_other_bits(&[0.0, 2.0, 1.0], &[-0.0, 2.0, 1.0f32.next_up()]), 2);
    }

    #[test]
    fn deviation_of_a_fair_coin() {
        assert!((deviation(&[1.0, -1.0, 1.0, -1.0]) - 1.0).abs() < 1e-12);
    }
}
