//! What an answer is held to: the fields that say it, and the grammar that the engine asks token by token.

use std::sync::Arc;

use nv_engine::{Constraint, ConstraintState, TokenId, TokenMask};
use nv_text::{
    CompiledGrammar, Fields, Grammar, GrammarCompiler, GrammarMatcher, Reasoning, json_from_str,
};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::fields::{asks, kind};
use crate::server::Server;

/// What an answer is held to, and the field that asks for it.
#[derive(Debug)]
pub(crate) struct Guide {
    pub(crate) field: String,
    pub(crate) grammar: Grammar,
    /// The fields of the parameters of functions that the grammar has calls of, in its order.
    pub(crate) parameters: Vec<String>,
}

impl Guide {
    fn new(field: impl Into<String>, grammar: Grammar) -> Self {
        Self { field: field.into(), grammar, parameters: Vec::new() }
    }

    /// Takes the fields of the OpenAI API and of vLLM's that hold an answer to a form, of which one may be used.
    pub(crate) fn take(fields: &mut Fields) -> Result<Option<Self>> {
        let mut guides = Vec::new();
        guides.extend(response_format(fields)?);
        let mut add = |field: &str, grammar: Option<Grammar>| {
            guides.extend(grammar.map(|grammar| Self::new(field, grammar)));
        };
        let json = fields.take_value("guided_json");
        add("guided_json", json.map(|schema| json_schema("guided_json", schema)).transpose()?);
        add("guided_regex", fields.take("guided_regex")?.map(Grammar::Regex));
        add("guided_choice", fields.take("guided_choice")?.map(Grammar::Choice));
        add("guided_grammar", fields.take("guided_grammar")?.map(Grammar::Lark));
        if let Some(outputs) = fields.take_value("structured_outputs") {
            guides.extend(structured_outputs(outputs)?);
        }
        let guide = guides.pop();
        if let (Some(other), Some(guide)) = (guides.pop(), &guide) {
            let reason =
                format!("expected only one form of the answer, found `{}`, too", other.field);
            return Err(Error::field(&guide.field, reason));
        }
        Ok(guide)
    }

    /// The constraint of answers that have not begun. Takes a while.
    pub(crate) fn compile(
        &self,
        reasoning: Reasoning,
        server: &Server,
    ) -> Result<Arc<dyn Constraint>> {
        // A model that has no token for it, or that nobody has taught to answer, reasons only if its prompt says so.
        let has_token = server.tokenizer().token_to_id("<think>").is_some();
        let reasons = has_token && server.has_chat_template();
        let reasoning = match reasoning {
            Reasoning::Optional if !reasons => Reasoning::Off,
            reasoning => reasoning,
        };
        let compiler = server.grammar_compiler()?;
        match compiler.compile(&self.grammar, reasoning) {
            Ok(grammar) => Ok(Arc::new(Held(grammar))),
            Err(nv_text::Error::Grammar { reason }) => {
                let (field, reason) =
                    self.bad_parameters(&compiler).unwrap_or_else(|| (self.field.clone(), reason));
                Err(Error::field(field, reason))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Of a grammar that can't be compiled: the first function whose parameters alone can't be, and why.
    fn bad_parameters(&self, compiler: &GrammarCompiler) -> Option<(String, String)> {
        let calls = match &self.grammar {
            Grammar::Either(calls, _) => calls,
            calls => calls,
        };
        let Grammar::ToolCalls { functions, .. } = calls else { return None };
        let mut functions = self.parameters.iter().zip(functions);
        functions.find_map(|(field, function)| {
            let functions = vec![function.clone()];
            let call = Grammar::ToolCalls { functions, is_parallel: false };
            match compiler.compile(&call, Reasoning::Off) {
                Err(nv_text::Error::Grammar { reason }) => Some((field.clone(), reason)),
                _ => None,
            }
        })
    }
}

/// vLLM's object for all forms, of which it has at least one.
fn structured_outputs(outputs: Value) -> Result<Vec<Guide>> {
    const FIELD: &str = "structured_outputs";
    const EXPECTED: &str = "expected `json`, `regex`, `choice`, `grammar` or `json_object`";
    let mut fields = Fields::new(outputs, FIELD)?;
    let path = |name: &str| format!("{FIELD}.{name}");
    let json = fields.take_value("json").map(|schema| json_schema(&path("json"), schema));
    let json_object = fields.take("json_object")?.unwrap_or(false);
    let grammars = [
        ("json", json.transpose()?),
        ("regex", fields.take("regex")?.map(Grammar::Regex)),
        ("choice", fields.take("choice")?.map(Grammar::Choice)),
        ("grammar", fields.take("grammar")?.map(Grammar::Lark)),
        ("json_object", json_object.then_some(Grammar::JsonObject)),
    ];
    let mut others = fields.into_rest().into_iter();
    if let Some((name, _)) = others.find(|(_, value)| asks(value)) {
        return Err(Error::field(path(&name), format!("unknown: {EXPECTED}")));
    }
    let guides = grammars.into_iter().filter_map(|(name, grammar)| Some((name, grammar?)));
    let guides: Vec<_> = guides.map(|(name, grammar)| Guide::new(path(name), grammar)).collect();
    if guides.is_empty() {
        return Err(Error::field(FIELD, EXPECTED));
    }
    Ok(guides)
}

fn response_format(fields: &mut Fields) -> Result<Option<Guide>> {
    const FIELD: &str = "response_format";
    const SCHEMA: &str = "response_format.json_schema";
    let mut format = match fields.take_value(FIELD) {
        None => return Ok(None),
        Some(Value::Object(format)) => format,
        Some(other) => {
            let reason = format!("expected an object, found {}", kind(&other));
            return Err(Error::field(FIELD, reason));
        }
    };
    let guide = |field: &str, grammar| Ok(Some(Guide::new(field, grammar)));
    let schema_beside_type = |schema| -> Result<Option<Guide>> {
        let field = "response_format.schema";
        guide(field, json_schema(field, schema)?)
    };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        // The schema stands beside the type in the APIs of llama.cpp and Together.
        Some("json_object") => match format.remove("schema").filter(|schema| !schema.is_null()) {
            Some(schema) if schema != json!({}) => schema_beside_type(schema),
            _ => guide(FIELD, Grammar::JsonObject),
        },
        Some("json_schema") => match (format.remove("json_schema"), format.remove("schema")) {
            (Some(Value::Object(mut described)), None | Some(Value::Null)) => {
                let field = format!("{SCHEMA}.schema");
                match described.remove("schema").filter(|schema| !schema.is_null()) {
                    Some(schema) => guide(&field, Grammar::JsonSchema(schema)),
                    None => Err(Error::field(field, "expected a JSON schema, found nothing")),
                }
            }
            (None | Some(Value::Null), Some(schema)) if !schema.is_null() => {
                schema_beside_type(schema)
            }
            (Some(Value::Object(_)), Some(_)) => {
                let reason = format!("expected one schema, found `{SCHEMA}`, too");
                Err(Error::field("response_format.schema", reason))
            }
            _ => Err(Error::field(SCHEMA, "expected an object")),
        },
        Some("structural_tag") => {
            let reason = "use `structured_outputs.grammar`";
            Err(Error::Unsupported { field: FIELD, reason })
        }
        _ => {
            let reason = "expected text, json_object or json_schema";
            Err(Error::field("response_format.type", reason))
        }
    }
}

/// A schema, as vLLM takes it: JSON, or a string of it.
fn json_schema(field: &str, schema: Value) -> Result<Grammar> {
    let schema = match schema {
        Value::String(text) => json_from_str(&text)
            .map_err(|error| Error::field(field, format!("expected a JSON schema: {error}")))?,
        schema => schema,
    };
    Ok(Grammar::JsonSchema(schema))
}

/// A grammar as the engine takes it.
#[derive(Debug)]
struct Held(CompiledGrammar);

struct HeldText(GrammarMatcher);

impl Constraint for Held {
    fn begin(&self) -> Box<dyn ConstraintState> {
        Box::new(HeldText(self.0.matcher()))
    }
}

impl ConstraintState for HeldText {
    fn next_tokens(&mut self) -> Result<TokenMask, String> {
        let next = self.0.next_tokens().map_err(|error| error.to_string())?;
        Ok(TokenMask::new(next.allowed, next.may_end))
    }

    fn push(&mut self, token_id: TokenId) -> Result<bool, String> {
        self.0.push(token_id).map_err(|error| error.to_string())
    }
}
