//! `/v1/completions`: texts and how they go on.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use nv_engine::TokenId;
use nv_text::{FromField, Reasoning};
use serde_json::Value;

use crate::completion_answer::{CompletionAnswers, CompletionChunks, Form};
use crate::error::{Error, Result};
use crate::fields::{Body, finish, kind};
use crate::generation::Generation;
use crate::params::{Limit, Params, max_tokens, num_logprobs};
use crate::prompt::Prompt;
use crate::server::Server;
use crate::sse;
use crate::unsupported::refuse_of_completion;

/// What the OpenAI API says of a completion that doesn't.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Prompts of one request at most, as the OpenAI API has it, and continuations of them all.
const MAX_NUM_PROMPTS: usize = 2048;

/// What is to be continued, as it came.
#[derive(Debug)]
enum Input {
    Text(String),
    TokenIds(Vec<TokenId>),
}

/// Continues texts.
pub(crate) async fn complete(State(server): State<Server>, body: Body) -> Result<Response> {
    let Body(mut fields) = body;
    let mut params = Params::take(&mut fields, &server)?;
    refuse_of_completion(&mut fields)?;
    let inputs = inputs(fields.take_value("prompt"))?;
    let num_choices = inputs.len() * params.sampling.n();
    if num_choices > MAX_NUM_PROMPTS {
        let reason = format!(
            "expected at most {MAX_NUM_PROMPTS} for all prompts together, found {num_choices}"
        );
        return Err(Error::field("n", reason));
    }
    let add_special_tokens = fields.take("add_special_tokens")?.unwrap_or(true);
    let echo = fields.take("echo")?.unwrap_or(false);
    let logprobs = num_logprobs(&mut fields, "logprobs")?;
    let asked = max_tokens(&mut fields)?;
    finish(fields);

    let has_prompt_logprobs = params.sampling.prompt_logprobs().is_some();
    if let Some(num_top) = logprobs {
        params.sampling = params.sampling.with_logprobs(num_top);
        if echo {
            if params.delivery.stream {
                let reason = "with `logprobs` ask for it without `stream`";
                return Err(Error::Unsupported { field: "echo", reason });
            }
            let num_top = params.sampling.prompt_logprobs().unwrap_or(0).max(num_top);
            params.sampling = params.sampling.with_prompt_logprobs(num_top);
        }
    }
    // The engine adds a token to whatever it has computed; here nobody sees it.
    let is_only_prompt = asked.is_some_and(|(_, max_tokens)| max_tokens == 0);
    let limit = Limit {
        prompt: "prompt",
        asked: asked.map(|(field, max_tokens)| (field, max_tokens.max(1))),
        default: Some(DEFAULT_MAX_TOKENS),
    };
    let skip_special_tokens = params.text.skip_special_tokens;
    let with_offsets = echo && logprobs.is_some();
    let guide = params.guide.take();
    let (prompts, constraint) = server
        .compute(move |server| {
            let tokenizer = server.tokenizer();
            let prompt = |input| match input {
                Input::Text(text) => {
                    Prompt::of_text(text, add_special_tokens, with_offsets, tokenizer)
                }
                Input::TokenIds(ids) => {
                    Ok(Prompt::of_token_ids(ids, skip_special_tokens, tokenizer))
                }
            };
            let prompts = inputs.into_iter().map(prompt).collect::<Result<Vec<_>>>()?;
            let constraint =
                guide.map(|guide| guide.compile(Reasoning::Off, server)).transpose()?;
            Ok((prompts, constraint))
        })
        .await?;
    params.constraint = constraint;
    let requests = prompts.iter();
    let requests = requests
        .map(|prompt| params.request(prompt.token_ids.clone(), limit, &server))
        .collect::<Result<Vec<_>>>()?;
    let mut generation = Generation::start(&server, requests, params.text).await?;
    let form = Form {
        n: params.sampling.n(),
        prompts,
        echo,
        has_logprobs: logprobs.is_some(),
        has_prompt_logprobs,
        is_only_prompt,
        return_token_ids: params.return_token_ids,
        return_tokens_as_token_ids: params.return_tokens_as_token_ids,
    };
    if params.delivery.stream {
        return Ok(sse::stream(generation, CompletionChunks::new(server, form, params.delivery)));
    }
    let mut answers = CompletionAnswers::new(server, form);
    while let Some(piece) = generation.next().await? {
        answers.push(piece);
    }
    Ok(Json(answers.finish(generation.usage())).into_response())
}

/// A prompt is a string or a list of token ids, or there is a list of them.
fn inputs(prompt: Option<Value>) -> Result<Vec<Input>> {
    const EXPECTED: &str =
        "expected a string, a list of strings, a list of token ids or a list of such lists";
    let unexpected =
        |field: &str, found: &str| Error::field(field, format!("{EXPECTED}, found {found}"));
    let items = match prompt {
        None => return Err(unexpected("prompt", "nothing")),
        Some(Value::String(text)) => return Ok(vec![Input::Text(text)]),
        Some(Value::Array(items)) if items.is_empty() => {
            return Err(unexpected("prompt", "an empty list"));
        }
        Some(Value::Array(items)) => items,
        Some(other) => return Err(unexpected("prompt", kind(&other))),
    };
    if items.iter().all(Value::is_number) {
        return Ok(vec![Input::TokenIds(Vec::from_field(items.into(), "prompt")?)]);
    }
    if items.len() > MAX_NUM_PROMPTS {
        let reason = format!("expected at most {MAX_NUM_PROMPTS} prompts, found {}", items.len());
        return Err(Error::field("prompt", reason));
    }
    let input = |(index, item)| match item {
        Value::String(text) => Ok(Input::Text(text)),
        ids @ Value::Array(_) => {
            Ok(Input::TokenIds(Vec::from_field(ids, &format!("prompt[{index}]"))?))
        }
        other => Err(unexpected(&format!("prompt[{index}]"), kind(&other))),
    };
    items.into_iter().enumerate().map(input).collect()
}
