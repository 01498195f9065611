//! Conversations as the one text that a model was trained to continue.
//!
//! A checkpoint brings a Jinja template for this; it is rendered here as transformers renders it. It knows
//! nothing of tokens.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::big_integer::for_template;
use crate::error::{Error, Result};
use crate::json::tojson;
use crate::message::ChatMessage;
use crate::tokenizer_config::{TokenizerConfig, read_if_there};

/// The template that is used unless another is called for.
const DEFAULT: &str = "default";

/// The template that is used for conversations with tools, if a checkpoint has one of this name.
const TOOL_USE: &str = "tool_use";

/// The folder of templates that have a name.
const ADDITIONAL: &str = "additional_chat_templates";

/// What a render may spend, in instructions of the template engine and pieces of 64 bytes: enough for ten thousand
/// messages, and an end to a template that never stops.
const FUEL: u64 = 10_000_000;

/// What a render is given besides the messages. The default is that of transformers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatOptions {
    /// Whether to open an assistant's turn at the end, for the model to go on with.
    pub add_generation_prompt: bool,
    /// Whether the model may think before it speaks; `None` leaves it to the template (Qwen3 then thinks).
    pub enable_thinking: Option<bool>,
    /// Descriptions of the functions that the model may call, as JSON schemas.
    pub tools: Vec<Value>,
    /// Other variables for the template.
    pub template_kwargs: Map<String, Value>,
}

/// A checkpoint's chat template.
///
/// They are rendered for the model to go on with: what marks an assistant's words for training, `{% generation %}`, makes no
/// difference. There is no `strftime_now`, which some templates ask for today's date if it is defined.
///
/// Templates come with checkpoints and are not trusted: they see nothing but what they are given, and a render
/// that takes too long is ended. The template engine does not count everything, though: a template that is written to
/// harm can nest values deeper than the stack, or compare or print one that holds itself twice at each of many levels.
///
/// ```
/// use nv_text::{ChatMessage, ChatOptions, ChatTemplate};
///
/// let template = ChatTemplate::new(
///     "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}",
/// )?;
/// let text = template.render(&[ChatMessage::new("user", "Hello!")], &ChatOptions::default())?;
/// assert_eq!(text, "<|im_start|>user\nHello!<|im_end|>\n");
/// # Ok::<(), nv_text::Error>(())
/// ```
#[derive(Clone)]
pub struct ChatTemplate {
    /// With a template called [`DEFAULT`], and perhaps one called [`TOOL_USE`].
    environment: Environment<'static>,
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// A template from its source.
    ///
    /// # Errors
    /// [`Error::Compile`] if it isn't valid Jinja.
    pub fn new(source: &str) -> Result<Self> {
        let mut template = Self::empty();
        template.add(DEFAULT, source)?;
        Ok(template)
    }

    /// The template of the model in the folder `dir`; `None` if its files hold none.
    ///
    /// `tool_use` serves conversations with tools and `default` all others. `chat_template.jinja` is the default, and
    /// `additional_chat_templates` has others in files of their names; the field `chat_template` of `tokenizer_config.json`,
    /// which is a template or has several by their names, counts where no file says what the default is. Special
    /// tokens are variables in all of them, such as `eos_token`.
    ///
    /// # Errors
    /// [`Error::Read`] if a file can't be read; [`Error::File`] around [`Error::Json`],
    /// [`Error::Field`] or [`Error::Compile`] if its content is not usable.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let dir = dir.as_ref();
        let config = TokenizerConfig::from_dir(dir)?;
        let mut template = Self::empty();
        let additional = |name| dir.join(ADDITIONAL).join(format!("{name}.jinja"));
        let files = [
            (DEFAULT, dir.join("chat_template.jinja")),
            (DEFAULT, additional(DEFAULT)),
            (TOOL_USE, additional(TOOL_USE)),
        ];
        for (name, path) in files {
            if let Some(source) = read_if_there(&path)? {
                template.add(name, &source).map_err(|error| error.in_file(path))?;
            }
        }
        if !template.has(DEFAULT) {
            let field = config.field("chat_template");
            template.add_field(field).map_err(|error| error.in_file(config.path()))?;
        }
        if !template.has(DEFAULT) {
            return Ok(None);
        }
        let token = |(name, content): (&str, &str)| (name.to_owned(), content.into());
        template.special_tokens = config.special_tokens().map(token).collect();
        Ok(Some(template))
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::Refused`] if the template raises an exception of its own; [`Error::Render`] if it fails, as many do
    /// on roles and contents that they don't expect.
    pub fn render(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<String> {
        let with_tools = !options.tools.is_empty();
        let context = Context {
            special_tokens: &self.special_tokens,
            template_kwargs: &options.template_kwargs,
            messages,
            tools: with_tools.then_some(&options.tools),
            documents: None,
            add_generation_prompt: options.add_generation_prompt,
            enable_thinking: options.enable_thinking,
        };
        let variables = for_template(Serde(context).into());
        let template = match self.environment.get_template(TOOL_USE) {
            Ok(template) if with_tools => Ok(template),
            _ => self.environment.get_template(DEFAULT),
        };
        template.and_then(|template| caught(|| template.render(variables))).map_err(render_error)
    }

    fn empty() -> Self {
        Self { environment: environment(), special_tokens: Map::new() }
    }

    fn has(&self, name: &str) -> bool {
        self.environment.get_template(name).is_ok()
    }

    /// Adds the templates of a field `chat_template`, but for those that there are.
    fn add_field(&mut self, field: Option<&Value>) -> Result<()> {
        let named: Option<BTreeMap<&str, &str>> = match field {
            None => return Ok(()),
            Some(Value::String(source)) => Some([(DEFAULT, source.as_str())].into()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| Some((item["name"].as_str()?, item["template"].as_str()?)))
                .collect(),
            Some(Value::Object(templates)) => templates
                .iter()
                .map(|(name, template)| Some((name.as_str(), template.as_str()?)))
                .collect(),
            Some(_) => None,
        };
        let unexpected = |expected, found| {
            let field = "chat_template".to_owned();
            Error::Field { field, expected, found }
        };
        let named = named.ok_or_else(|| {
            let expected = r#"a template or a list of {"name", "template"}"#;
            unexpected(expected, field.map(Value::to_string).unwrap_or_default())
        })?;
        if !named.contains_key(DEFAULT) {
            let names: Vec<_> = named.into_keys().collect();
            return Err(unexpected(r#"one called "default""#, format!("{names:?}")));
        }
        for name in [DEFAULT, TOOL_USE] {
            if let (false, Some(source)) = (self.has(name), named.get(name)) {
                self.add(name, source)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &'static str, source: &str) -> Result<()> {
        // As Python's Jinja does.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let source = without_generation_blocks(&source);
        caught(|| self.environment.add_template_owned(name, source))
            .map_err(|source| Error::Compile { source })
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("special_tokens", &self.special_tokens)
            .finish_non_exhaustive()
    }
}

/// The variables of a template; of two with one name the later counts.
#[derive(Serialize)]
struct Context<'a> {
    #[serde(flatten)]
    special_tokens: &'a Map<String, Value>,
    #[serde(flatten)]
    template_kwargs: &'a Map<String, Value>,
    messages: &'a [ChatMessage],
    tools: Option<&'a Vec<Value>>,
    documents: Option<()>,
    add_generation_prompt: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    enable_thinking: Option<bool>,
}

/// Jinja as transformers sets it up.
///
/// Source: transformers `chat_template_utils.py`, `_cached_compile_jinja_template`.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment
}

/// Makes of blocks `{% generation %}` such that are always rendered. By them transformers finds, for training, what the
/// assistant says.
///
/// Source: transformers `chat_template_utils.py`, `AssistantTracker`.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, after) = rest.split_at(start + "{%".len());
        out.push_str(before);
        rest = after;
        let Some((tag, _)) = rest.split_once("%}") else { break };
        // The signs that say what becomes of whitespace stay.
        let name = tag.strip_prefix(['-', '+']).unwrap_or(tag);
        let name = name.strip_suffix(['-', '+']).unwrap_or(name).trim();
        let always = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&tag.replace(name, always));
        rest = &rest[tag.len()..];
    }
    out + rest
}

/// Runs the template engine, which panics on some numbers that no template has in earnest, such as the least step of a slice.
///
/// What it leaves behind is not used again: a render changes no template, and one that does not compile goes with its error.
fn caught<T>(run: impl FnOnce() -> Result<T, minijinja::Error>) -> Result<T, minijinja::Error> {
    panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "the template engine panicked"))
    })
}

/// What a template said when it raised an exception.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<minijinja::Value, minijinja::Error> {
    let error =
        minijinja::Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
    Err(error.with_source(Raised(message)))
}

fn render_error(error: minijinja::Error) -> Error {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Error::Refused { message: message.clone() };
        }
        source = cause.source();
    }
    Error::Render { source: error }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    fn fixture(name: &str) -> String {
        let path = format!("{}/tests/chat_template/{name}", env!("CARGO_MANIFEST_DIR"));
        fs::read_to_string(path).unwrap()
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        messages: Vec<ChatMessage>,
        options: CaseOptions,
        expected: String,
    }

    #[derive(Deserialize)]
    struct CaseOptions {
        #[serde(default)]
        add_generation_prompt: bool,
        enable_thinking: Option<bool>,
        #[serde(default)]
        tools: Vec<Value>,
        #[serde(default)]
        template_kwargs: Map<String, Value>,
    }

    #[derive(Deserialize)]
    struct Construct {
        template: String,
        expected: String,
    }

    #[derive(Deserialize)]
    struct Fixture {
        cases: Vec<Case>,
        construct_messages: Vec<ChatMessage>,
        constructs: Vec<Construct>,
    }

    #[test]
    fn integers_of_tools_and_arguments_keep_their_digits() {
        let id = "123456789012345678901234567890";
        let more = "9".repeat(50);
        let request = format!(
            r#"{{"messages": [{{"role": "assistant", "at": {id}, "tool_calls": [{{"function": {{"name": "f",
                "arguments": "{{\"a\": {id}, \"b\": [-{more}, 18446744073709551616], \"c\": 1e30, \"d\": -0}}"}}}}]}}],
                "tools": [{{"type": "function", "function": {{"parameters": {{"enum": [{id}, 1], "maximum": {more}}}}}}}]}}"#
        );
        let request = crate::json_from_str(&request).unwrap();
        let messages: Vec<ChatMessage> = Vec::deserialize(request["messages"].clone()).unwrap();
        let options = ChatOptions {
            tools: request["tools"].as_array().unwrap().clone(),
            ..ChatOptions::default()
        };
        let template = ChatTemplate::new(
            "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}\
             {% for message in messages %}{{ message.at }} {{ message.at + 1 }}\n\
             {% for call in message.tool_calls %}{{ call.function.arguments | tojson }}\n\
             {% for name in ['a', 'b', 'd'] %}{{ name }}={{ call.function.arguments[name] }} {% endfor %}\
             {% endfor %}{% endfor %}",
        );
        let text = template.unwrap().render(&messages, &options).unwrap();
        // What Python writes.
        let expected = format!(
            "{{\"type\": \"function\", \"function\": {{\"parameters\": {{\"enum\": [{id}, 1], \"maximum\": {more}}}}}}}\n\
             {id} 123456789012345678901234567891\n\
             {{\"a\": {id}, \"b\": [-{more}, 18446744073709551616], \"c\": 1e+30, \"d\": 0}}\n\
             a={id} b=[-{more}, 18446744073709551616] d=0 "
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn qwen3_conversations_render_as_in_transformers() {
        let template = ChatTemplate::new(&fixture("qwen3.jinja")).unwrap();
        let Fixture { cases, .. } = serde_json::from_str(&fixture("cases.json")).unwrap();
        assert!(!cases.is_empty());
        for Case { name, messages, options, expected } in cases {
            let options = ChatOptions {
                add_generation_prompt: options.add_generation_prompt,
                enable_thinking: options.enable_thinking,
                tools: options.tools,
                template_kwargs: options.template_kwargs,
            };
            assert_eq!(template.render(&messages, &options).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn other_templates_render_as_in_transformers() {
        let Fixture { construct_messages, constructs, .. } =
            serde_json::from_str(&fixture("cases.json")).unwrap();
        assert!(!constructs.is_empty());
        let options = ChatOptions {
            template_kwargs: [("mood".to_owned(), "calm".into())].into_iter().collect(),
            ..ChatOptions::default()
        };
        for Construct { template, expected } in constructs {
            let text = ChatTemplate::new(&template).unwrap().render(&construct_messages, &options);
            assert_eq!(text.unwrap(), expected, "{template}");
        }
    }

    /// Renders `source` on one message of a user.
    fn render(source: &str, options: &ChatOptions) -> Result<String> {
        ChatTemplate::new(source)?.render(&[ChatMessage::new("user", "Hi")], options)
    }

    #[test]
    fn templates_see_what_transformers_shows_them() {
        let options = ChatOptions {
            template_kwargs: [("mood".to_owned(), "calm".into()), ("tools".to_owned(), 1.into())]
                .into_iter()
                .collect(),
            ..ChatOptions::default()
        };
        let check = |source, expected: &str| {
            assert_eq!(render(source, &options).unwrap(), expected, "{source}");
        };
        check("{{ mood }}", "calm");
        check("{{ tools }} {{ documents }} {{ add_generation_prompt }}", "None None False");
        check("{{ enable_thinking is defined }}{{ nothing }}", "False");
        check("{{ messages[0].tool_calls is defined }}", "False");
        check("{{ messages | tojson }}", r#"[{"role": "user", "content": "Hi"}]"#);
        // Blocks take their line with them, and one newline at the end of the source is dropped.
        check("a\n  {% if true %}\nb\n  {% endif %}\nc\n\n", "a\nb\nc\n");
        check("a\r\nb\rc", "a\nb\nc");
        check(
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "1",
        );
        check("{% for i in [1, 2] %}{{ loop.nextitem }}{% endfor %}", "2");
    }

    #[test]
    fn failures_are_told_apart() {
        let check = |source, expected: &str, cause: &str| {
            let error = render(source, &ChatOptions::default()).unwrap_err();
            assert_eq!(error.to_string(), expected);
            let found = error.source().map(ToString::to_string).unwrap_or_default();
            assert_eq!(found, cause);
        };
        let refused = "the chat template refuses the conversation: roles must alternate";
        check("{{ raise_exception('roles must alternate') }}", refused, "");
        check(
            "{% macro m() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ m() }}",
            refused,
            "",
        );
        check(
            "\n{% if %}",
            "the chat template does not compile",
            "syntax error: unexpected end of block (in default:2)",
        );
        let fails = "the chat template fails on the conversation";
        check(
            "{{ nothing.at.all }}",
            fails,
            "undefined value: `nothing` is undefined (in default:1)",
        );
        check(
            "{{ nothing | tojson }}",
            fails,
            "invalid operation: tojson: the value is undefined (in default:1)",
        );
        check(
            "{% for i in range(90000) %}{% for i in range(90000) %}x{% endfor %}{% endfor %}",
            fails,
            "engine ran out of fuel (in default:1)",
        );
        check(
            "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            fails,
            "engine ran out of fuel (in default:1)",
        );
        check(
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            fails,
            "invalid operation: recursion limit exceeded (in default:1)",
        );
    }

    #[test]
    fn files_are_found_out_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let check = |files: &[(&str, &str)], expected: Option<&str>, with_tools: Option<&str>| {
            fs::create_dir(dir.path().join(ADDITIONAL)).unwrap();
            for (name, content) in files {
                fs::write(dir.path().join(name), content).unwrap();
            }
            let template = ChatTemplate::from_dir(&dir).unwrap();
            let check = |tools: &[Value], expected: Option<&str>| {
                let options = ChatOptions { tools: tools.to_vec(), ..ChatOptions::default() };
                let template = template.as_ref();
                let text = template.map(|template| template.render(&[], &options).unwrap());
                assert_eq!(text.as_deref(), expected, "{files:?}");
            };
            check(&[], expected);
            check(&[json!({})], with_tools);
            for (name, _) in files {
                fs::remove_file(dir.path().join(name)).unwrap();
            }
            fs::remove_dir(dir.path().join(ADDITIONAL)).unwrap();
        };
        let config = "tokenizer_config.json";
        let jinja = ("chat_template.jinja", "jinja");
        let default = ("additional_chat_templates/default.jinja", "default");
        let tool_use = ("additional_chat_templates/tool_use.jinja", "with {{ tools | length }}");
        let rag = ("additional_chat_templates/rag.jinja", "{{ broken");
        let field = (config, r#"{"chat_template": "field"}"#);
        let list = r#"{"chat_template": [{"name": "tool_use", "template": "listed"},
            {"name": "default", "template": "first"}, {"name": "default", "template": "last"}]}"#;
        let object = r#"{"chat_template": {"tool_use": "listed", "default": "last", "rag": "{{"}}"#;

        check(&[], None, None);
        check(&[(config, "{}")], None, None);
        check(&[(config, r#"{"chat_template": null}"#)], None, None);
        check(&[tool_use, rag], None, None);
        check(&[field], Some("field"), Some("field"));
        check(&[field, jinja, rag], Some("jinja"), Some("jinja"));
        check(&[jinja, tool_use], Some("jinja"), Some("with 1"));
        check(&[jinja, default], Some("default"), Some("default"));
        check(&[(config, list)], Some("last"), Some("listed"));
        check(&[(config, object)], Some("last"), Some("listed"));
        // Of a file and the list, the file counts; where it is the default, the list counts for nothing.
        check(&[(config, list), tool_use], Some("last"), Some("with 1"));
        check(&[(config, list), jinja], Some("jinja"), Some("jinja"));
        check(&[field, tool_use], Some("field"), Some("with 1"));
    }

    #[test]
    fn special_tokens_are_variables() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name, content: Value| {
            fs::write(dir.path().join(name), content.to_string()).unwrap();
        };
        let source = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ image_token }}";
        fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
        let check = |expected: &str| {
            let template = ChatTemplate::from_dir(&dir).unwrap().unwrap();
            assert_eq!(template.render(&[], &ChatOptions::default()).unwrap(), expected);
        };
        check("<|endoftext|><|endoftext|>");
        write(
            "tokenizer_config.json",
            json!({"eos_token": "<e>", "pad_token": {"content": "<p>"}, "bos_token": null, "image_token": "<i>"}),
        );
        check("<e><p><i>");
        write("special_tokens_map.json", json!({"eos_token": "<E>", "bos_token": "<b>"}));
        check("<b><E><p><i>");
    }

    #[test]
    fn a_panic_of_the_template_engine_is_an_error() {
        let panic = super::caught::<()>(|| panic!("in a template")).unwrap_err();
        assert_eq!(panic.detail(), Some("the template engine panicked"));
        // One that it has where overflows are checked; elsewhere this is a text.
        let template = ChatTemplate::new("{{ 'abc'[::-9223372036854775808] }}").unwrap();
        let text = template.render(&[], &ChatOptions::default());
        assert!(text.is_ok() || matches!(text, Err(Error::Render { .. })), "{text:?}");
    }

    #[test]
    fn unusable_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, content: &str, cause: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            let error = ChatTemplate::from_dir(&dir).unwrap_err();
            assert_eq!(error.to_string(), format!("cannot use {}", path.display()));
            assert_eq!(error.source().unwrap().to_string(), cause);
            fs::remove_file(path).unwrap();
        };
        let config = "tokenizer_config.json";
        check(config, "[]", "not a JSON object; download it again if it came from a hub");
        let field = r#"field `chat_template`: expected a template or a list of {"name", "template"}, found"#;
        check(config, r#"{"chat_template": 7}"#, &format!("{field} 7"));
        check(
            config,
            r#"{"chat_template": [{"name": "x"}]}"#,
            &format!("{field} [{{\"name\":\"x\"}}]"),
        );
        check(
            config,
            r#"{"chat_template": {"default": null}}"#,
            &format!("{field} {{\"default\":null}}"),
        );
        check(
            config,
            r#"{"chat_template": [{"name": "rag", "template": ""}]}"#,
            r#"field `chat_template`: expected one called "default", found ["rag"]"#,
        );
        let broken = "the chat template does not compile";
        check(config, r#"{"chat_template": "{{"}"#, broken);
        check("chat_template.jinja", "{{", broken);
        fs::create_dir(dir.path().join(ADDITIONAL)).unwrap();
        check("additional_chat_templates/tool_use.jinja", "{{", broken);

        let folder = dir.path().join("chat_template.jinja");
        fs::create_dir(&folder).unwrap();
        let error = ChatTemplate::from_dir(&dir).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {}", folder.display()));
    }
}
