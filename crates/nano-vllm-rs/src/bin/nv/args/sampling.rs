//! How tokens are chosen and when texts end: options of the command line, and fields of a request in JSON.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use anyhow::{Context, Result};
use nano_vllm_rs::config::GenerationConfig;
use nano_vllm_rs::engine::{self, SamplingParams, TokenId};
use nano_vllm_rs::text::{self, Fields, FromField, StopStrings};

/// What `max_tokens` is if neither the user nor the model says.
const DEFAULT_MAX_TOKENS: usize = 256;

/// What is asked for; where it is silent, the model's makers say. Names are vLLM's.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Generate at most N tokens [default: the model's `max_new_tokens`, else 256].
    #[arg(long, value_name = "N")]
    pub(super) max_tokens: Option<usize>,

    /// Generate at least N tokens before a text may end.
    #[arg(long, value_name = "N")]
    min_tokens: Option<usize>,

    /// Divide the logits by T; 0 takes the likeliest token each time [default: the model's].
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(super) temperature: Option<f64>,

    /// Sample from the K likeliest tokens; 0 or -1 for all [default: the model's].
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = top_k)]
    pub(super) top_k: Option<usize>,

    /// Sample from the likeliest tokens that have probability P together [default: the model's].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(super) top_p: Option<f64>,

    /// Sample from tokens at least P times as likely as the likeliest [default: the model's].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f64>,

    /// Divide or multiply logits of tokens that came before by R, which makes them less likely [default: the model's].
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f64>,

    /// Subtract P from the logits of tokens that were generated.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    presence_penalty: Option<f64>,

    /// Subtract P from the logits of tokens for each time that they were generated.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    frequency_penalty: Option<f64>,

    /// Add BIAS to the logit of a token; may be repeated.
    #[arg(long, value_name = "TOKEN:BIAS", value_parser = logit_bias)]
    logit_bias: Option<Vec<(TokenId, f64)>>,

    /// Sample from these tokens only.
    #[arg(long, value_name = "TOKEN", value_delimiter = ',')]
    allowed_token_ids: Option<Vec<TokenId>>,

    /// Sample none of these tokens.
    #[arg(long, value_name = "TOKEN", value_delimiter = ',')]
    banned_token_ids: Option<Vec<TokenId>>,

    /// End a text at this string, which is left out; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Option<Vec<String>>,

    /// Keep the stop string in the text.
    #[arg(long, requires = "stop")]
    include_stop_str_in_output: bool,

    /// End a text at any of these tokens too.
    #[arg(long, value_name = "TOKEN", value_delimiter = ',')]
    stop_token_ids: Option<Vec<TokenId>>,

    /// Go on after the model's own end of a text.
    #[arg(long)]
    ignore_eos: bool,

    /// Continue each prompt N times.
    #[arg(short, value_name = "N")]
    n: Option<usize>,

    /// Choose among the possible texts: the same seed, the same text [default: random].
    #[arg(long, value_name = "SEED")]
    pub(super) seed: Option<u64>,

    /// Tell each token's log-probability, and those of the K likeliest in its place.
    #[arg(long, value_name = "K", requires = "json_output")]
    logprobs: Option<usize>,

    /// Tell the log-probability of each token of the prompt but the first, and of the K likeliest in its place.
    #[arg(long, value_name = "K", requires = "json_output")]
    prompt_logprobs: Option<usize>,

    /// Tell the tokens of texts.
    #[arg(long, requires = "json_output")]
    pub(crate) return_token_ids: bool,
}

impl SamplingArgs {
    /// What a request in JSON asks for: its own `fields`, and these where it is silent.
    ///
    /// # Errors
    /// If a field holds something else than it should.
    pub(crate) fn with_fields(mut self, fields: &mut Fields) -> Result<Self> {
        replace(&mut self.max_tokens, fields.take("max_tokens")?);
        replace(&mut self.min_tokens, fields.take("min_tokens")?);
        replace(&mut self.temperature, fields.take("temperature")?);
        if let Some(found) = fields.take_value("top_k") {
            let top_k = i128::from_field(found.clone(), "top_k").ok().and_then(at_most);
            let unexpected = || text::Error::unexpected("top_k", "a whole number from -1", &found);
            self.top_k = Some(top_k.ok_or_else(unexpected)?);
        }
        replace(&mut self.top_p, fields.take("top_p")?);
        replace(&mut self.min_p, fields.take("min_p")?);
        replace(&mut self.repetition_penalty, fields.take("repetition_penalty")?);
        replace(&mut self.presence_penalty, fields.take("presence_penalty")?);
        replace(&mut self.frequency_penalty, fields.take("frequency_penalty")?);
        replace(&mut self.allowed_token_ids, fields.take("allowed_token_ids")?);
        replace(&mut self.banned_token_ids, fields.take("banned_token_ids")?);
        replace(&mut self.stop_token_ids, fields.take("stop_token_ids")?);
        replace(&mut self.n, fields.take("n")?);
        replace(&mut self.seed, fields.take("seed")?);
        replace(&mut self.logprobs, fields.take("logprobs")?);
        replace(&mut self.prompt_logprobs, fields.take("prompt_logprobs")?);
        if let Some(bias) = fields.take::<BTreeMap<TokenId, f64>>("logit_bias")? {
            self.logit_bias = Some(bias.into_iter().collect());
        }
        if let Some(mut stop) = fields.take_one_or_many("stop")? {
            // Written for none.
            stop.retain(|stop| !stop.is_empty());
            self.stop = Some(stop);
        }
        for (name, flag) in [
            ("include_stop_str_in_output", &mut self.include_stop_str_in_output),
            ("ignore_eos", &mut self.ignore_eos),
            ("return_token_ids", &mut self.return_token_ids),
        ] {
            *flag = fields.take(name)?.unwrap_or(*flag);
        }
        Ok(self)
    }

    /// What is asked for, and what the model's makers recommend where nothing is. Without a seed, a random one.
    ///
    /// # Errors
    /// If a value says nothing about sampling.
    pub(crate) fn params(&self, recommended: &GenerationConfig) -> Result<SamplingParams> {
        let samples = recommended.do_sample || self.top_k.is_some() || self.top_p.is_some();
        let temperature = if samples { recommended.temperature.unwrap_or(1.0) } else { 0.0 };
        let max_tokens = recommended.max_new_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let params = SamplingParams::default()
            .with_temperature(temperature)?
            .with_top_k(recommended.top_k.unwrap_or(0))
            .with_top_p(recommended.top_p.unwrap_or(1.0))?
            .with_min_p(recommended.min_p.unwrap_or(0.0))?
            .with_repetition_penalty(recommended.repetition_penalty.unwrap_or(1.0))?
            .with_max_tokens(max_tokens)?
            .with_eos_token_ids(recommended.eos_token_id.clone())
            .with_seed(random_seed());
        Ok(self.change(params)?)
    }

    /// `params` with all that is asked for.
    fn change(&self, params: SamplingParams) -> engine::Result<SamplingParams> {
        let asked = self.clone();
        let mut params = params.with_ignore_eos(self.ignore_eos);
        params = set(params, asked.max_tokens, SamplingParams::with_max_tokens)?;
        params = set(params, asked.temperature, SamplingParams::with_temperature)?;
        params = set(params, asked.top_p, SamplingParams::with_top_p)?;
        params = set(params, asked.min_p, SamplingParams::with_min_p)?;
        params = set(params, asked.repetition_penalty, SamplingParams::with_repetition_penalty)?;
        params = set(params, asked.presence_penalty, SamplingParams::with_presence_penalty)?;
        params = set(params, asked.frequency_penalty, SamplingParams::with_frequency_penalty)?;
        params = set(params, asked.logit_bias, SamplingParams::with_logit_bias)?;
        params = set(params, asked.allowed_token_ids, SamplingParams::with_allowed_token_ids)?;
        params = set(params, asked.n, SamplingParams::with_n)?;
        if let Some(banned_token_ids) = asked.banned_token_ids {
            params = params.with_banned_token_ids(banned_token_ids);
        }
        if let Some(stop_token_ids) = asked.stop_token_ids {
            params = params.with_stop_token_ids(stop_token_ids);
        }
        if let Some(min_tokens) = asked.min_tokens {
            params = params.with_min_tokens(min_tokens);
        }
        if let Some(top_k) = asked.top_k {
            params = params.with_top_k(top_k);
        }
        if let Some(seed) = asked.seed {
            params = params.with_seed(seed);
        }
        if let Some(num_top) = asked.logprobs {
            params = params.with_logprobs(num_top);
        }
        if let Some(num_top) = asked.prompt_logprobs {
            params = params.with_prompt_logprobs(num_top);
        }
        Ok(params)
    }

    /// What ends a text by what it says.
    ///
    /// # Errors
    /// If a stop string is empty.
    pub(crate) fn stop_strings(&self) -> text::Result<StopStrings> {
        let stop = self.stop.as_deref().unwrap_or_default();
        StopStrings::new(stop, self.include_stop_str_in_output)
    }

    /// Whether the values make sense, whatever the model.
    pub(super) fn check(&self) -> Result<()> {
        self.change(SamplingParams::default())?;
        self.stop_strings()?;
        Ok(())
    }
}

/// Another seed each time.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().hash_one(())
}

/// Puts a value in the place of what the command line says, if there is one.
fn replace<T>(field: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *field = value;
    }
}

/// `params` changed by `value`, if there is one.
fn set<T>(
    params: SamplingParams,
    value: Option<T>,
    with: impl FnOnce(SamplingParams, T) -> engine::Result<SamplingParams>,
) -> engine::Result<SamplingParams> {
    match value {
        Some(value) => with(params, value),
        None => Ok(params),
    }
}

pub(super) fn top_k(text: &str) -> Result<usize> {
    let top_k = text.parse().ok().and_then(at_most);
    top_k.with_context(|| format!("expected a whole number from -1, found {text}"))
}

/// vLLM's older name for all tokens is -1.
fn at_most(top_k: i128) -> Option<usize> {
    if top_k == -1 { Some(0) } else { top_k.try_into().ok() }
}

fn logit_bias(text: &str) -> Result<(TokenId, f64)> {
    let (token_id, bias) = text.split_once(':').context("expected TOKEN:BIAS, such as 42:-1.5")?;
    Ok((token_id.parse()?, bias.parse()?))
}
