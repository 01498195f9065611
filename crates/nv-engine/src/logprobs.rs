//! How likely a model found tokens: what it said, before a request's parameters change it.

use crate::TokenId;
use crate::error::{Error, Result};
use crate::sampler::cut::{Cut, Cutter};
use crate::sampler::softmax::Softmax;
use crate::sampler::{argmax, cut};

/// How likely a token was in its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logprob {
    /// The token.
    pub token_id: TokenId,
    /// The natural logarithm of its probability: 0 for certainty, -inf for none.
    pub logprob: f32,
    /// Its place among all tokens, 1 for the likeliest; of equally likely ones the lower id comes first.
    pub rank: usize,
}

/// How likely the token in some place of a text was, and which ones were likeliest there.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that is there.
    pub token: Logprob,
    /// The likeliest tokens, the likeliest first. May hold the token that is there too.
    pub top: Vec<Logprob>,
}

impl TokenLogprobs {
    /// Judges `token_id` by the model's own `logits` for its place, beside the `num_top` likeliest tokens.
    ///
    /// For a token that was sampled, the logits are those that it was sampled from; for one of a prompt, those that
    /// follow the token before.
    ///
    /// Shapes: `logits` one a token. Dtypes: the log-softmax in f64, rounded once.
    /// Source: vLLM's `Sampler.gather_logprobs` under its default `raw_logprobs`, with no part for penalties and
    /// temperature; but vLLM counts tokens that are exactly as likely as one of lower rank.
    ///
    /// ```
    /// use nv_engine::TokenLogprobs;
    ///
    /// let row = TokenLogprobs::new(&[0.0, 2.0, 1.0], 2, 1)?;
    /// assert_eq!((row.token.token_id, row.token.rank), (2, 2));
    /// assert!((row.token.logprob - -1.4076).abs() < 1e-4);
    /// assert_eq!((row.top.len(), row.top[0].token_id, row.top[0].rank), (1, 1, 1));
    /// # Ok::<(), nv_engine::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TokenId`] if `token_id` has no logit; [`Error::Logit`] for NaN or infinity; [`Error::NoChoice`] if all
    /// logits are -inf.
    pub fn new(logits: &[f32], token_id: TokenId, num_top: usize) -> Result<Self> {
        let (_, max_logit) = argmax(logits)?;
        let Some(&logit) = logits.get(token_id as usize) else {
            return Err(Error::TokenId { token_id, num_logits: logits.len() });
        };
        let log_sum_exp = Softmax::new(logits.len(), max_logit, 1.0).log_sum_exp(logits);
        #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
        let logprob = |logit| (f64::from(logit) - log_sum_exp) as f32;

        let mut top = Vec::new();
        if num_top > 0 {
            let (mut token_ids, mut likely) = (Vec::new(), Vec::new());
            let cut = Cutter::default().top_k(logits, max_logit, num_top);
            cut.gather(logits, &mut token_ids, &mut likely);
            let mut tokens: Vec<(TokenId, f32)> = token_ids.into_iter().zip(likely).collect();
            tokens.sort_unstable_by(|&a, &b| cut::by_likelihood(a, b));
            top = (1..)
                .zip(tokens)
                .take(num_top)
                .map(|(rank, (token_id, logit))| Logprob {
                    token_id,
                    logprob: logprob(logit),
                    rank,
                })
                .collect();
        }
        let rank = Cut::behind(logit, token_id).num_kept(logits);
        Ok(Self { token: Logprob { token_id, logprob: logprob(logit), rank }, top })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_cannot_be_judged_is_an_error() {
        let check = |logits: &[f32], token_id, expected: &str| {
            let error = TokenLogprobs::new(logits, token_id, 1).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(&[0.0; 3], 3, "token 3 has no logit: expected an id below 3");
        check(&[0.0, f32::NAN], 0, "the logit of token 1 is NaN: expected a finite number or -inf");
        check(&[], 0, "none of the 0 logits is above -inf: expected at least one");
    }

    proptest! {
        #[test]
        fn logprobs_and_ranks_equal_their_definition(
            // Few different values, so that ties are common.
            mut logits in prop::collection::vec((-12i8..12).prop_map(|i| f32::from(i) / 3.0), 1..200),
            masked in any::<prop::sample::Index>(),
            index in any::<prop::sample::Index>(),
            num_top in 0..220usize,
        ) {
            if logits.len() > 1 {
                let masked = masked.index(logits.len());
                logits[masked] = f32::NEG_INFINITY;
            }
            let token_id = u32::try_from(index.index(logits.len())).unwrap();
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let mut expected: Vec<(u32, f64)> =
                (0..).zip(&logits).map(|(id, &logit)| (id, f64::from(logit) - sum.ln())).collect();
            expected.sort_by(|a, b| b.1.total_cmp(&a.1));

            let found = TokenLogprobs::new(&logits, token_id, num_top).unwrap();
            prop_assert_eq!(found.top.len(), num_top.min(logits.len()));
            prop_assert_eq!(found.token.token_id, token_id);
            let equals = |found: &Logprob| {
                let (token_id, logprob) = expected[found.rank - 1];
                let distance = (f64::from(found.logprob) - logprob).abs();
                found.token_id == token_id && (logprob.is_infinite() || distance < 1e-6)
            };
            prop_assert!(equals(&found.token), "{:?}", found.token);
            prop_assert!(found.top.iter().all(equals), "{:?}", found.top);
            prop_assert!((1..).zip(&found.top).all(|(rank, top)| top.rank == rank));
        }
    }
}
