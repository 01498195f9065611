//! The keywords of JSON schemas: what decides which texts there are, and what doesn't.

use serde_json::{Map, Value, json};

use super::number::Decimal;
use crate::big_integer::big_integer;

/// What may follow `format`. Others are annotations: JSON Schema leaves it to whoever reads them.
pub(super) const FORMATS: [&str; 10] =
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];

pub(super) const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// Keywords that decide which texts there are, beside those that apply other schemas, and that can be held.
pub(super) const HELD: [&str; 23] = [
    "type",
    "const",
    "enum",
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "minProperties",
    "maxProperties",
    "items",
    "prefixItems",
    "additionalItems",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "multipleOf",
];

/// Those that can't be held, unless they have no effect.
pub(super) const NOT_HELD: [&str; 16] = [
    "$dynamicRef",
    "$recursiveRef",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Longer than any text can be: such bounds from above have no effect.
pub(super) const LONGEST: u64 = 1 << 31;

/// Whether a keyword that can't be held lets everything through.
pub(super) fn has_no_effect(keyword: &str, value: &Value, fields: &Map<String, Value>) -> bool {
    let has = |keyword: &str| fields.contains_key(keyword);
    match keyword {
        "uniqueItems" | "not" => *value == Value::Bool(false),
        "unevaluatedProperties" | "unevaluatedItems" => is_true(value),
        "dependencies" | "dependentRequired" | "dependentSchemas" => *value == json!({}),
        "if" => !has("then") && !has("else"),
        "then" | "else" => !has("if"),
        "contains" | "minContains" | "maxContains" => {
            let at_least_none = fields.get("minContains").and_then(count) == Some(0);
            !has("contains") || (at_least_none && !has("maxContains"))
        }
        // Read with the others.
        "propertyNames" => true,
        _ => false,
    }
}

/// A number of things, which may be written as a float.
pub(super) fn count(value: &Value) -> Option<u64> {
    let is_negative = |digits: &str| digits.starts_with('-');
    if big_integer(value).is_some_and(|digits| !is_negative(digits)) {
        return Some(u64::MAX);
    }
    let number = Decimal::of(value).filter(Decimal::is_integer)?;
    number.text().parse().ok()
}

/// Whether a schema lets everything through.
pub(super) fn is_true(schema: &Value) -> bool {
    *schema == Value::Bool(true) || *schema == json!({})
}

/// What the value of a keyword that is held should be, if it isn't.
pub(super) fn expected_instead(keyword: &str, value: &Value) -> Option<&'static str> {
    let is_number = value.is_number() || big_integer(value).is_some();
    let are_strings = |values: &Vec<Value>| values.iter().all(Value::is_string);
    let (is_right, expected) = match keyword {
        "minimum" | "maximum" | "multipleOf" => (is_number, "a number"),
        "exclusiveMinimum" | "exclusiveMaximum" => (is_number || value.is_boolean(), "a number"),
        "enum" | "prefixItems" => (value.is_array(), "a list"),
        "required" => (value.as_array().is_some_and(are_strings), "a list of names"),
        "type" => {
            let is_right = value.is_string() || value.as_array().is_some_and(are_strings);
            (is_right, "a type or a list of types")
        }
        _ => return None,
    };
    (!is_right).then_some(expected)
}

/// Whether two values are equal: numbers are, however they are written.
pub(super) fn is_same(one: &Value, other: &Value) -> bool {
    match (Decimal::of(one), Decimal::of(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}
