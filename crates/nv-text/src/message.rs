//! The messages of a conversation, as the OpenAI API has them and as chat templates read them.
//!
//! It knows nothing of how a conversation becomes text.

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

use crate::big_integer::{big_integer, json_from_str};
use crate::error::{Error, Result};

/// One turn of a conversation.
///
/// Fields bear the names that templates and the OpenAI API use. A request's message is deserialised into the form
/// that templates expect:
///
/// - `role` is one of `system`, `user`, `assistant` and `tool`; `developer` becomes `system`, as templates know no
///   other.
/// - `content` may be a list of parts, `{"type": "text", "text": …}`, which become lines of one text. An assistant's
///   may be null.
/// - a tool call's `arguments` may be an object or the text of one, and become an object, whose integers
///   [`json_from_str`] reads; text that holds none stays as it is. The call may come without the layer `function`.
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
}

impl TryFrom<Value> for ChatMessage {
    type Error = Error;

    fn try_from(value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => message(Fields { path: String::new(), map }),
            found => Err(unexpected("message", "an object", &found)),
        }
    }
}

/// Deserialises the field `messages` of a request, so that errors name the message as well as its field:
/// ``field `messages[2].role`: …``.
///
/// ```
/// #[derive(serde::Deserialize)]
/// struct Request {
///     #[serde(deserialize_with = "nv_text::deserialize_messages")]
///     messages: Vec<nv_text::ChatMessage>,
/// }
///
/// let request: Request = serde_json::from_str(r#"{"messages": [{"role": "user", "content": "Hi"}]}"#)?;
/// assert_eq!(request.messages, [nv_text::ChatMessage::new("user", "Hi")]);
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// # Errors
/// If a field of a message is missing or of the wrong type, or there is no message.
pub fn deserialize_messages<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<ChatMessage>, D::Error> {
    messages(Value::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn messages(value: Value) -> Result<Vec<ChatMessage>> {
    const FIELD: &str = "messages";
    match value {
        Value::Array(values) if !values.is_empty() => each(values, FIELD, message),
        found => Err(unexpected(FIELD, "a list of at least one message", &found)),
    }
}

fn message(mut fields: Fields) -> Result<ChatMessage> {
    let role = match fields.required_string("role")? {
        role if role == "developer" => "system".to_owned(),
        role if matches!(&*role, "system" | "user" | "assistant" | "tool") => role,
        role => {
            let expected = "system, developer, user, assistant or tool";
            return Err(unexpected(&fields.path("role"), expected, &role.into()));
        }
    };
    let content = match fields.take("content") {
        Value::Null if role == "assistant" => String::new(),
        Value::String(text) => text,
        Value::Array(parts) => each(parts, &fields.path("content"), text_of_part)?.join("\n"),
        found => {
            return Err(unexpected(&fields.path("content"), "a string or a list of parts", &found));
        }
    };
    let tool_calls = match fields.take("tool_calls") {
        Value::Null => Vec::new(),
        Value::Array(calls) => each(calls, &fields.path("tool_calls"), tool_call)?,
        found => return Err(unexpected(&fields.path("tool_calls"), "a list", &found)),
    };
    Ok(ChatMessage {
        role,
        content,
        reasoning_content: fields.string("reasoning_content")?,
        tool_calls,
        tool_call_id: fields.string("tool_call_id")?,
        name: fields.string("name")?,
        extra: fields.map,
    })
}

fn text_of_part(mut part: Fields) -> Result<String> {
    match part.take("type") {
        Value::String(kind) if kind == "text" => part.required_string("text"),
        found => Err(unexpected(&part.path("type"), r#""text""#, &found)),
    }
}

fn tool_call(mut call: Fields) -> Result<ToolCall> {
    match call.take("type") {
        Value::Null => {}
        Value::String(kind) if kind == "function" => {}
        found => return Err(unexpected(&call.path("type"), r#""function""#, &found)),
    }
    let id = call.string("id")?;
    let mut function = match call.take("function") {
        Value::Null => call,
        function => {
            let path = call.path("function");
            Fields::new(function, path)?
        }
    };
    let name = function.required_string("name")?;
    let arguments = match function.take("arguments") {
        object @ Value::Object(_) => object,
        Value::String(text) if text.is_empty() => Map::new().into(),
        Value::String(text) => match json_from_str(&text) {
            Ok(object @ Value::Object(_)) if big_integer(&object).is_none() => object,
            _ => text.into(),
        },
        found => {
            let expected = "an object or the text of one";
            return Err(unexpected(&function.path("arguments"), expected, &found));
        }
    };
    Ok(ToolCall { id, function: FunctionCall { name, arguments } })
}

/// The fields of an object that were not taken yet.
struct Fields {
    /// Where the object is.
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    fn new(value: Value, path: String) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            found => Err(unexpected(&path, "an object", &found)),
        }
    }

    fn path(&self, name: &str) -> String {
        match &*self.path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// Null if it isn't there.
    fn take(&mut self, name: &str) -> Value {
        self.map.shift_remove(name).unwrap_or_default()
    }

    fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            Value::Null => Ok(None),
            Value::String(string) => Ok(Some(string)),
            found => Err(unexpected(&self.path(name), "a string", &found)),
        }
    }

    fn required_string(&mut self, name: &str) -> Result<String> {
        let string = self.string(name)?;
        string.ok_or_else(|| unexpected(&self.path(name), "a string", &Value::Null))
    }
}

/// Reads the objects of a list.
fn each<T>(values: Vec<Value>, path: &str, read: impl Fn(Fields) -> Result<T>) -> Result<Vec<T>> {
    let fields = |(index, value)| Fields::new(value, format!("{path}[{index}]"));
    values.into_iter().enumerate().map(|item| read(fields(item)?)).collect()
}

/// What is found is told without repeating long texts, which may be private.
fn unexpected(field: &str, expected: &'static str, found: &Value) -> Error {
    const LONGEST: usize = 32;
    let found = match found {
        _ if big_integer(found).is_some() => "an integer beyond 64 bits".to_owned(),
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) | Value::Number(_) => found.to_string(),
        Value::String(text) if text.len() <= LONGEST => found.to_string(),
        Value::String(_) => "a longer string".to_owned(),
        Value::Array(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    Error::Field { field: field.to_owned(), expected, found }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
            assert_eq!(deserialize_messages(request).unwrap_err().to_string(), expected);
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
        for role in ["system", "developer", "user", "tool"] {
            check(json!({"role": role}), &format!("{content} nothing"));
        }
        check(json!({"role": "assistant", "content": {}}), &format!("{content} an object"));
        let part =
            |part: Value| json!({"role": "user", "content": [{"type": "text", "text": ""}, part]});
        check(part(json!("a")), r#"field `messages[1].content[1]`: expected an object, found "a""#);
        check(
            part(json!({"type": "image_url", "image_url": {}})),
            r#"field `messages[1].content[1].type`: expected "text", found "image_url""#,
        );
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
            calls(json!([{"name": "f"}])),
            "field `messages[1].tool_calls[0].arguments`: expected an object or the text of one, found nothing",
        );
        check(
            json!({"role": "assistant", "name": "x".repeat(40), "reasoning_content": []}),
            "field `messages[1].reasoning_content`: expected a string, found an empty list",
        );
        check(
            json!({"role": "x".repeat(40)}),
            "field `messages[1].role`: expected system, developer, user, assistant or tool, found a longer string",
        );

        let whole = |request: Value| deserialize_messages(request).unwrap_err().to_string();
        let list = "field `messages`: expected a list of at least one message, found";
        assert_eq!(whole(json!([])), format!("{list} an empty list"));
        assert_eq!(whole(json!("Hi")), format!("{list} \"Hi\""));
        let error = serde_json::from_value::<ChatMessage>(json!([])).unwrap_err();
        assert_eq!(error.to_string(), "field `message`: expected an object, found an empty list");
    }
}
