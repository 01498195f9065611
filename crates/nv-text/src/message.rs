//! The messages of a conversation, as the OpenAI API has them and as chat templates read them.
//!
//! It knows nothing of how a conversation becomes text.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::big_integer::{big_integer, json_from_str};
use crate::error::{Error, Result};
use crate::fields::{Fields, FromField};

/// One turn of a conversation.
///
/// Fields bear the names that templates and the OpenAI API use. A request's message is deserialised into the form
/// that templates expect:
///
/// - `role` is one of `system`, `user`, `assistant` and `tool`; `developer` becomes `system` and the older `function`
///   `tool`, as templates know no other.
/// - `content` may be a list of strings and of parts, `{"type": "text", "text": …}`, which become lines of one text. The
///   types `input_text`, `output_text` and `refusal` are read alike, and so is the field `refusal`; `thinking` belongs to
///   the reasoning. The content of an assistant and of a tool may be null.
/// - `reasoning` is another name of `reasoning_content`, which goes first.
/// - a tool call's `arguments` may be an object or the text of one, and become an object, whose integers
///   [`json_from_str`] reads; text that holds none stays as it is. The call may come without the layer `function`, or as the older `function_call`.
///
/// Anything else is an error that names the field.
///
/// ```
/// use nv_text::ChatMessage;
///
/// let parts = r#"{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}"#;
/// let message: ChatMessage = serde_json::from_str(parts)?;
/// assert_eq!(message, ChatMessage::new("user", "Hello!"));
///
/// let error = serde_json::from_str::<ChatMessage>(r#"{"role": "critic"}"#).unwrap_err();
/// let expected = r#"field `role`: expected system, developer, user, assistant or tool, found "critic""#;
/// assert_eq!(error.to_string(), expected);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said; empty if an assistant only calls tools.
    pub content: String,
    /// What an assistant thought before it spoke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The tools that an assistant calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who of several with one role speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Other fields, which a template may read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A tool call of an assistant.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(tag = "type", rename = "function")]
pub struct ToolCall {
    /// By which the tool's answer refers to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What is called.
    pub function: FunctionCall,
}

/// The function that a tool call calls.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FunctionCall {
    /// The function.
    pub name: String,
    /// By name; text if they were written, but are no JSON object.
    pub arguments: Value,
}

impl ChatMessage {
    /// A message that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// Takes the field `messages` of a request. Errors name the message as well as its field: ``field
    /// `messages[2].role`: …``.
    ///
    /// ```
    /// use nv_text::{ChatMessage, Fields};
    /// use serde_json::json;
    ///
    /// let mut fields = Fields::new(json!({"messages": [{"role": "user", "content": "Hi"}]}), "")?;
    /// assert_eq!(ChatMessage::take_all(&mut fields)?, [ChatMessage::new("user", "Hi")]);
    /// # Ok::<(), nv_text::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Field`] if a field of a message is missing or of the wrong type, or there is no message.
    pub fn take_all(fields: &mut Fields) -> Result<Vec<Self>> {
        const FIELD: &str = "messages";
        match fields.take_value(FIELD).unwrap_or_default() {
            Value::Array(values) if !values.is_empty() => {
                Vec::from_field(Value::Array(values), &fields.path(FIELD))
            }
            found => {
                let expected = "a list of at least one message";
                Err(Error::unexpected(fields.path(FIELD), expected, &found))
            }
        }
    }
}

impl TryFrom<Value> for ChatMessage {
    type Error = Error;

    fn try_from(value: Value) -> Result<Self> {
        match value {
            Value::Object(_) => message(Fields::new(value, "")?),
            found => Err(Error::unexpected("message", "an object", &found)),
        }
    }
}

impl FromField for ChatMessage {
    fn from_field(value: Value, path: &str) -> Result<Self> {
        message(Fields::new(value, path)?)
    }
}

fn message(mut fields: Fields) -> Result<ChatMessage> {
    let role = fields.require::<String>("role")?;
    let role = match &*role {
        "developer" => "system".to_owned(),
        "function" => "tool".to_owned(),
        "system" | "user" | "assistant" | "tool" => role,
        _ => {
            let expected = "system, developer, user, assistant or tool";
            return Err(Error::unexpected(fields.path("role"), expected, &role.into()));
        }
    };
    let parts = match fields.take_value("content") {
        None if matches!(&*role, "assistant" | "tool") => Vec::new(),
        Some(Value::String(text)) => vec![Part::Text(text)],
        Some(parts @ Value::Array(_)) => Vec::from_field(parts, &fields.path("content"))?,
        found => {
            let expected = "a string or a list of parts";
            let found = found.unwrap_or_default();
            return Err(Error::unexpected(fields.path("content"), expected, &found));
        }
    };
    let (mut content, mut reasoning) = (Vec::new(), Vec::new());
    for part in parts {
        match part {
            Part::Text(text) => content.push(text),
            Part::Thinking(text) => reasoning.push(text),
        }
    }
    content.extend(fields.take::<String>("refusal")?);
    // Two names of one thing.
    let (older, newer) = (fields.take("reasoning_content")?, fields.take("reasoning")?);
    let in_parts = (!reasoning.is_empty()).then(|| reasoning.join("\n"));
    let mut tool_calls = fields.take::<Vec<ToolCall>>("tool_calls")?.unwrap_or_default();
    tool_calls.extend(fields.take::<ToolCall>("function_call")?);
    Ok(ChatMessage {
        role,
        content: content.join("\n"),
        reasoning_content: older.or(newer).or(in_parts),
        tool_calls,
        tool_call_id: fields.take("tool_call_id")?,
        name: fields.take("name")?,
        extra: fields.into_rest(),
    })
}

/// A part of a content that is a list.
#[derive(Debug)]
enum Part {
    Text(String),
    /// What an assistant thought.
    Thinking(String),
}

impl FromField for Part {
    fn from_field(value: Value, path: &str) -> Result<Self> {
        if let Value::String(text) = value {
            return Ok(Self::Text(text));
        }
        let mut part = Fields::new(value, path)?;
        let kind = part.take::<String>("type")?;
        match kind.as_deref() {
            None | Some("text" | "input_text" | "output_text") => {
                part.require("text").map(Self::Text)
            }
            Some("refusal") => part.require("refusal").map(Self::Text),
            Some("thinking") => part.require("thinking").map(Self::Thinking),
            Some(_) => {
                let expected = r#""text", as the model reads nothing else"#;
                Err(Error::unexpected(part.path("type"), expected, &kind.into()))
            }
        }
    }
}

impl FromField for ToolCall {
    fn from_field(value: Value, path: &str) -> Result<Self> {
        let mut call = Fields::new(value, path)?;
        match call.take::<String>("type")? {
            None => {}
            Some(kind) if kind == "function" => {}
            found => {
                let found = found.into();
                return Err(Error::unexpected(call.path("type"), r#""function""#, &found));
            }
        }
        let id = call.take("id")?;
        let mut function = match call.take_value("function") {
            None => call,
            Some(function) => Fields::new(function, call.path("function"))?,
        };
        let name = function.require("name")?;
        let arguments = match function.take_value("arguments") {
            Some(object @ Value::Object(_)) if big_integer(&object).is_none() => object,
            None => Map::new().into(),
            Some(Value::String(text)) if text.is_empty() => Map::new().into(),
            Some(Value::String(text)) => match json_from_str(&text) {
                Ok(object @ Value::Object(_)) if big_integer(&object).is_none() => object,
                _ => text.into(),
            },
            Some(found) => {
                let expected = "an object or the text of one";
                return Err(Error::unexpected(function.path("arguments"), expected, &found));
            }
        };
        Ok(Self { id, function: FunctionCall { name, arguments } })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take_all(messages: Value) -> Result<Vec<ChatMessage>> {
        ChatMessage::take_all(&mut Fields::new(json!({"messages": messages}), "")?)
    }

    #[test]
    fn messages_become_what_templates_read() {
        let check = |json: Value, expected: Value| {
            let message: ChatMessage = serde_json::from_value(json).unwrap();
            assert_eq!(serde_json::to_value(message).unwrap(), expected);
        };
        let said = json!({"role": "user", "content": "Hi", "name": "Ada", "mood": ["calm"]});
        check(said.clone(), said);
        let silent = json!({"role": "assistant", "content": ""});
        check(json!({"role": "assistant"}), silent.clone());
        check(
            json!({"role": "assistant", "content": null, "tool_calls": null, "reasoning_content": null, "name": null}),
            silent.clone(),
        );
        check(json!({"role": "assistant", "content": []}), silent);
        check(
            json!({"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b\n"}]}),
            json!({"role": "system", "content": "a\nb\n"}),
        );
        let answer = json!({"role": "tool", "content": "12:00", "tool_call_id": "call_0"});
        check(answer.clone(), answer);
        let nothing = json!({"role": "tool", "content": ""});
        check(json!({"role": "tool", "content": null}), nothing.clone());
        check(json!({"role": "function"}), nothing);
    }

    #[test]
    fn every_way_to_write_a_text_is_read() {
        let check = |message: Value, expected: Value| {
            let found = take_all(json!([message])).unwrap().remove(0);
            assert_eq!(serde_json::to_value(found).unwrap(), expected);
        };
        for part in [
            json!("a"),
            json!({"text": "a"}),
            json!({"type": "text", "text": "a", "annotations": []}),
            json!({"type": "input_text", "text": "a"}),
            json!({"type": "output_text", "text": "a"}),
            json!({"type": "refusal", "refusal": "a"}),
        ] {
            let parts = json!({"role": "user", "content": ["b", part]});
            check(parts, json!({"role": "user", "content": "b\na"}));
        }
        let refused = json!({"role": "assistant", "content": "No."});
        check(json!({"role": "assistant", "content": null, "refusal": "No."}), refused.clone());
        check(json!({"role": "assistant", "content": "No.", "refusal": null}), refused);

        let thought = json!({"role": "assistant", "content": "a", "reasoning_content": "Hm."});
        check(json!({"role": "assistant", "content": "a", "reasoning": "Hm."}), thought.clone());
        let parts = json!([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "a"}]);
        check(json!({"role": "assistant", "content": parts}), thought.clone());
        let mut both = thought.clone();
        both["reasoning"] = "Oh.".into();
        check(both, thought);

        let function = json!({"name": "f", "arguments": {"x": 1}});
        let call = json!([{"type": "function", "function": function}]);
        let called = json!({"role": "assistant", "content": "", "tool_calls": call});
        let older = json!({"name": "f", "arguments": "{\"x\": 1}"});
        check(json!({"role": "assistant", "function_call": older}), called);
    }

    #[test]
    fn arguments_become_objects() {
        let check = |arguments: Value, expected: Value| {
            let function = json!({"name": "f", "arguments": arguments});
            for call in
                [function.clone(), json!({"type": "function", "function": function, "index": 0})]
            {
                let json = json!({"role": "assistant", "content": "a", "tool_calls": [call]});
                let message: ChatMessage = serde_json::from_value(json).unwrap();
                let function = FunctionCall { name: "f".to_owned(), arguments: expected.clone() };
                assert_eq!(message.tool_calls, [ToolCall { id: None, function }]);
            }
        };
        check(json!({"b": 1, "a": 2}), json!({"b": 1, "a": 2}));
        check(json!(" {\"x\": [1.50, null]}\n"), json!({"x": [1.5, null]}));
        check(json!(""), json!({}));
        check(json!(null), json!({}));
        for other in ["{\"x\":", "[1]", "null", "\"{}\"", &"{\"x\":".repeat(100_000)] {
            check(json!(other), json!(other));
        }
    }

    #[test]
    fn calls_are_shown_to_templates_as_in_the_api() {
        let call = json!({"type": "function", "id": "call_0", "function": {"name": "f", "arguments": {"x": 1}}});
        let json = json!({"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call]});
        let message: ChatMessage = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(message).unwrap(), json);
    }

    #[test]
    fn errors_name_the_field() {
        let check = |message: Value, expected: &str| {
            let request = json!([{"role": "user", "content": "Hi"}, message]);
            assert_eq!(take_all(request).unwrap_err().to_string(), expected);
        };
        check(json!(1), "field `messages[1]`: expected an object, found 1");
        check(
            json!({"role": "critic", "content": ""}),
            r#"field `messages[1].role`: expected system, developer, user, assistant or tool, found "critic""#,
        );
        check(json!({"content": ""}), "field `messages[1].role`: expected a string, found nothing");
        check(
            json!({"role": ["user"]}),
            "field `messages[1].role`: expected a string, found a list",
        );
        let content = "field `messages[1].content`: expected a string or a list of parts, found";
        for role in ["system", "developer", "user"] {
            check(json!({"role": role}), &format!("{content} nothing"));
        }
        check(json!({"role": "assistant", "content": {}}), &format!("{content} an object"));
        let part =
            |part: Value| json!({"role": "user", "content": [{"type": "text", "text": ""}, part]});
        check(part(json!(1)), "field `messages[1].content[1]`: expected an object, found 1");
        for kind in ["image_url", "input_image", "input_audio", "video_url", "file"] {
            let expected = format!(
                r#"field `messages[1].content[1].type`: expected "text", as the model reads nothing else, found "{kind}""#
            );
            check(part(json!({"type": kind})), &expected);
        }
        check(
            part(json!({"type": "text"})),
            "field `messages[1].content[1].text`: expected a string, found nothing",
        );
        let calls = |calls: Value| json!({"role": "assistant", "tool_calls": calls});
        check(calls(json!("f")), r#"field `messages[1].tool_calls`: expected a list, found "f""#);
        check(
            calls(json!([{"type": "custom"}])),
            r#"field `messages[1].tool_calls[0].type`: expected "function", found "custom""#,
        );
        check(
            calls(json!([{"function": true}])),
            "field `messages[1].tool_calls[0].function`: expected an object, found true",
        );
        check(
            calls(json!([{"function": {"name": 1}}])),
            "field `messages[1].tool_calls[0].function.name`: expected a string, found 1",
        );
        check(
            calls(json!([{"name": "f", "arguments": 1}])),
            "field `messages[1].tool_calls[0].arguments`: expected an object or the text of one, found 1",
        );
        check(
            json!({"role": "assistant", "name": "x".repeat(40), "reasoning_content": []}),
            "field `messages[1].reasoning_content`: expected a string, found an empty list",
        );
        check(
            json!({"role": "x".repeat(40)}),
            "field `messages[1].role`: expected system, developer, user, assistant or tool, found a longer string",
        );

        let whole = |request: Value| take_all(request).unwrap_err().to_string();
        let list = "field `messages`: expected a list of at least one message, found";
        assert_eq!(whole(json!([])), format!("{list} an empty list"));
        assert_eq!(whole(json!("Hi")), format!("{list} \"Hi\""));
        let error = serde_json::from_value::<ChatMessage>(json!([])).unwrap_err();
        assert_eq!(error.to_string(), "field `message`: expected an object, found an empty list");
    }
}
