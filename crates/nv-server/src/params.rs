//! What chats and completions ask for alike: how tokens are chosen, when the text ends, how it is sent.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use nv_engine::{Constraint, Request, SamplingParams, TokenId};
use nv_text::{Fields, StopStrings};

use crate::error::{Error, Result};
use crate::guided::Guide;
use crate::server::Server;
use crate::unsupported::refuse_any;

/// Log-probabilities a token at most, as the OpenAI API has it.
const MAX_LOGPROBS: usize = 20;

/// Stop strings at most, as each byte of an answer is held against all of them; the OpenAI API has 4.
const MAX_NUM_STOP: usize = 64;

/// Bytes of all stop strings at most.
const MAX_STOP_BYTES: usize = 64 << 10;

/// Stop tokens at most.
const MAX_NUM_STOP_TOKEN_IDS: usize = 1024;

/// The parameters of a request that do not depend on its prompt.
#[derive(Debug)]
pub(crate) struct Params {
    pub(crate) sampling: SamplingParams,
    pub(crate) text: TextParams,
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
    /// For a text that has not begun.
    pub(crate) stop: StopStrings,
    pub(crate) include_stop_str_in_output: bool,
    /// Tokens that belong to the text if they end it, where the string that ends it does.
    pub(crate) stop_token_ids: Vec<TokenId>,
    /// Tokens in which no stop string ends; one may begin in them.
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

/// How far a prompt is continued, and the fields that say it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// The field that the prompt stands in.
    pub(crate) prompt: &'static str,
    /// Tokens at most, and the field that asks for them, if one does.
    pub(crate) asked: Option<(&'static str, usize)>,
    /// Tokens at most if nobody asks, if there is room for them.
    pub(crate) default: Option<usize>,
}

impl Params {
    /// Takes the fields that chats and completions share. The parameters that a request leaves out are those that the
    /// model's makers recommend, as in vLLM, else the OpenAI API's.
    pub(crate) fn take(fields: &mut Fields, server: &Server) -> Result<Self> {
        server.check_model(fields.take::<String>("model")?.as_deref())?;
        refuse_any(fields)?;
        let guide = Guide::take(fields)?;
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
            text,
            priority,
            cache_salt,
            delivery,
            return_token_ids: fields.take("return_token_ids")?.unwrap_or(false),
            return_tokens_as_token_ids: fields.take("return_tokens_as_token_ids")?.unwrap_or(false),
            guide,
            constraint: None,
        })
    }

    /// The request for one prompt.
    pub(crate) fn request(
        &self,
        prompt_token_ids: Vec<TokenId>,
        limit: Limit,
        server: &Server,
    ) -> Result<Request> {
        let (num_prompt_tokens, max_model_len) = (prompt_token_ids.len(), server.max_model_len());
        if num_prompt_tokens == 0 {
            return Err(Error::field(
                limit.prompt,
                "the prompt is empty: expected a token at least",
            ));
        }
        let room = max_model_len.saturating_sub(num_prompt_tokens);
        let max_tokens = match limit.asked {
            Some((field, 0)) => return Err(Error::field(field, "expected at least 1, found 0")),
            Some((field, max_tokens)) if max_tokens > room => {
                return Err(Error::ContextLength {
                    field,
                    num_prompt_tokens,
                    max_tokens,
                    max_model_len,
                });
            }
            None if room == 0 => {
                let field = limit.prompt;
                return Err(Error::PromptLength { field, num_prompt_tokens, max_model_len });
            }
            Some((_, max_tokens)) => max_tokens,
            None => limit.default.unwrap_or(usize::MAX).min(room),
        };
        let min_tokens = self.sampling.min_tokens();
        if min_tokens > max_tokens {
            let most = match limit.asked {
                Some((field, _)) => format!("`{field}`, which is {max_tokens}"),
                None => format!("{max_tokens}, the length of an answer"),
            };
            let reason = format!("expected at most {most}, found {min_tokens}");
            return Err(Error::field("min_tokens", reason));
        }
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
        .with_logit_bias(fields.take::<BTreeMap<TokenId, f64>>("logit_bias")?.unwrap_or_default())?
        .with_min_tokens(fields.take("min_tokens")?.unwrap_or(0))
        .with_stop_token_ids(stop_token_ids(fields)?)
        .with_eos_token_ids(recommended.eos_token_id.clone())
        .with_ignore_eos(fields.take("ignore_eos")?.unwrap_or(false))
        .with_n(fields.take("n")?.unwrap_or(1))?
        .with_seed(match seed(fields)? {
            Some(seed) => seed,
            None => RandomState::new().hash_one(()),
        });
    if fields.take::<usize>("best_of")?.is_some_and(|best_of| best_of != params.n()) {
        let reason = "use `n` and compare `logprobs`";
        return Err(Error::Unsupported { field: "best_of", reason });
    }
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

/// The longest answer that a request asks for, and the field that does: the newer name goes before the older.
pub(crate) fn max_tokens(fields: &mut Fields) -> Result<Option<(&'static str, usize)>> {
    let mut take = |name| Ok::<_, Error>(fields.take(name)?.map(|max_tokens| (name, max_tokens)));
    let (older, newer) = (take("max_tokens")?, take("max_completion_tokens")?);
    Ok(newer.or(older))
}

/// 64 bits, with a sign or without one.
fn seed(fields: &mut Fields) -> Result<Option<u64>> {
    let bits = |seed: i128| {
        let signed = || i64::try_from(seed).map(i64::cast_unsigned);
        let bits = u64::try_from(seed).or_else(|_| signed());
        bits.map_err(|_| {
            Error::field("seed", format!("expected a number of 64 bits, found {seed}"))
        })
    };
    fields.take("seed")?.map(bits).transpose()
}

/// 0 and, as vLLM has it, -1 are all.
fn top_k(fields: &mut Fields) -> Result<Option<usize>> {
    let top_k = fields.take::<i128>("top_k")?.map(|top_k| match top_k {
        -1 => Ok(0),
        top_k => usize::try_from(top_k)
            .map_err(|_| Error::field("top_k", format!("expected -1 or more, found {top_k}"))),
    });
    top_k.transpose()
}

/// Clients write an empty string for none.
fn stop(fields: &mut Fields) -> Result<Vec<String>> {
    let mut stop = fields.take_one_or_many("stop")?.unwrap_or_default();
    stop.retain(|stop| !stop.is_empty());
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
    let mut token_ids = fields.take::<Vec<TokenId>>(FIELD)?.unwrap_or_default();
    token_ids.sort_unstable();
    token_ids.dedup();
    if token_ids.len() > MAX_NUM_STOP_TOKEN_IDS {
        let found = token_ids.len();
        let reason =
            format!("expected at most {MAX_NUM_STOP_TOKEN_IDS} different tokens, found {found}");
        return Err(Error::field(FIELD, reason));
    }
    Ok(token_ids)
}

fn delivery(fields: &mut Fields) -> Result<Delivery> {
    let stream = fields.take("stream")?.unwrap_or(false);
    let Some(options) = fields.take_value("stream_options") else {
        return Ok(Delivery { stream, ..Delivery::default() });
    };
    let mut options = Fields::new(options, "stream_options")?;
    let include_usage = options.take("include_usage")?.unwrap_or(false);
    let continuous_usage_stats =
        options.take("continuous_usage_stats")?.unwrap_or(false) && include_usage;
    if !stream {
        return Err(Error::field("stream_options", "expected only with `stream`"));
    }
    Ok(Delivery { stream, include_usage, continuous_usage_stats })
}
