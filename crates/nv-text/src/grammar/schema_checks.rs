//! What a schema as it is written for llguidance may not be.

use std::collections::{HashMap, HashSet};

use llguidance::derivre::{JsonQuoteOptions, RegexAst, RegexBuilder};
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

use super::keywords::is_same;
use crate::error::{Error, Result};

/// All but that by a number: so that a key, or any text, is written in one way only.
pub(super) const ESCAPES: &str = "nrbtf\\\"";

/// Keywords that apply other schemas to the same value.
pub(super) const APPLICATORS: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];

/// The schemas that a written one is made of.
fn parts(schema: &Value) -> Vec<&Value> {
    let mut parts = Vec::new();
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        match (&**keyword, value) {
            ("properties" | "patternProperties", Value::Object(schemas)) => {
                parts.extend(schemas.values());
            }
            ("allOf" | "anyOf" | "oneOf" | "items" | "prefixItems", Value::Array(schemas)) => {
                parts.extend(schemas);
            }
            ("items" | "additionalItems" | "additionalProperties", schema) => parts.push(schema),
            _ => {}
        }
    }
    parts
}

/// Whether no two of these schemas of objects fit one value, as each requires another value of some property.
pub(super) fn exclude_each_other(schemas: &[Value]) -> bool {
    let values = |schema: &Value, name: &Value| -> Option<Vec<Value>> {
        let is_required = schema.get("required")?.as_array()?.contains(name);
        let property = schema.get("properties")?.get(name.as_str()?)?;
        let values = match (property.get("const"), property.get("enum")) {
            (Some(value), _) => vec![value.clone()],
            (None, values) => values?.as_array()?.clone(),
        };
        (is_required && schema["type"] == "object").then_some(values)
    };
    let exclude = |one: &Value, other: &Value| {
        let names = one.get("required").and_then(Value::as_array).into_iter().flatten();
        names.into_iter().any(|name| match (values(one, name), values(other, name)) {
            (Some(one), Some(other)) => {
                !one.iter().any(|value| other.iter().any(|it| is_same(value, it)))
            }
            _ => false,
        })
    };
    let rest = |index| schemas[index + 1..].iter();
    schemas.iter().enumerate().all(|(index, one)| rest(index).all(|other| exclude(one, other)))
}

/// Whether an object may have keys beside those that it lists.
pub(super) fn is_open(schema: &Value) -> bool {
    let lists = ["properties", "patternProperties", "required"];
    let is_list = |keyword: &&str| schema.get(*keyword).is_some_and(|it| it != &json!({}));
    let is_object = schema.get("type").is_none_or(|types| {
        types == "object" || types.as_array().is_some_and(|it| it.contains(&json!("object")))
    });
    let is_closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    let may_have_others = !is_closed || schema.get("patternProperties").is_some();
    let is_open_here = is_object && may_have_others && lists.iter().any(is_list);
    is_open_here || parts(schema).into_iter().any(is_open)
}

/// Whether a string must have a character that is only written by its number.
pub(super) fn needs_controls(schema: &Value) -> bool {
    fn is_control(char: char) -> bool {
        char.is_ascii_control() && !"\u{8}\t\n\u{c}\r".contains(char)
    }
    fn has_control(value: &Value) -> bool {
        match value {
            Value::String(text) => text.contains(is_control),
            Value::Array(items) => items.iter().any(has_control),
            Value::Object(fields) => fields.values().any(has_control),
            _ => false,
        }
    }
    fn is_empty_without(pattern: &str) -> bool {
        let may_need = pattern.contains('\\') || pattern.contains(is_control);
        may_need && {
            let text = RegexAst::SearchRegex(regex_to_lark(pattern, "dw"));
            let options = JsonQuoteOptions { allowed_escapes: ESCAPES.to_owned(), raw_mode: false };
            let mut builder = RegexBuilder::new();
            // What can't be read is refused by llguidance.
            builder
                .mk(&RegexAst::JsonQuote(Box::new(text), options))
                .and_then(|text| builder.to_regex_limited(text, 10_000))
                .is_ok_and(|mut text| text.always_empty())
        }
    }
    let values = [schema.get("const"), schema.get("enum")];
    let names = schema.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
    let patterns =
        names.map(|(name, _)| &**name).chain(schema.get("pattern").and_then(Value::as_str));
    values.into_iter().flatten().any(has_control)
        || patterns.into_iter().any(is_empty_without)
        || parts(schema).into_iter().any(needs_controls)
}

/// A reference must come to an end.
pub(super) fn check_cycles(definitions: &Map<String, Value>) -> Result<()> {
    let next = |definition: &Value| {
        let fields = definition.as_object().filter(|fields| fields.len() == 1)?;
        fields.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?.parse::<usize>().ok()
    };
    let next: Vec<Option<usize>> = definitions.values().map(next).collect();
    let mut seen_from = vec![None; next.len()];
    for start in 0..next.len() {
        let mut at = Some(start);
        while let Some(index) = at.filter(|&index| seen_from.get(index) == Some(&None)) {
            seen_from[index] = Some(start);
            at = next[index];
        }
        if at.is_some_and(|index| seen_from.get(index) == Some(&Some(start))) {
            return Err(Error::grammar("`$ref`: expected a schema, found a reference to itself"));
        }
    }
    Ok(())
}

/// Numbers that are put in later can't be narrowed by others.
pub(super) fn check_intersections(root: &Value, definitions: &Map<String, Value>) -> Result<()> {
    fn referred<'a>(schema: &'a Value, found: &mut Vec<&'a str>) {
        found.extend(schema.get("$ref").and_then(Value::as_str));
        for part in parts(schema) {
            referred(part, found);
        }
    }
    let references = |schema| {
        let mut found = Vec::new();
        referred(schema, &mut found);
        found
    };
    let is_number = |reference: &str| reference.starts_with("#/$defs/number_");
    let names: Vec<String> = definitions.keys().map(|name| format!("#/$defs/{name}")).collect();
    let mut referring: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut rest = Vec::new();
    for (name, schema) in names.iter().zip(definitions.values()) {
        for reference in references(schema) {
            if is_number(reference) {
                rest.push(&**name);
            } else {
                referring.entry(reference).or_default().push(name);
            }
        }
    }
    // All that lead to a number.
    let mut holders = HashSet::new();
    while let Some(name) = rest.pop() {
        if holders.insert(name) {
            rest.extend(referring.get(name).into_iter().flatten());
        }
    }
    let holds_number =
        |schema| references(schema).into_iter().any(|it| is_number(it) || holders.contains(it));
    let mut rest: Vec<&Value> = [root].into_iter().chain(definitions.values()).collect();
    while let Some(schema) = rest.pop() {
        rest.extend(parts(schema));
        let Some(fields) = schema.as_object() else { continue };
        let applied = APPLICATORS.into_iter().filter(|keyword| fields.contains_key(*keyword));
        let num_members = fields.get("allOf").and_then(Value::as_array).map_or(1, Vec::len);
        let mut keywords: Vec<&str> = applied.collect();
        if keywords.is_empty() && fields.contains_key("properties") {
            keywords
                .extend(fields.contains_key("patternProperties").then_some("patternProperties"));
        }
        let Some(keyword) = keywords.first() else { continue };
        if (fields.len() > 1 || num_members > 1) && holds_number(schema) {
            let reason = format!(
                "`{keyword}`: other keywords beside it can't be held together with integers beyond 2^53 within it"
            );
            return Err(Error::grammar(reason));
        }
    }
    Ok(())
}
