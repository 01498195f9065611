//! What a request wants sampled, and when it wants to end.
//!
//! Knows nothing of where the values come from: a file, a command line, a request.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::TokenId;
use crate::error::{Error, Result};

/// Continuations that one request may ask for at most.
const MAX_N: usize = 1024;

/// How to choose the tokens of one request. Every value of this type is valid by itself: what makes no sense is
/// refused where it is set. [`check`](Self::check) tells whether a model can serve it.
///
/// The default is greedy, without an end but that of the model's context. Names, meanings and ranges are those of
/// vLLM's `SamplingParams`, and the order in which they are applied is that of vLLM's sampler: see
/// [`Sampler::sample`](crate::Sampler::sample).
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
/// assert_eq!(error.to_string(), "top_p: expected a number from 0 to 1, found 1.5");
/// # Ok::<(), nv_engine::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    temperature: f64,
    top_k: Option<usize>,
    top_p: f64,
    min_p: f64,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: BTreeMap<TokenId, f32>,
    allowed_token_ids: Option<Vec<TokenId>>,
    banned_token_ids: Vec<TokenId>,
    min_tokens: usize,
    max_tokens: Option<usize>,
    stop_token_ids: Vec<TokenId>,
    eos_token_ids: Vec<TokenId>,
    ignore_eos: bool,
    n: usize,
    seed: u64,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            allowed_token_ids: None,
            banned_token_ids: Vec::new(),
            min_tokens: 0,
            max_tokens: None,
            stop_token_ids: Vec::new(),
            eos_token_ids: Vec::new(),
            ignore_eos: false,
            n: 1,
            seed: 0,
            logprobs: None,
            prompt_logprobs: None,
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
    /// from all. The set has at least one token: 0 takes the likeliest.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if it is not from 0 to 1.
    pub fn with_top_p(mut self, top_p: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&top_p) {
            return refuse("top_p", "a number from 0 to 1", top_p);
        }
        self.top_p = top_p;
        Ok(self)
    }

    /// Samples only from tokens whose probability is at least `min_p` times that of the likeliest; 0, the default,
    /// from all.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if it is not from 0 to 1.
    pub fn with_min_p(mut self, min_p: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&min_p) {
            return refuse("min_p", "a number from 0 to 1", min_p);
        }
        self.min_p = min_p;
        Ok(self)
    }

    /// Makes tokens of the prompt and of the continuation less likely: their logits are divided by
    /// `repetition_penalty` if positive, multiplied by it if negative. Below 1 they become likelier. Default 1.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if it is not a finite number above 0, as f32.
    pub fn with_repetition_penalty(mut self, repetition_penalty: f64) -> Result<Self> {
        self.repetition_penalty = narrow(repetition_penalty);
        if !self.repetition_penalty.is_finite() || self.repetition_penalty <= 0.0 {
            return refuse("repetition_penalty", "a finite number above 0", repetition_penalty);
        }
        Ok(self)
    }

    /// Subtracts `presence_penalty` from the logit of every token of the continuation. Below 0, tokens that were
    /// generated become likelier. Default 0.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if it is not from -2 to 2.
    pub fn with_presence_penalty(mut self, presence_penalty: f64) -> Result<Self> {
        if !(-2.0..=2.0).contains(&presence_penalty) {
            return refuse("presence_penalty", "a number from -2 to 2", presence_penalty);
        }
        self.presence_penalty = narrow(presence_penalty);
        Ok(self)
    }

    /// Subtracts `frequency_penalty` from the logit of a token for each time that the continuation has it. Default 0.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if it is not from -2 to 2.
    pub fn with_frequency_penalty(mut self, frequency_penalty: f64) -> Result<Self> {
        if !(-2.0..=2.0).contains(&frequency_penalty) {
            return refuse("frequency_penalty", "a number from -2 to 2", frequency_penalty);
        }
        self.frequency_penalty = narrow(frequency_penalty);
        Ok(self)
    }

    /// Adds to the logits of some tokens; of two biases for one token the later counts. Default none.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if a bias is not from -100 to 100.
    pub fn with_logit_bias(
        mut self,
        logit_bias: impl IntoIterator<Item = (TokenId, f64)>,
    ) -> Result<Self> {
        self.logit_bias.clear();
        for (token_id, bias) in logit_bias {
            if !(-100.0..=100.0).contains(&bias) {
                let found = format!("{bias} for token {token_id}");
                return refuse("logit_bias", "numbers from -100 to 100", found);
            }
            self.logit_bias.insert(token_id, narrow(bias));
        }
        Ok(self)
    }

    /// Samples from these tokens only; by default from all.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if there are none.
    pub fn with_allowed_token_ids(mut self, allowed_token_ids: Vec<TokenId>) -> Result<Self> {
        if allowed_token_ids.is_empty() {
            return refuse("allowed_token_ids", "at least one token id", "none");
        }
        self.allowed_token_ids = Some(ascending(allowed_token_ids));
        Ok(self)
    }

    /// Never samples any of these tokens; by default any may come.
    #[must_use]
    pub fn with_banned_token_ids(mut self, banned_token_ids: Vec<TokenId>) -> Self {
        self.banned_token_ids = ascending(banned_token_ids);
        self
    }

    /// Samples none of the tokens that end a text before `min_tokens` tokens were generated. Default 0.
    #[must_use]
    pub fn with_min_tokens(mut self, min_tokens: usize) -> Self {
        self.min_tokens = min_tokens;
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
        self.stop_token_ids = ascending(stop_token_ids);
        self
    }

    /// Ends at any of these tokens too, which are the model's own, unless `ignore_eos` is set; by default at none.
    #[must_use]
    pub fn with_eos_token_ids(mut self, eos_token_ids: Vec<TokenId>) -> Self {
        self.eos_token_ids = ascending(eos_token_ids);
        self
    }

    /// Goes on after the model's own end of a text. Default false.
    #[must_use]
    pub fn with_ignore_eos(mut self, ignore_eos: bool) -> Self {
        self.ignore_eos = ignore_eos;
        self
    }

    /// Continues the prompt `n` times; when greedy, all are alike. Default 1.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if it is 0 or above 1,024.
    pub fn with_n(mut self, n: usize) -> Result<Self> {
        if n == 0 {
            return refuse("n", "at least 1", n);
        }
        if n > MAX_N {
            return refuse("n", format!("at most {MAX_N}"), n);
        }
        self.n = n;
        Ok(self)
    }

    /// Chooses among the possible texts: the same seed, the same text. Default 0.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Asks for the log-probability of each token of the continuation, and of the `num_top` likeliest in its place.
    /// By default for none.
    #[must_use]
    pub fn with_logprobs(mut self, num_top: usize) -> Self {
        self.logprobs = Some(num_top);
        self
    }

    /// Asks for the log-probability of each token of the prompt but the first, and of the `num_top` likeliest in
    /// its place. By default for none.
    #[must_use]
    pub fn with_prompt_logprobs(mut self, num_top: usize) -> Self {
        self.prompt_logprobs = Some(num_top);
        self
    }

    /// Checks what no parameter can tell alone: that they fit each other, and a model of `vocab_size` tokens.
    ///
    /// `eos_token_ids` are the model's own and may lie outside its vocabulary: then they never come.
    ///
    /// ```
    /// use nv_engine::SamplingParams;
    ///
    /// let params = SamplingParams::default().with_banned_token_ids(vec![7, 151_936]);
    /// let error = params.check(151_936).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "banned_token_ids: expected token ids below the vocabulary's 151936, found 151936"
    /// );
    /// ```
    ///
    /// # Errors
    /// [`Error::SamplingParameter`] if a token id is not in the vocabulary, more logprobs are asked for than it has
    /// tokens, no allowed token can come first, or `min_tokens` exceeds `max_tokens`.
    pub fn check(&self, vocab_size: usize) -> Result<()> {
        let biased: Vec<TokenId> = self.logit_bias.keys().copied().collect();
        for (parameter, token_ids) in [
            ("logit_bias", &biased[..]),
            ("allowed_token_ids", self.allowed_token_ids.as_deref().unwrap_or_default()),
            ("banned_token_ids", &self.banned_token_ids),
            ("stop_token_ids", &self.stop_token_ids),
        ] {
            if let Some(token_id) = token_ids.iter().find(|id| **id as usize >= vocab_size) {
                let expected = format!("token ids below the vocabulary's {vocab_size}");
                return refuse(parameter, expected, token_id);
            }
        }
        for (parameter, num_top) in
            [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)]
        {
            if let Some(found) = num_top.filter(|&num_top| num_top > vocab_size) {
                return refuse(parameter, format!("at most the vocabulary's {vocab_size}"), found);
            }
        }
        let may_come = |token_id| {
            let ends = [&self.stop_token_ids, &self.eos_token_ids];
            let is_end = || ends.iter().any(|ids| ids.binary_search(token_id).is_ok());
            self.banned_token_ids.binary_search(token_id).is_err()
                && (self.min_tokens == 0 || !is_end())
        };
        if let Some(allowed) = &self.allowed_token_ids
            && !allowed.iter().any(may_come)
        {
            let expected = "a token id that is not banned nor, with min_tokens, ends the text";
            return refuse("allowed_token_ids", expected, format!("none among {}", allowed.len()));
        }
        if let Some(max_tokens) = self.max_tokens.filter(|&max_tokens| self.min_tokens > max_tokens)
        {
            let expected = format!("at most max_tokens, which is {max_tokens}");
            return refuse("min_tokens", expected, self.min_tokens);
        }
        Ok(())
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

    /// The probability, from 0 to 1, that the tokens to sample from reach together.
    pub fn top_p(&self) -> f64 {
        self.top_p
    }

    /// The least probability of a token to sample, from 0 to 1, as a fraction of the likeliest token's.
    pub fn min_p(&self) -> f64 {
        self.min_p
    }

    /// Divides positive and multiplies negative logits of tokens of prompt and continuation; 1 is none.
    pub fn repetition_penalty(&self) -> f32 {
        self.repetition_penalty
    }

    /// What the logits of the continuation's tokens lose; 0 is none.
    pub fn presence_penalty(&self) -> f32 {
        self.presence_penalty
    }

    /// What the logits of the continuation's tokens lose for each time; 0 is none.
    pub fn frequency_penalty(&self) -> f32 {
        self.frequency_penalty
    }

    /// Whether it matters what tokens came before.
    pub fn has_penalties(&self) -> bool {
        (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
    }

    /// What is added to the logits of which tokens.
    pub fn logit_bias(&self) -> &BTreeMap<TokenId, f32> {
        &self.logit_bias
    }

    /// The tokens to sample from, at least one, in ascending order; `None` for all.
    pub fn allowed_token_ids(&self) -> Option<&[TokenId]> {
        self.allowed_token_ids.as_deref()
    }

    /// The tokens that are never sampled, in ascending order.
    pub fn banned_token_ids(&self) -> &[TokenId] {
        &self.banned_token_ids
    }

    /// How many tokens to generate at least.
    pub fn min_tokens(&self) -> usize {
        self.min_tokens
    }

    /// How many tokens to generate at most, at least 1; `None` for as many as the context holds.
    pub fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    /// The tokens that end a text by the request's will, in ascending order.
    pub fn stop_token_ids(&self) -> &[TokenId] {
        &self.stop_token_ids
    }

    /// The tokens that end a text by the model's will, in ascending order.
    pub fn eos_token_ids(&self) -> &[TokenId] {
        &self.eos_token_ids
    }

    /// Whether to go on after the model's own end of a text.
    pub fn ignore_eos(&self) -> bool {
        self.ignore_eos
    }

    /// Whether `token_id` ends a text.
    ///
    /// ```
    /// # use nv_engine::SamplingParams;
    /// let params = SamplingParams::default().with_stop_token_ids(vec![5]).with_eos_token_ids(vec![7]);
    /// assert!(params.stops_at(5) && params.stops_at(7));
    /// let params = params.with_ignore_eos(true);
    /// assert!(params.stops_at(5) && !params.stops_at(7));
    /// ```
    pub fn stops_at(&self, token_id: TokenId) -> bool {
        self.stop_token_ids.binary_search(&token_id).is_ok()
            || (!self.ignore_eos && self.eos_token_ids.binary_search(&token_id).is_ok())
    }

    /// How many continuations are asked for, at least 1.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Where the random stream starts.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How many of the likeliest tokens to tell the log-probability of, beside the one that was chosen; `None` if not
    /// even that.
    pub fn logprobs(&self) -> Option<usize> {
        self.logprobs
    }

    /// The same for the tokens of the prompt.
    pub fn prompt_logprobs(&self) -> Option<usize> {
        self.prompt_logprobs
    }
}

/// Each token once, so that lists cost what they say, however often they say it, and can be searched.
fn ascending(mut token_ids: Vec<TokenId>) -> Vec<TokenId> {
    token_ids.sort_unstable();
    token_ids.dedup();
    token_ids
}

/// The value as the arithmetic of logits takes it.
#[expect(clippy::cast_possible_truncation, reason = "what becomes infinite is refused")]
fn narrow(value: f64) -> f32 {
    value as f32
}

pub(crate) fn refuse<T>(
    parameter: &'static str,
    expected: impl Into<String>,
    found: impl Display,
) -> Result<T> {
    Err(Error::SamplingParameter { parameter, expected: expected.into(), found: found.to_string() })
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
        let expected = "temperature: expected a finite number from 0, found";
        check(params().with_temperature(-0.1), &format!("{expected} -0.1"));
        check(params().with_temperature(f64::NAN), &format!("{expected} NaN"));
        check(params().with_temperature(f64::INFINITY), &format!("{expected} inf"));
        let expected = "top_p: expected a number from 0 to 1, found";
        check(params().with_top_p(-0.1), &format!("{expected} -0.1"));
        check(params().with_top_p(1.01), &format!("{expected} 1.01"));
        check(params().with_top_p(f64::NAN), &format!("{expected} NaN"));
        let expected = "min_p: expected a number from 0 to 1, found";
        check(params().with_min_p(-0.1), &format!("{expected} -0.1"));
        check(params().with_min_p(1.5), &format!("{expected} 1.5"));
        check(params().with_min_p(f64::NAN), &format!("{expected} NaN"));
        let expected = "repetition_penalty: expected a finite number above 0, found";
        check(params().with_repetition_penalty(0.0), &format!("{expected} 0"));
        check(params().with_repetition_penalty(-1.0), &format!("{expected} -1"));
        check(params().with_repetition_penalty(f64::NAN), &format!("{expected} NaN"));
        // Neither is a number of f32.
        check(params().with_repetition_penalty(f64::MAX), &format!("{expected} {}", f64::MAX));
        check(params().with_repetition_penalty(1e-60), &format!("{expected} {}", 1e-60));
        let expected = "expected a number from -2 to 2, found";
        check(params().with_presence_penalty(2.1), &format!("presence_penalty: {expected} 2.1"));
        check(
            params().with_frequency_penalty(f64::NAN),
            &format!("frequency_penalty: {expected} NaN"),
        );
        let expected = "logit_bias: expected numbers from -100 to 100, found";
        let bias = |bias| params().with_logit_bias([(3, 1.0), (5, bias)]);
        check(bias(100.5), &format!("{expected} 100.5 for token 5"));
        check(bias(f64::NEG_INFINITY), &format!("{expected} -inf for token 5"));
        check(
            params().with_allowed_token_ids(vec![]),
            "allowed_token_ids: expected at least one token id, found none",
        );
        check(params().with_max_tokens(0), "max_tokens: expected at least 1, found 0");
        check(params().with_n(0), "n: expected at least 1, found 0");
    }

    #[test]
    fn what_no_model_can_serve_is_refused_by_name() {
        let check = |params: Result<SamplingParams>, expected: &str| {
            assert_eq!(params.unwrap().check(100).unwrap_err().to_string(), expected);
        };
        let params = SamplingParams::default;
        let expected = "expected token ids below the vocabulary's 100, found 100";
        check(params().with_logit_bias([(100, 1.0)]), &format!("logit_bias: {expected}"));
        check(
            params().with_allowed_token_ids(vec![100, 3]),
            &format!("allowed_token_ids: {expected}"),
        );
        check(
            Ok(params().with_banned_token_ids(vec![100])),
            &format!("banned_token_ids: {expected}"),
        );
        check(Ok(params().with_stop_token_ids(vec![100])), &format!("stop_token_ids: {expected}"));
        let expected = "expected at most the vocabulary's 100, found 101";
        check(Ok(params().with_logprobs(101)), &format!("logprobs: {expected}"));
        check(Ok(params().with_prompt_logprobs(101)), &format!("prompt_logprobs: {expected}"));
        let expected = "allowed_token_ids: expected a token id that is not banned nor, \
                        with min_tokens, ends the text, found";
        check(
            params().with_banned_token_ids(vec![1, 2, 3]).with_allowed_token_ids(vec![2, 1, 2]),
            &format!("{expected} none among 2"),
        );
        check(
            params()
                .with_banned_token_ids(vec![2])
                .with_eos_token_ids(vec![1])
                .with_min_tokens(1)
                .with_allowed_token_ids(vec![1, 2]),
            &format!("{expected} none among 2"),
        );
        check(
            params().with_min_tokens(9).with_max_tokens(8),
            "min_tokens: expected at most max_tokens, which is 8, found 9",
        );
    }

    #[test]
    fn the_edges_of_every_range_are_served() {
        let params = SamplingParams::default()
            .with_temperature(f64::MAX)
            .and_then(|params| params.with_top_p(1.0))
            .and_then(|params| params.with_min_p(1.0))
            .and_then(|params| params.with_repetition_penalty(1e-30))
            .and_then(|params| params.with_presence_penalty(-2.0))
            .and_then(|params| params.with_frequency_penalty(2.0))
            .and_then(|params| params.with_logit_bias([(99, -100.0), (0, 100.0)]))
            .and_then(|params| params.with_allowed_token_ids(vec![99, 0]))
            .and_then(|params| params.with_max_tokens(1))
            .unwrap()
            .with_banned_token_ids(vec![99])
            .with_stop_token_ids(vec![99])
            .with_eos_token_ids(vec![99, 100])
            .with_min_tokens(1)
            .with_logprobs(100)
            .with_prompt_logprobs(0);
        params.check(100).unwrap();
    }

    #[test]
    fn a_token_that_is_named_twice_counts_once() {
        let often: Vec<TokenId> = [9, 4].repeat(100_000);
        let params = SamplingParams::default()
            .with_stop_token_ids(often.clone())
            .with_eos_token_ids(often.clone())
            .with_banned_token_ids(often.clone())
            .with_allowed_token_ids(often)
            .unwrap();
        let lists = [params.stop_token_ids(), params.eos_token_ids(), params.banned_token_ids()];
        assert_eq!(lists, [[4, 9]; 3]);
        assert_eq!(params.allowed_token_ids(), Some(&[4, 9][..]));
        assert!(params.stops_at(4) && params.stops_at(9) && !params.stops_at(5));
    }

    #[test]
    fn a_top_k_of_0_is_all() {
        let params = SamplingParams::default().with_top_k(5);
        assert_eq!(params.top_k(), Some(5));
        assert_eq!(params.with_top_k(0).top_k(), None);
    }
}
