//! What a text is held to: JSON of a schema, a regular expression, one of some texts, a grammar, calls of tools.
//!
//! A [`Grammar`] says it; a [`GrammarCompiler`] knows the tokens that texts are made of and makes a [`CompiledGrammar`] of
//! it; whose [`GrammarMatcher`]s follow texts token by token. Which of the tokens comes is others' choice.

mod compiler;
mod keywords;
mod limits;
mod matcher;
mod number;
mod placeholders;
mod references;
mod schema;
mod schema_checks;
mod vocabulary;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::reasoning::{Reasoning, THINK_END, THINK_START};
use crate::tool_call;
use placeholders::Placeholders;

pub use compiler::GrammarCompiler;
pub use matcher::{CompiledGrammar, GrammarMatcher, NextTokens};

/// What a text is held to.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON of this schema, which is an object.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// What this regular expression matches from beginning to end, in the syntax of the crate `regex`. It may begin with
    /// `^` and end with `$`; there are no other anchors, word boundaries or look-around.
    Regex(String),
    /// One of these texts, at least one.
    Choice(Vec<String>),
    /// What this grammar derives from its rule `start`, in llguidance's dialect of Lark.
    Lark(String),
    /// Calls of these functions, as [`ToolCalls`](crate::ToolCalls) reads them, and nothing else.
    ToolCalls {
        /// What may be called, at least one.
        functions: Vec<FunctionSchema>,
        /// Whether several calls may follow each other.
        is_parallel: bool,
    },
    /// What one of two says, which are different kinds and not this one.
    Either(Box<Grammar>, Box<Grammar>),
}

/// A function that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionSchema {
    /// Its name.
    pub name: String,
    /// The schema of its arguments, which is an object and has objects; without one there are none.
    pub parameters: Option<Value>,
}

/// A grammar as llguidance takes it, and what is put into it afterwards.
#[derive(Debug)]
struct Source {
    grammar: TopLevelGrammar,
    placeholders: Placeholders,
}

impl Grammar {
    /// The grammar as llguidance takes it, behind whatever reasoning there may be.
    fn source(&self, reasoning: Reasoning) -> Result<Source> {
        let mut placeholders = Placeholders::default();
        let mut answer = self.answer(&mut placeholders)?;
        let source = |grammars| {
            let grammar = TopLevelGrammar { grammars, max_tokens: None };
            Source { grammar, placeholders }
        };
        let think = match reasoning {
            Reasoning::Off => return Ok(source(answer)),
            Reasoning::Optional => "(OPEN think blank?)?",
            Reasoning::Opened => "think blank?",
        };
        answer[0].name = Some("answer".to_owned());
        let [open, close] = [THINK_START, THINK_END.trim_start_matches('<')];
        let main = format!(
            "start: {think} @answer\nOPEN: {open:?}\nthink[lazy]: /(?s:.*)<\\{close}/\nblank: /\\n{{1,2}}/\n"
        );
        answer.insert(0, GrammarWithLexer::from_lark(main));
        Ok(source(answer))
    }

    /// The grammars of the text alone, the one that it begins with first.
    fn answer(&self, placeholders: &mut Placeholders) -> Result<Vec<GrammarWithLexer>> {
        Ok(vec![match self {
            Self::JsonSchema(schema) => json_schema(schema, placeholders)?,
            Self::JsonObject => json_schema(&json!({"type": "object"}), placeholders)?,
            Self::Regex(pattern) => {
                limits::check_text(pattern)?;
                GrammarWithLexer::from_regex(&without_anchors(pattern))
            }
            Self::Choice(choices) => {
                limits::check_text(&choices.concat())?;
                if choices.is_empty() || choices.iter().any(String::is_empty) {
                    return Err(Error::grammar("expected texts of at least one character each"));
                }
                let choices: Vec<String> = choices.iter().map(|choice| quoted(choice)).collect();
                GrammarWithLexer::from_lark(format!("start: {}", choices.join(" | ")))
            }
            Self::Lark(grammar) => {
                limits::check_lark(grammar)?;
                GrammarWithLexer::from_lark(grammar.clone())
            }
            Self::ToolCalls { functions, is_parallel } => {
                return tool_calls(functions, *is_parallel, placeholders);
            }
            Self::Either(one, other) => {
                let (mut one, mut other) = (one.answer(placeholders)?, other.answer(placeholders)?);
                one[0].name = Some("one".to_owned());
                other[0].name = Some("other".to_owned());
                let main = GrammarWithLexer::from_lark("start: @one | @other".to_owned());
                return Ok(std::iter::once(main).chain(one).chain(other).collect());
            }
        }])
    }
}

fn json_schema(schema: &Value, placeholders: &mut Placeholders) -> Result<GrammarWithLexer> {
    limits::check_schema(schema)?;
    Ok(GrammarWithLexer::from_json_schema(schema::prepared(schema, placeholders)?))
}

fn tool_calls(
    functions: &[FunctionSchema],
    is_parallel: bool,
    placeholders: &mut Placeholders,
) -> Result<Vec<GrammarWithLexer>> {
    let mut grammars = Vec::with_capacity(functions.len() + 1);
    let calls: Vec<String> = (0..functions.len()).map(|index| format!("call_{index}")).collect();
    let more = if is_parallel { "(\"\\n\" call)*" } else { "" };
    let mut main = format!("start: call {more}\ncall: {}\n", calls.join(" | "));
    for (index, FunctionSchema { name, parameters }) in functions.iter().enumerate() {
        let (head, tail) = tool_call::around_arguments(name);
        let (head, tail) = (quoted(&head), quoted(&tail));
        writeln!(main, "call_{index}: {head} @arguments_{index} {tail}")
            .expect("a string takes any text");
        let mut grammar = arguments_schema(parameters.as_ref())
            .and_then(|schema| json_schema(&schema, placeholders))
            .map_err(|error| match error {
                Error::Grammar { reason } => {
                    Error::grammar(format!("the parameters of `{name}`: {reason}"))
                }
                other => other,
            })?;
        grammar.name = Some(format!("arguments_{index}"));
        grammars.push(grammar);
    }
    grammars.insert(0, GrammarWithLexer::from_lark(main));
    Ok(grammars)
}

/// The schema of an object, which `parameters` need not say.
fn arguments_schema(parameters: Option<&Value>) -> Result<Value> {
    let Some(parameters) = parameters else {
        return Ok(json!({"type": "object", "additionalProperties": false}));
    };
    let mut schema = parameters.clone();
    if let Value::Object(schema) = &mut schema {
        let kind = schema.entry("type").or_insert_with(|| "object".into());
        if *kind != "object" {
            return Err(Error::grammar(format!("expected the type \"object\", found {kind}")));
        }
    }
    Ok(schema)
}

/// A text as Lark writes it, which is as JSON does, but for U+007F.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// The whole text is matched in any case.
fn without_anchors(pattern: &str) -> String {
    let mut inner = pattern.strip_prefix('^').unwrap_or(pattern);
    if let Some(rest) = inner.strip_suffix('$') {
        let num_backslashes = rest.len() - rest.trim_end_matches('\\').len();
        inner = if num_backslashes % 2 == 0 { rest } else { inner };
    }
    format!("(?:{inner})")
}
