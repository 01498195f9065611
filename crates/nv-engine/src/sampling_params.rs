//! What a request wants sampled, and when it wants to end.
//!
//! Knows nothing of where the values come from: a file, a command line, a request.

use crate::TokenId;
use crate::error::{Error, Result};

/// How to choose the tokens of one request. Every value of this type is valid: what makes no sense is refused
/// where it is set.
///
/// The default is greedy, without an end but that of the model's context.
///
/// ```
/// use nv_engine::SamplingParams;
///
/// let params = SamplingParams::default()
///     .with_temperature(0.6)?
///     .with_top_k(20)
///     .with_top_p(0.95)?
///     .with_max_tokens(128)?;
/// assert!(!params.is_greedy());
///
/// let error = params.with_top_p(1.5).unwrap_err();
/// assert_eq!(error.to_string(), "top_p: expected a number above 0 and up to 1, found 1.5");
/// # Ok::<(), nv_engine::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    temperature: f64,
    top_k: Option<usize>,
    top_p: f64,
    seed: u64,
    max_tokens: Option<usize>,
    stop_token_ids: Vec<TokenId>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            seed: 0,
            max_tokens: None,
            stop_token_ids: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Divides the logits by `temperature`; 0, the default, takes the likeliest token each time.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if it is negative or not finite.
    pub fn with_temperature(mut self, temperature: f64) -> Result<Self> {
        if !temperature.is_finite() || temperature < 0.0 {
            return refuse("temperature", "a finite number from 0", temperature);
        }
        self.temperature = temperature;
        Ok(self)
    }

    /// Samples from the `top_k` likeliest tokens only; 0, the default, from all.
    #[must_use]
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = Some(top_k).filter(|&k| k > 0);
        self
    }

    /// Samples from the smallest set of likeliest tokens that have probability `top_p` together; 1, the default,
    /// from all.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if it is not above 0 and up to 1.
    pub fn with_top_p(mut self, top_p: f64) -> Result<Self> {
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p", "a number above 0 and up to 1", top_p);
        }
        self.top_p = top_p;
        Ok(self)
    }

    /// Chooses among the possible texts: the same seed, the same text. Default 0.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Ends after `max_tokens` tokens; by default only the model's context ends a text.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if it is 0.
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Result<Self> {
        if max_tokens == 0 {
            return refuse("max_tokens", "at least 1", max_tokens);
        }
        self.max_tokens = Some(max_tokens);
        Ok(self)
    }

    /// Ends at any of these tokens; by default at none.
    #[must_use]
    pub fn with_stop_token_ids(mut self, stop_token_ids: Vec<TokenId>) -> Self {
        self.stop_token_ids = stop_token_ids;
        self
    }

    /// Divides the logits; 0 is greedy.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// Whether the likeliest token is taken each time.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// How many of the likeliest tokens to sample from, at least 1; `None` for all.
    pub fn top_k(&self) -> Option<usize> {
        self.top_k
    }

    /// The probability, above 0 and up to 1, that the tokens to sample from reach together.
    pub fn top_p(&self) -> f64 {
        self.top_p
    }

    /// Where the random stream starts.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How many tokens to generate at most, at least 1; `None` for as many as the context holds.
    pub fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    /// The tokens that end a text.
    pub fn stop_token_ids(&self) -> &[TokenId] {
        &self.stop_token_ids
    }
}

fn refuse<T>(parameter: &'static str, expected: &'static str, found: impl ToString) -> Result<T> {
    Err(Error::SamplingParameter { parameter, expected, found: found.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |result: Result<SamplingParams>, expected: &str| {
            assert_eq!(result.unwrap_err().to_string(), expected);
        };
        let params = SamplingParams::default;
        let from_0 = "temperature: expected a finite number from 0, found";
        check(params().with_temperature(-0.1), &format!("{from_0} -0.1"));
        check(params().with_temperature(f64::NAN), &format!("{from_0} NaN"));
        check(params().with_temperature(f64::INFINITY), &format!("{from_0} inf"));
        let above_0 = "top_p: expected a number above 0 and up to 1, found";
        check(params().with_top_p(0.0), &format!("{above_0} 0"));
        check(params().with_top_p(1.01), &format!("{above_0} 1.01"));
        check(params().with_top_p(f64::NAN), &format!("{above_0} NaN"));
        check(params().with_max_tokens(0), "max_tokens: expected at least 1, found 0");
    }

    #[test]
    fn a_top_k_of_0_is_all() {
        let params = SamplingParams::default().with_top_k(5);
        assert_eq!(params.top_k(), Some(5));
        assert_eq!(params.with_top_k(0).top_k(), None);
    }
}
