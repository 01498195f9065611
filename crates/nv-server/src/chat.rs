//! `/v1/chat/completions`: a conversation and how it goes on.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use nv_engine::TokenId;
use nv_text::{
    ChatMessage, ChatOptions, ChatParser, Fields, FunctionSchema, Grammar, Reasoning, ToolCalls,
};
use serde_json::{Map, Value};

use crate::chat_answer::{ChatAnswers, ChatChunks, Form};
use crate::error::{Error, Result};
use crate::fields::{Body, finish, kind};
use crate::generation::Generation;
use crate::guided::Guide;
use crate::params::{Limit, Params, max_tokens, num_logprobs};
use crate::server::Server;
use crate::sse;
use crate::thinking;
use crate::unsupported::{refuse_of_chat, refuse_of_conversation};

/// A conversation as a prompt.
#[derive(Debug)]
pub(crate) struct Conversation {
    messages: Vec<ChatMessage>,
    options: ChatOptions,
    add_special_tokens: bool,
}

/// A conversation's text and tokens.
#[derive(Debug)]
pub(crate) struct ChatPrompt {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<TokenId>,
}

/// Whether the answer calls tools.
#[derive(Debug, PartialEq, Eq)]
enum ToolChoice {
    None,
    /// If the model wants to.
    Auto,
    /// At least one.
    Required,
    /// This one, once.
    Function(String),
}

impl Conversation {
    /// Takes the fields that say what the prompt is.
    pub(crate) fn take(fields: &mut Fields, server: &Server) -> Result<Self> {
        let messages = ChatMessage::take_all(fields)?;
        refuse_of_conversation(fields)?;
        let template_kwargs = fields.take::<Map<String, Value>>("chat_template_kwargs")?;
        let mut template_kwargs = template_kwargs.unwrap_or_default();
        thinking::take(fields, &mut template_kwargs)?;
        Ok(Self {
            messages,
            options: ChatOptions {
                add_generation_prompt: fields.take("add_generation_prompt")?.unwrap_or(true),
                enable_thinking: None,
                tools: tools(fields, server)?,
                template_kwargs,
            },
            add_special_tokens: fields.take("add_special_tokens")?.unwrap_or(false),
        })
    }

    pub(crate) fn encode(&self, server: &Server) -> Result<ChatPrompt> {
        let text = server.chat_template().render(&self.messages, &self.options)?;
        let token_ids = server.tokenizer().encode(&text, self.add_special_tokens)?;
        Ok(ChatPrompt { text, token_ids })
    }
}

/// Answers a conversation.
pub(crate) async fn complete(State(server): State<Server>, body: Body) -> Result<Response> {
    let Body(mut fields) = body;
    let mut params = Params::take(&mut fields, &server)?;
    refuse_of_chat(&mut fields)?;
    check_modalities(&mut fields)?;
    check_verbosity(&mut fields)?;
    let mut conversation = Conversation::take(&mut fields, &server)?;
    let tool_choice = ToolChoice::take(&mut fields, &conversation.options.tools)?;
    let parallel_tool_calls = fields.take("parallel_tool_calls")?.unwrap_or(true);
    let guide =
        tool_choice.guide(params.guide.take(), &conversation.options.tools, parallel_tool_calls)?;
    if tool_choice == ToolChoice::None {
        conversation.options.tools.clear();
    }
    let has_logprobs = fields.take("logprobs")?.unwrap_or(false);
    match (has_logprobs, num_logprobs(&mut fields, "top_logprobs")?) {
        (true, num_top) => params.sampling = params.sampling.with_logprobs(num_top.unwrap_or(0)),
        (false, Some(1..)) => {
            return Err(Error::field("top_logprobs", "expected only with `logprobs`"));
        }
        (false, _) => {}
    }
    let limit = Limit {
        prompt: "messages",
        asked: max_tokens(&mut fields)?,
        default: server.generation_config().max_new_tokens,
    };
    finish(fields);

    let (token_ids, reasoning, constraint) = server
        .compute(move |server| {
            let ChatPrompt { text, token_ids } = conversation.encode(server)?;
            let reasoning = Reasoning::after_prompt(&text);
            let constraint = guide.map(|guide| guide.compile(reasoning, server)).transpose()?;
            Ok((token_ids, reasoning, constraint))
        })
        .await?;
    params.constraint = constraint;
    params.text.stop = params.text.stop.after_reasoning(reasoning);
    let tool_calls = match tool_choice {
        ToolChoice::None => ToolCalls::Off,
        _ => ToolCalls::On,
    };
    let form = Form {
        parser: ChatParser::new(reasoning, tool_calls),
        parallel_tool_calls,
        // Who named the function need not be told that there is a call.
        call_finish_reason: match tool_choice {
            ToolChoice::Function(_) => "stop",
            _ => "tool_calls",
        },
        has_logprobs,
        has_prompt_logprobs: params.sampling.prompt_logprobs().is_some(),
        return_tokens_as_token_ids: params.return_tokens_as_token_ids,
        prompt_token_ids: params.return_token_ids.then(|| token_ids.clone()),
    };
    let request = params.request(token_ids, limit, &server)?;
    let mut generation = Generation::start(&server, vec![request], params.text).await?;
    if params.delivery.stream {
        let chunks = ChatChunks::new(server, form, generation.num_choices(), params.delivery);
        return Ok(sse::stream(generation, chunks));
    }
    let mut answers = ChatAnswers::new(server, form, generation.num_choices());
    while let Some(piece) = generation.next().await? {
        answers.push(piece);
    }
    Ok(Json(answers.finish(generation.usage())).into_response())
}

/// The tools that are offered, checked as far as templates rely on it.
fn tools(fields: &mut Fields, server: &Server) -> Result<Vec<Value>> {
    let tools = fields.take::<Vec<Value>>("tools")?.unwrap_or_default();
    if !tools.is_empty() && !server.has_chat_template() {
        let reason = "the model brings no chat template that could show them to it";
        return Err(Error::Unsupported { field: "tools", reason });
    }
    for (index, tool) in tools.iter().enumerate() {
        let check = |name: &str, value: Option<&Value>, expected: &str, is_right: bool| {
            let found = value.map_or("nothing", kind);
            let reason = format!("expected {expected}, found {found}");
            is_right
                .then_some(())
                .ok_or_else(|| Error::field(format!("tools[{index}]{name}"), reason))
        };
        let get = |name| tool.pointer(name);
        check("", Some(tool), "an object", tool.is_object())?;
        let kind = get("/type");
        check(".type", kind, r#"the string "function""#, kind == Some(&"function".into()))?;
        let name = get("/function/name");
        check(".function.name", name, "a string", name.is_some_and(Value::is_string))?;
        let parameters = get("/function/parameters");
        let is_right = parameters.is_none_or(|it| it.is_object() || it.is_null());
        check(".function.parameters", parameters, "an object", is_right)?;
    }
    Ok(tools)
}

impl ToolChoice {
    fn take(fields: &mut Fields, tools: &[Value]) -> Result<Self> {
        const FIELD: &str = "tool_choice";
        let choice = match fields.take_value(FIELD) {
            None if tools.is_empty() => return Ok(Self::None),
            None => return Ok(Self::Auto),
            Some(choice) => choice,
        };
        let choice = match &choice {
            Value::String(choice) => match &**choice {
                "none" => return Ok(Self::None),
                // With nothing to choose from, there is nothing to refuse.
                "auto" if tools.is_empty() => return Ok(Self::None),
                "auto" => Self::Auto,
                "required" => Self::Required,
                _ => {
                    let reason = r#"expected "none", "auto", "required" or an object"#;
                    return Err(Error::field(FIELD, reason));
                }
            },
            Value::Object(choice) if choice.get("type") == Some(&"function".into()) => match choice
                .get("function")
                .and_then(|function| function.get("name"))
            {
                Some(Value::String(name)) => Self::Function(name.clone()),
                _ => return Err(Error::field("tool_choice.function.name", "expected a string")),
            },
            Value::Object(_) => {
                return Err(Error::field("tool_choice.type", r#"expected the string "function""#));
            }
            other => {
                let reason = format!("expected a string or an object, found {}", kind(other));
                return Err(Error::field(FIELD, reason));
            }
        };
        if tools.is_empty() {
            return Err(Error::field(FIELD, "expected only with `tools`"));
        }
        Ok(choice)
    }

    /// What the answer is held to, where its text is held to `text`, if it says anything beside calls.
    fn guide(
        &self,
        text: Option<Guide>,
        tools: &[Value],
        is_parallel: bool,
    ) -> Result<Option<Guide>> {
        let is_chosen = |name: &str| match self {
            Self::Function(chosen) => chosen == name,
            _ => true,
        };
        let mut functions = Vec::new();
        let mut fields = Vec::new();
        for (index, tool) in tools.iter().enumerate() {
            let name = tool.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
            if is_chosen(name) {
                let parameters = tool.pointer("/function/parameters");
                functions.push(FunctionSchema {
                    name: name.to_owned(),
                    parameters: parameters.filter(|it| !it.is_null()).cloned(),
                });
                fields.push(format!("tools[{index}].function.parameters"));
            }
        }
        let is_parallel = is_parallel && !matches!(self, Self::Function(_));
        let calls = |functions| Grammar::ToolCalls { functions, is_parallel };
        Ok(match (self, text) {
            (Self::None, text) | (Self::Auto, text @ None) => text,
            // The form is that of the text; a call has its own.
            (Self::Auto, Some(Guide { field, grammar, .. })) => {
                let grammar = Grammar::Either(Box::new(calls(functions)), Box::new(grammar));
                Some(Guide { field, grammar, parameters: fields })
            }
            (Self::Required | Self::Function(_), Some(Guide { field, .. })) => {
                let reason = "expected only where `tool_choice` lets the answer be a text";
                return Err(Error::field(field, reason));
            }
            (Self::Function(name), None) if functions.is_empty() => {
                let reason = format!("expected a function of `tools`, found {name:?}");
                return Err(Error::field("tool_choice.function.name", reason));
            }
            (Self::Required | Self::Function(_), None) => {
                let (field, grammar) = ("tools".to_owned(), calls(functions));
                Some(Guide { field, grammar, parameters: fields })
            }
        })
    }
}

fn check_modalities(fields: &mut Fields) -> Result<()> {
    const FIELD: &str = "modalities";
    let modalities = fields.take::<Vec<String>>(FIELD)?.unwrap_or_default();
    if modalities.iter().any(|modality| modality != "text") {
        return Err(Error::Unsupported { field: FIELD, reason: "only text is answered" });
    }
    Ok(())
}

/// The model knows no degrees of it: one is as good as the other.
fn check_verbosity(fields: &mut Fields) -> Result<()> {
    const FIELD: &str = "verbosity";
    let verbosity = fields.take::<String>(FIELD)?;
    if verbosity.is_some_and(|verbosity| !matches!(&*verbosity, "low" | "medium" | "high")) {
        return Err(Error::field(FIELD, "expected low, medium or high"));
    }
    Ok(())
}
