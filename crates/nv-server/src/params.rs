//! What chats and completions ask for alike: how tokens are chosen, when the text ends, how it is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use nv_engine::{Constraint, Request, SamplingParams, TokenId};
use nv_text::StopStrings;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::guided::Guide;
use crate::server::Server;

/// Log-probabilities a token at most, as the OpenAI API has it.
const MAX_LOGPROBS: usize = 20;

/// Stop strings at most, as each byte of an answer is held against all of them; the OpenAI API has 4.
const MAX_NUM_STOP: usize = 64;

/// Bytes of all stop strings at most.
const MAX_STOP_BYTES: usize = 64 << 10;

/// Stop tokens at most.
const MAX_NUM_STOP_TOKEN_IDS: usize = 1024;

/// Fields of the OpenAI API and of vLLM's that change what is answered, and that this server lacks.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("guided_whitespace_pattern", "JSON is written with a space or a line end between its parts"),
    ("bad_words", "use `logit_bias` for single tokens"),
    ("use_beam_search", "use `n` and compare `logprobs`"),
    ("logits_processors", "use `logit_bias`"),
    ("truncate_prompt_tokens", "shorten the prompt with /tokenize and /detokenize"),
    ("prompt_embeds", "send the prompt as text or tokens"),
];

/// Fields of which only the default, given as JSON, is supported.
const FIXED: &[(&str, &str, &str)] = &[("best_of", "1", "use `n` and compare `logprobs`")];

/// Fields of no consequence for the answer. Nothing stands between special tokens in any case, as this family's tokenizers
/// have it.
const WITHOUT_CONSEQUENCE: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "spaces_between_special_tokens",
];

/// The parameters of a request that do not depend on its prompt.
#[derive(Debug)]
pub(crate) struct Params {
    pub(crate) sampling: SamplingParams,
    /// Shared by all continuations.
    pub(crate) text: Arc<TextParams>,
    priority: i32,
    cache_salt: Option<Arc<str>>,
    pub(crate) delivery: Delivery,
    /// Whether answers hold the ids of the tokens.
    pub(crate) return_token_ids: bool,
    /// Whether tokens with log-probabilities are spelled by their ids.
    pub(crate) return_tokens_as_token_ids: bool,
    /// What answers are to be held to.
    pub(crate) guide: Option<Guide>,
    /// What they are held to, once it is compiled.
    pub(crate) constraint: Option<Arc<dyn Constraint>>,
}

/// How the text of a continuation comes about.
#[derive(Debug)]
pub(crate) struct TextParams {
    pub(crate) stop: StopStrings,
    pub(crate) include_stop_str_in_output: bool,
    /// Tokens that belong to the text if they end it, where the string that ends it does.
    pub(crate) stop_token_ids: Vec<TokenId>,
    /// Tokens before which no string ends the text.
    pub(crate) min_tokens: usize,
    pub(crate) skip_special_tokens: bool,
}

/// How an answer is sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Delivery {
    /// Piece by piece, as it comes.
    pub(crate) stream: bool,
    /// With a last piece that says how many tokens there were.
    pub(crate) include_usage: bool,
    /// With the tokens so far in every piece.
    pub(crate) continuous_usage_stats: bool,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Strings {
    One(String),
    Many(Vec<String>),
}

impl Params {
    /// Takes the fields that chats and completions share. The parameters that a request leaves out are those that the
    /// model's makers recommend, as in vLLM, else the OpenAI API's.
    pub(crate) fn take(fields: &mut Fields, server: &Server) -> Result<Self> {
        server.check_model(fields.take::<String>("model")?.as_deref())?;
        fields.refuse(UNSUPPORTED)?;
        fields.refuse_others(FIXED)?;
        let guide = Guide::take(fields)?;
        for name in WITHOUT_CONSEQUENCE {
            fields.take_value(name);
        }

        let sampling = sampling_params(fields, server)?;
        let include_stop_str_in_output =
            fields.take("include_stop_str_in_output")?.unwrap_or(false);
        let text = TextParams {
            stop: StopStrings::new(&stop(fields)?, include_stop_str_in_output)?,
            include_stop_str_in_output,
            stop_token_ids: sampling.stop_token_ids().to_vec(),
            min_tokens: sampling.min_tokens(),
            skip_special_tokens: fields.take("skip_special_tokens")?.unwrap_or(true),
        };
        let cache_salt = match fields.take::<String>("cache_salt")? {
            Some(salt) if salt.is_empty() => {
                return Err(Error::field("cache_salt", "expected at least one character"));
            }
            salt => salt.map(Arc::from),
        };
        let priority = fields.take("priority")?.unwrap_or(0);
        let delivery = delivery(fields)?;
        if delivery.stream && sampling.prompt_logprobs().is_some() {
            let reason = "ask for it without `stream`";
            return Err(Error::Unsupported { field: "prompt_logprobs", reason });
        }
        Ok(Self {
            sampling,
            text: Arc::new(text),
            priority,
            cache_salt,
            delivery,
            return_token_ids: fields.take("return_token_ids")?.unwrap_or(false),
            return_tokens_as_token_ids: fields.take("return_tokens_as_token_ids")?.unwrap_or(false),
            guide,
            constraint: None,
        })
    }

    /// The request for one prompt, of which `field` says how far it may go on, by `max_tokens` if it does.
    pub(crate) fn request(
        &self,
        prompt_token_ids: Vec<TokenId>,
        (field, max_tokens): (&'static str, Option<usize>),
        server: &Server,
    ) -> Result<Request> {
        let (num_prompt_tokens, max_model_len) = (prompt_token_ids.len(), server.max_model_len());
        if max_tokens == Some(0) {
            return Err(Error::field(field, "expected at least 1, found 0"));
        }
        let wanted = max_tokens.unwrap_or(1);
        if num_prompt_tokens.saturating_add(wanted) > max_model_len {
            let max_tokens = wanted;
            return Err(Error::ContextLength {
                field,
                num_prompt_tokens,
                max_tokens,
                max_model_len,
            });
        }
        let recommended = server.generation_config().max_new_tokens;
        let max_tokens = max_tokens.or(recommended).unwrap_or(usize::MAX);
        let max_tokens = max_tokens.min(max_model_len - num_prompt_tokens);
        let params = self.sampling.clone().with_max_tokens(max_tokens)?;
        Ok(Request {
            priority: self.priority,
            cache_salt: self.cache_salt.clone(),
            constraint: self.constraint.clone(),
            ..Request::new(prompt_token_ids, params)
        })
    }
}

fn sampling_params(fields: &mut Fields, server: &Server) -> Result<SamplingParams> {
    let recommended = server.generation_config();
    let temperature = fields.take("temperature")?.or(recommended.temperature);
    let mut params = SamplingParams::default()
        .with_temperature(temperature.unwrap_or(1.0))?
        .with_top_k(top_k(fields)?.or(recommended.top_k).unwrap_or(0))
        .with_top_p(fields.take("top_p")?.or(recommended.top_p).unwrap_or(1.0))?
        .with_min_p(fields.take("min_p")?.or(recommended.min_p).unwrap_or(0.0))?
        .with_repetition_penalty(
            fields.take("repetition_penalty")?.or(recommended.repetition_penalty).unwrap_or(1.0),
        )?
        .with_presence_penalty(fields.take("presence_penalty")?.unwrap_or(0.0))?
        .with_frequency_penalty(fields.take("frequency_penalty")?.unwrap_or(0.0))?
        .with_logit_bias(logit_bias(fields)?)?
        .with_min_tokens(fields.take("min_tokens")?.unwrap_or(0))
        .with_stop_token_ids(stop_token_ids(fields)?)
        .with_eos_token_ids(recommended.eos_token_id.clone())
        .with_ignore_eos(fields.take("ignore_eos")?.unwrap_or(false))
        .with_n(fields.take("n")?.unwrap_or(1))?
        .with_seed(match fields.take::<i64>("seed")? {
            Some(seed) => seed.cast_unsigned(),
            None => RandomState::new().hash_one(()),
        });
    if let Some(token_ids) = fields.take("allowed_token_ids")? {
        params = params.with_allowed_token_ids(token_ids)?;
    }
    if let Some(num_top) = num_logprobs(fields, "prompt_logprobs")? {
        params = params.with_prompt_logprobs(num_top);
    }
    Ok(params)
}

/// A number of log-probabilities a token.
pub(crate) fn num_logprobs(fields: &mut Fields, name: &'static str) -> Result<Option<usize>> {
    match fields.take::<usize>(name)? {
        Some(found) if found > MAX_LOGPROBS => {
            Err(Error::field(name, format!("expected at most {MAX_LOGPROBS}, found {found}")))
        }
        num_top => Ok(num_top),
    }
}

/// 0 and, as vLLM has it, -1 are all.
fn top_k(fields: &mut Fields) -> Result<Option<usize>> {
    let top_k = fields.take::<i64>("top_k")?.map(|top_k| match top_k {
        -1 => Ok(0),
        top_k => usize::try_from(top_k)
            .map_err(|_| Error::field("top_k", format!("expected -1 or more, found {top_k}"))),
    });
    top_k.transpose()
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(TokenId, f64)>> {
    let biases = fields.take::<BTreeMap<String, f64>>("logit_bias")?.unwrap_or_default();
    let bias = |(token, bias): (String, f64)| match token.parse() {
        Ok(token_id) => Ok((token_id, bias)),
        Err(_) => Err(Error::field("logit_bias", "expected token ids as keys, such as \"42\"")),
    };
    biases.into_iter().map(bias).collect()
}

fn stop(fields: &mut Fields) -> Result<Vec<String>> {
    let stop = match fields.take("stop")? {
        None => Vec::new(),
        Some(Strings::One(stop)) => vec![stop],
        Some(Strings::Many(stop)) => stop,
    };
    if stop.len() > MAX_NUM_STOP {
        let reason = format!("expected at most {MAX_NUM_STOP} strings, found {}", stop.len());
        return Err(Error::field("stop", reason));
    }
    let num_bytes: usize = stop.iter().map(String::len).sum();
    if num_bytes > MAX_STOP_BYTES {
        let reason = format!("expected at most {MAX_STOP_BYTES} bytes in all, found {num_bytes}");
        return Err(Error::field("stop", reason));
    }
    Ok(stop)
}

/// Each once, in order.
fn stop_token_ids(fields: &mut Fields) -> Result<Vec<TokenId>> {
    const FIELD: &str = "stop_token_ids";
    let token_ids = fields.take::<BTreeSet<TokenId>>(FIELD)?.unwrap_or_default();
    if token_ids.len() > MAX_NUM_STOP_TOKEN_IDS {
        let found = token_ids.len();
        let reason =
            format!("expected at most {MAX_NUM_STOP_TOKEN_IDS} different tokens, found {found}");
        return Err(Error::field(FIELD, reason));
    }
    Ok(token_ids.into_iter().collect())
}

fn delivery(fields: &mut Fields) -> Result<Delivery> {
    let stream = fields.take("stream")?.unwrap_or(false);
    let options = fields.take::<StreamOptions>("stream_options")?;
    if options.is_some() && !stream {
        return Err(Error::field("stream_options", "expected only with `stream`"));
    }
    let StreamOptions { include_usage, continuous_usage_stats } = options.unwrap_or_default();
    let include_usage = include_usage.unwrap_or(false);
    let continuous_usage_stats = include_usage && continuous_usage_stats.unwrap_or(false);
    Ok(Delivery { stream, include_usage, continuous_usage_stats })
}
