//! What schemas let through, to the last digit and key; and what they say that decides nothing.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{check, check_refusal, compile, compiler, follow, random_text};
use crate::grammar::number::{Bounds, Decimal};
use crate::tokenizer::tests::tokenizer;
use crate::{CompiledGrammar, FunctionSchema, Grammar, Reasoning, big_integer, json_from_str};

/// Texts that a schema, which is JSON, lets through as a whole, and those that it doesn't.
#[track_caller]
fn check_texts(schema: &str, right: &[&str], wrong: &[&str]) {
    let schema = json_from_str(schema).unwrap();
    let grammar = compile(&Grammar::JsonSchema(schema));
    for text in right {
        check(&grammar, text, Some(true));
    }
    for text in wrong {
        check_wrong(&grammar, text);
    }
}

/// The text can't come, or goes on.
#[track_caller]
fn check_wrong(grammar: &CompiledGrammar, text: &str) {
    let ids = tokenizer().encode(text, false).unwrap();
    let may_end = follow(&mut grammar.matcher(), ids);
    assert!(may_end != Some(true), "{text}");
}

#[track_caller]
fn refuse(schema: Value, message: &str) {
    check_refusal(&Grammar::JsonSchema(schema), message);
}

#[test]
fn integers_beyond_53_bits_keep_their_digits() {
    check_texts(
        r#"{"enum": [175928847299117063]}"#,
        &["175928847299117063"],
        &["175928847299117056", "175928847299117064"],
    );
    check_texts(r#"{"const": 9007199254740993}"#, &["9007199254740993"], &["9007199254740992"]);
    check_texts(
        r#"{"enum": [18446744073709551615, -123456789012345678901234567890, 1, "a", null]}"#,
        &["18446744073709551615", "-123456789012345678901234567890", "1", "\"a\"", "null"],
        &["18446744073709551616", "-123456789012345680000000000000", "2"],
    );
    check_texts(
        r#"{"type": "integer", "minimum": 9007199254740993, "maximum": 9223372036854775807}"#,
        &["9007199254740993", "9223372036854775807", "9100000000000000000"],
        &["9007199254740992", "9223372036854775808", "-9007199254740993", "90071992547409930000"],
    );
    check_texts(
        r#"{"type": "integer", "minimum": -9223372036854775808, "exclusiveMaximum": 18446744073709551616}"#,
        &["-9223372036854775808", "0", "18446744073709551615", "-1"],
        &["-9223372036854775809", "18446744073709551616"],
    );
    check_texts(
        r#"{"type": "integer", "exclusiveMinimum": 9223372036854775807, "multipleOf": 5}"#,
        &["9223372036854775810", "10000000000000000000"],
        &["9223372036854775807", "9223372036854775808", "5"],
    );
    check_texts(
        r#"{"type": ["number", "null"], "minimum": 1e19}"#,
        &["10000000000000000000", "10000000000000000000.5", "null"],
        &["9999999999999999999", "9223372036854775807", "\"a\""],
    );
    // Without a type, other values are as right.
    check_texts(
        r#"{"maximum": -9007199254740995}"#,
        &["-9007199254740995", "\"a\"", "{}", "true"],
        &["-9007199254740994", "0"],
    );
    // In the flags of old.
    check_texts(
        r#"{"type": "integer", "minimum": 9007199254740993, "exclusiveMinimum": true}"#,
        &["9007199254740994"],
        &["9007199254740993"],
    );
    check_texts(
        r#"{"type": "integer", "minimum": 0, "enum": [-9007199254740993, 9007199254740993, 3, -3, 0.5]}"#,
        &["9007199254740993", "3"],
        &["-9007199254740993", "-3", "0.5"],
    );
    check_texts(
        r#"{"const": {"ids": [9007199254740993, {"é": -0}], "at": 1.0}}"#,
        &[r#"{"ids": [9007199254740993, {"é": 0}], "at": 1}"#],
        &[r#"{"ids": [9007199254740992, {"é": 0}], "at": 1}"#, r#"{"ids": [9007199254740993"#],
    );
    check_texts(
        r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/id"}, "b": {"$ref": "#/$defs/id"}},
             "required": ["a"], "additionalProperties": {"$ref": "#/$defs/id"},
             "$defs": {"id": {"anyOf": [{"const": 9007199254740993}, {"type": "null"}]}}}"##,
        &[r#"{"a": 9007199254740993, "b": null, "c": 9007199254740993}"#],
        &[r#"{"a": 9007199254740992"#, r#"{"a": null, "c": 9007199254740992"#],
    );
}

#[test]
fn bounds_of_floats_are_excluded_where_they_are() {
    check_texts(
        r#"{"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}"#,
        &["0.5", "0.25", "0.50"],
        &["0", "0.0", "-0", "0.51"],
    );
    check_texts(
        r#"{"type": "number", "minimum": -1.5, "exclusiveMaximum": -1}"#,
        &["-1.5", "-1.1"],
        &["-1", "-1.0", "-1.51"],
    );
}

#[test]
fn integers_may_be_written_as_floats() {
    check_texts(r#"{"type": "integer", "const": 1.0}"#, &["1"], &["2"]);
    check_texts(r#"{"enum": [1e2, -0.0, 1e-2]}"#, &["100", "0.01"], &["10", "1"]);
    check_texts(r#"{"const": -0}"#, &["0"], &["1"]);
    check_texts(r#"{"const": 1e22}"#, &["10000000000000000000000"], &["1"]);
    check_texts(r#"{"type": "integer", "minimum": 1.5, "maximum": 3e0}"#, &["2", "3"], &["1", "4"]);
    refuse(json!({"type": "integer", "enum": [1.5]}), "");
}

#[test]
fn what_cannot_be_held_together_with_large_integers_is_refused() {
    let big = json!({"type": "integer", "maximum": i64::MAX});
    refuse(json!({"allOf": [big, {"multipleOf": 5}]}), "`allOf`");
    refuse(json!({"type": "integer", "maximum": i64::MAX, "anyOf": [{}]}), "`anyOf` in `#`");
    let object = json!({"properties": {"a": big}, "anyOf": [{"required": ["a"]}]});
    refuse(json!({"items": {"$ref": "#/$defs/o"}, "$defs": {"o": object}}), "`anyOf`");
    refuse(json!({"enum": [i64::MAX], "maximum": 5}), "`enum` in `#`: expected a value");
    refuse(
        json!({"properties": {"a": {"type": "integer", "minimum": i64::MAX, "maximum": 5}}}),
        "no integer is within `minimum` 9223372036854775807, `maximum` 5",
    );
    refuse(json!({"enum": [[i64::MAX]], "minItems": 1}), "`enum` in `#`: expected no other");
}

#[test]
fn each_schema_of_several_has_its_own_integers() {
    let function = |name: &str, id: u64| FunctionSchema {
        name: name.to_owned(),
        parameters: Some(json!({"properties": {"id": {"const": id}}, "required": ["id"]})),
    };
    let (one, other) = (9_007_199_254_740_993, 9_007_199_254_740_995);
    let functions = vec![function("f", one), function("g", other), function("h", one)];
    let calls = Grammar::ToolCalls { functions, is_parallel: true };
    let grammar = Grammar::Either(
        Box::new(calls),
        Box::new(Grammar::JsonSchema(json!({"type": "array", "items": {"enum": [other, "x"]}}))),
    );
    for reasoning in [Reasoning::Off, Reasoning::Optional] {
        let grammar = compiler().compile(&grammar, reasoning).unwrap();
        let call = |name: &str, id: u64| {
            format!(
                "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"id\": {id}}}}}\n</tool_call>"
            )
        };
        let calls = [call("f", one), call("g", other), call("h", one)];
        check(&grammar, &calls.join("\n"), Some(true));
        check(&grammar, &call("f", other), None);
        check(&grammar, &call("g", one), None);
        check(&grammar, &format!("[{other}, \"x\"]"), Some(true));
        check(&grammar, &format!("[{one}"), None);
    }
}

#[test]
fn a_key_is_written_in_one_way() {
    // Where others may come, a declared one doesn't come again in other letters.
    let schema = r#"{"type": "object", "properties": {"age": {"type": "integer"}, "a\"\\\n\u0001": {"const": 1}}}"#;
    check_texts(
        schema,
        &[
            r#"{"age": 1}"#,
            r#"{"age": 1, "ages": "x", "é": null}"#,
            r#"{"a\"\\\n\u0001": 1}"#,
            r#"{"age": 1, "b\n\"": 2}"#,
        ],
        &[
            r#"{"\u0061ge": "x"}"#,
            r#"{"age": 1, "\u0061ge": "x"}"#,
            r#"{"age": 1, "age": 2}"#,
            r#"{"a\u0022\\\n\u0001": 2}"#,
            r#"{"a\"\\\u000a\u0001": 2}"#,
            r#"{"x": {"\u0061": 1}}"#,
        ],
    );
    // Nor does a key that a pattern declares.
    check_texts(
        r#"{"type": "object", "patternProperties": {"^x": {"type": "integer"}}}"#,
        &[r#"{"xy": 1, "y": "a"}"#],
        &[r#"{"xy": "a"}"#, r#"{"\u0078y": "a"}"#],
    );
    // Nothing is lost where there are no others: and where there are, what must come by its number is refused.
    check_texts(r#"{"type": "string"}"#, &[r#""\u001b\u007f""#], &[]);
    let closed = r#"{"type": "object", "properties": {"a": {"enum": ["\u001b", "b"]}}, "additionalProperties": false}"#;
    check_texts(closed, &[r#"{"a": "\u001b"}"#], &[r#"{"\u0061": "b"}"#]);
    let open = json!({"properties": {"a": {"enum": ["\u{1b}", "b"]}}});
    refuse(open, "`additionalProperties`: expected false");
    refuse(json!({"properties": {"a": {"pattern": "^\\x1b$"}}}), "`additionalProperties`");
    check_texts(
        r#"{"properties": {"a": {"type": "string", "pattern": "^[^\\x00-\\x1f]+$"}}}"#,
        &[r#"{"a": "x"}"#],
        &[r#"{"a": ""}"#],
    );
}

#[test]
fn the_number_of_keys_counts_each_once() {
    refuse(json!({"type": "object", "minProperties": 2}), "`minProperties` in `#`");
    check_texts(
        r#"{"type": "object", "required": ["a"], "minProperties": 2.0, "maxProperties": 1e0}"#
            .replace("1e0", "3")
            .as_str(),
        &[r#"{"a": 1, "b": 2}"#, r#"{"a": 1, "b": 2, "c": 3}"#],
        &[r#"{"a": 1}"#, r#"{"a": 1, "b": 2, "c": 3, "d": 4}"#],
    );
}

#[test]
fn annotations_decide_nothing() {
    // What pydantic and zod write, and what specifications name.
    for format in [
        "binary",
        "path",
        "file-path",
        "directory-path",
        "password",
        "uuid1",
        "uuid3",
        "uuid4",
        "uuid5",
        "uuid7",
        "ipvanyaddress",
        "ipvanyinterface",
        "ipvanynetwork",
        "ipv4network",
        "json-string",
        "color",
        "phone",
        "base64",
        "base64url",
        "jwt",
        "nanoid",
        "cuid",
        "cuid2",
        "ulid",
        "xid",
        "ksuid",
        "emoji",
        "cidrv4",
        "cidrv6",
        "e164",
        "int32",
        "int64",
        "uint64",
        "float",
        "double",
        "byte",
        "regex",
        "iri",
        "idn-email",
        "idn-hostname",
        "json-pointer",
        "relative-json-pointer",
        "uri-reference",
        "uri-template",
        "multi-host-uri",
        "unknown",
    ] {
        let grammar = compile(&Grammar::JsonSchema(json!({"type": "string", "format": format})));
        check(&grammar, "\"x y\"", Some(true));
        compile(&Grammar::JsonSchema(json!({"format": format, "maxLength": 3})));
    }
    let all = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/a", "$comment": "c",
        "$anchor": "a", "$dynamicAnchor": "b", "$vocabulary": {"https://example.com/v": true},
        "title": "T", "description": "D", "default": {"$ref": "#/none"}, "examples": [{"type": "none"}], "example": 1,
        "deprecated": true, "readOnly": true, "writeOnly": false, "contentEncoding": "base64",
        "contentMediaType": "application/json", "contentSchema": {"not": {}}, "x-order": [1], "xml": {"name": "a"},
        "externalDocs": {"url": "https://example.com"}, "discriminator": {"propertyName": "kind"},
        "uniqueItems": false, "propertyNames": {"type": "string"}, "not": false, "if": {"type": "null"},
        "dependentRequired": {}, "dependentSchemas": {}, "dependencies": {}, "minContains": 2, "maxContains": 3,
        "unevaluatedProperties": true, "unevaluatedItems": {}, "additionalItems": false, "enumNames": ["a"],
        "nullable": false, "type": "integer",
    });
    let grammar = compile(&Grammar::JsonSchema(all));
    check(&grammar, "5", Some(true));
    check(&grammar, "\"", None);
    check(&grammar, "n", None);
    for (schema, text) in [
        (
            json!({"type": "array", "uniqueItems": false, "contains": {}, "minContains": 0}),
            "[1, 1]",
        ),
        (json!({"type": "array", "items": {}, "then": false, "else": false}), "[1]"),
        (json!({"type": "object", "propertyNames": true}), r#"{"a": 1}"#),
        (json!({"type": "object", "propertyNames": {}}), r#"{"a": 1}"#),
        (json!({"type": "string", "maxLength": u64::MAX}), "\"a\""),
        (json!({"type": "string", "minLength": 1.0, "maxLength": 2.0}), "\"a\""),
        (json!({"properties": {"a": true, "b": false, "c": {}}, "type": "object"}), r#"{"a": 1}"#),
    ] {
        check(&compile(&Grammar::JsonSchema(schema)), text, Some(true));
    }
}

#[test]
fn known_formats_are_held() {
    for (format, right, wrong) in [
        ("date", "2024-02-29", "2024-13-01"),
        ("time", "12:30:00Z", "12:30"),
        ("date-time", "2024-02-29T12:30:00Z", "2024-02-29"),
        ("duration", "P1DT2H", "1D"),
        ("email", "a@example.com", "a"),
        ("hostname", "example.com", "-a"),
        ("ipv4", "127.0.0.1", "256.0.0.1"),
        ("ipv6", "::1", ":1"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        ("uri", "https://example.com/a?b#c", "a b"),
    ] {
        let grammar = compile(&Grammar::JsonSchema(json!({"type": "string", "format": format})));
        check(&grammar, &format!("{right:?}"), Some(true));
        check_wrong(&grammar, &format!("{wrong:?}"));
    }
}

#[test]
fn what_changes_the_texts_and_cannot_be_held_is_refused_by_name() {
    let other = json!({"type": "string"});
    for (keyword, value) in [
        ("uniqueItems", json!(true)),
        ("contains", other.clone()),
        ("not", other.clone()),
        ("dependentRequired", json!({"a": ["b"]})),
        ("dependentSchemas", json!({"a": other.clone()})),
        ("dependencies", json!({"a": ["b"]})),
        ("propertyNames", json!({"maxLength": 3})),
        ("$dynamicRef", json!("#a")),
        ("$recursiveRef", json!("#")),
    ] {
        refuse(json!({"items": {keyword: value}}), &format!("`{keyword}` in `#/items"));
    }
    refuse(json!({"propertyNames": {"$ref": "#/$defs/none"}}), "`$ref` in `#/propertyNames`");
    refuse(json!({"if": {}, "then": {"type": "string"}}), "`if` in `#`");
    refuse(json!({"unevaluatedProperties": false, "allOf": [{}]}), "`unevaluatedProperties`");
    refuse(json!({"type": "string", "format": 5}), "`format` in `#`: expected a string, found 5");
    refuse(json!({"properties": {"a": 5}}), "`#/properties/a`: expected a schema");
    refuse(json!({"properties": [1]}), "`properties` in `#`: expected an object");
    refuse(
        json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
        "`oneOf`: expected schemas",
    );
    refuse(
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        "`$ref`",
    );
    refuse(json!({"minLength": u64::MAX}), "`minLength`");
    for (keyword, value) in [
        ("anyOf", json!({"type": "null"})),
        ("allOf", json!(5)),
        ("oneOf", json!("a")),
        ("prefixItems", json!({})),
        ("enum", json!("a")),
        ("required", json!(true)),
        ("required", json!([1])),
        ("type", json!(["string", 5])),
        ("minimum", json!("5")),
        ("exclusiveMaximum", json!([])),
        ("multipleOf", json!(true)),
        ("maxItems", json!(-1)),
        ("minLength", json!(1.5)),
        ("pattern", json!("(?!a)b")),
        ("pattern", json!(5)),
        ("$ref", json!("x".repeat(5000))),
    ] {
        refuse(json!({"items": {keyword: value}}), &format!("`{keyword}` in `#/items`: "));
    }
}

#[test]
fn keywords_that_say_the_same_otherwise_are_held() {
    check_texts(
        r#"{"type": "object", "properties": {"a": {}}, "unevaluatedProperties": false}"#,
        &[r#"{"a": 1}"#],
        &[r#"{"b": 1}"#],
    );
    check_texts(
        r#"{"type": "array", "prefixItems": [{"const": 1}], "unevaluatedItems": false, "additionalItems": true}"#,
        &["[1]", "[]"],
        &["[2]", "[1, 2]"],
    );
    check_texts(
        r#"{"type": "array", "items": [{"const": 1}], "additionalItems": {"const": 2}}"#,
        &["[1, 2]"],
        &["[2]", "[1, 1]"],
    );
    let nullable = r#"{"type": "string", "enum": ["a", null], "nullable": true}"#;
    check_texts(nullable, &["\"a\"", "null"], &["\"b\""]);
    check_texts(r#"{"type": "integer", "nullable": true}"#, &["5", "null"], &["\"a\""]);
    let names = r##"{"type": "object", "propertyNames": {"$ref": "#/$defs/N"}, "additionalProperties": {"type": "integer"},
        "$defs": {"N": {"enum": ["red", "blue"], "title": "N", "type": "string"}}}"##;
    check_texts(
        names,
        &[r#"{"red": 1, "blue": 2}"#, r#"{"blue": 2}"#, "{}"],
        &[r#"{"green": 1}"#, r#"{"red": "a"}"#],
    );
    check_texts(
        r#"{"type": "object", "propertyNames": {"pattern": "^[a-c]$"}, "additionalProperties": {"type": "null"}}"#,
        &[r#"{"a": null, "c": null}"#],
        &[r#"{"d": null}"#, r#"{"a": 1}"#],
    );
}

#[test]
fn references_are_followed() {
    let definitions =
        json!({"a/b": {"const": 1}, "c~d": {"const": 2}, "e f": {"const": 3}, "g%h": {"const": 4}});
    for (reference, text) in [
        ("#/$defs/a~1b", "1"),
        ("#/$defs/a%7E1b", "1"),
        ("#/$defs/c~0d", "2"),
        ("#/$defs/e%20f", "3"),
        ("#/$defs/g%25h", "4"),
        ("#/$defs/g%h", "4"),
        ("other#/x/y", "5"),
        ("#five", "5"),
    ] {
        let schema = json!({
            "$id": "https://example.com/all", "$ref": reference, "description": "D", "$defs": definitions,
            "definitions": {"o": {"$id": "other", "x": {"y": {"const": 5}}}, "p": {"$anchor": "five", "const": 5}},
        });
        check_texts(&schema.to_string(), &[text], &["6"]);
    }
    // Alike in the definitions of old, in parts that are no definitions, and in circles.
    check_texts(
        r##"{"definitions": {"T": {"type": "object", "properties": {"v": {"type": "integer"},
            "l": {"anyOf": [{"$ref": "#/definitions/T"}, {"type": "null"}]}}, "required": ["v"], "additionalProperties": false}},
            "allOf": [{"$ref": "#/definitions/T"}], "title": "T"}"##,
        &[r#"{"v": 1, "l": {"v": 2, "l": null}}"#],
        &[r#"{"v": 1, "l": {"l": null}}"#],
    );
    let same = r##"{"properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}}, "type": "object"}"##;
    check_texts(same, &[r#"{"a": 1, "b": 2}"#], &[r#"{"a": 1, "b": "c"}"#]);
    refuse(
        json!({"$ref": "#/$defs/a~2b", "$defs": definitions}),
        "`$ref` in `#`: expected a part of this schema",
    );
}

#[test]
fn schemas_of_which_one_must_fit_may_be_references() {
    // As pydantic writes a union that is told apart by a field, with a default or without.
    let schema = json!({
        "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"},
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "$defs": {
            "Cat": {
                "properties": {"kind": {"const": "cat", "default": "cat", "type": "string"}, "lives": {"type": "integer"}},
                "required": ["lives"], "type": "object",
            },
            "Dog": {
                "properties": {"kind": {"const": "dog", "default": "dog", "type": "string"},
                    "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                "type": "object",
            },
        },
    });
    check_texts(
        &schema.to_string(),
        &[
            r#"{"kind": "cat", "lives": 9}"#,
            r#"{"kind": "dog", "next": {"kind": "cat", "lives": 1}}"#,
            r#"{"kind": "dog"}"#,
        ],
        &[r#"{"kind": "cat"}"#, r#"{"lives": 9}"#, "{}", r#"{"kind": "bird"}"#],
    );
    // Of numbers, too.
    let versions = r##"{"oneOf": [{"$ref": "#/$defs/One"}, {"$ref": "#/$defs/Two"}], "$defs": {
        "One": {"type": "object", "properties": {"v": {"const": 1}, "a": {"type": "null"}}, "required": ["v"]},
        "Two": {"type": "object", "properties": {"v": {"enum": [2, 3.0]}}, "required": ["v"], "additionalProperties": false}}}"##;
    check_texts(
        versions,
        &[r#"{"v": 1, "a": null}"#, r#"{"v": 2}"#, r#"{"v": 3}"#],
        &[r#"{"v": 1, "a": 2}"#, r#"{"v": 4}"#, r#"{"v": 2, "a": null}"#],
    );
    let alike =
        json!({"type": "object", "properties": {"v": {"enum": [1, "a"]}}, "required": ["v"]});
    let other = json!({"type": "object", "properties": {"v": {"const": 1.0}}, "required": ["v"]});
    refuse(json!({"oneOf": [alike, other]}), "`oneOf`: expected schemas");
    let circle = json!({"$defs": {"E": {"oneOf": [{"$ref": "#/$defs/E"}, {"type": "null"}]}}, "$ref": "#/$defs/E"});
    refuse(circle, "");
}

#[test]
fn choices_have_any_character() {
    let choices = ["a\u{7f}b", "\u{0}\u{1}\u{1f}", "\u{80}\u{2028}\u{10ffff}"].map(str::to_owned);
    let grammar = compile(&Grammar::Choice(choices.to_vec()));
    for choice in &choices {
        check(&grammar, choice, Some(true));
    }
    check(&grammar, "ab", None);
    let name = "a\u{7f}b".to_owned();
    let functions = vec![FunctionSchema { name, parameters: None }];
    let calls = compile(&Grammar::ToolCalls { functions, is_parallel: false });
    let call = "<tool_call>\n{\"name\": \"a\u{7f}b\", \"arguments\": {}}\n</tool_call>";
    check(&calls, call, Some(true));
}

/// Whether an integer, as it is written, is between these two.
fn is_within(value: &Value, least: i128, most: i128) -> bool {
    let digits = big_integer(value).map_or_else(|| value.to_string(), str::to_owned);
    digits.parse::<i128>().is_ok_and(|number| (least..=most).contains(&number))
}

#[test]
fn texts_by_chance_have_the_numbers_and_keys_of_their_schema() {
    let (low, high) = (-(1i128 << 64) - 1, (1i128 << 63) - 1);
    let schema = format!(
        r#"{{"type": "object", "required": ["id", "list", "one"], "properties": {{
            "id": {{"type": "integer", "minimum": {low}, "maximum": {high}}},
            "list": {{"type": "array", "maxItems": 4, "items": {{"enum": [9007199254740993, -{high}, "a"]}}}},
            "one": {{"anyOf": [{{"const": 12345678901234567890123}}, {{"type": "null"}}]}}}}}}"#
    );
    let grammar = compile(&Grammar::JsonSchema(json_from_str(&schema).unwrap()));
    let mut num_whole = 0;
    for seed in 0..80 {
        let text = random_text(&grammar, seed);
        // A text that goes on for too long is cut.
        let Ok(value) = json_from_str(&text) else { continue };
        num_whole += 1;
        let object = value.as_object().unwrap();
        assert!(is_within(&object["id"], low, high), "{text}");
        let list = object["list"].as_array().unwrap();
        let is_one = |item: &Value| {
            *item == "a" || ["9007199254740993", &format!("-{high}")].contains(&&*item.to_string())
        };
        assert!(list.len() <= 4 && list.iter().all(is_one), "{text}");
        let one = &object["one"];
        assert!(one.is_null() || big_integer(one) == Some("12345678901234567890123"), "{text}");
        // Each declared key once.
        let pairs: Vec<(String, Value)> = pairs(&text);
        for name in ["id", "list", "one"] {
            assert_eq!(pairs.iter().filter(|(key, _)| key == name).count(), 1, "{text}");
        }
    }
    assert!(num_whole > 40, "{num_whole}");
}

/// The fields of an object, those that come again too.
fn pairs(text: &str) -> Vec<(String, Value)> {
    struct Pairs(Vec<(String, Value)>);
    impl<'de> serde::Deserialize<'de> for Pairs {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Pairs;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(
                    self,
                    mut map: A,
                ) -> Result<Pairs, A::Error> {
                    let mut pairs = Vec::new();
                    while let Some(pair) = map.next_entry()? {
                        pairs.push(pair);
                    }
                    Ok(Pairs(pairs))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }
    serde_json::from_str::<Pairs>(text).unwrap().0
}

#[test]
fn many_large_integers_are_bounded() {
    let many: Map<String, Value> = (0..600u64)
        .map(|index| (index.to_string(), json!({"const": (1u64 << 60) + index})))
        .collect();
    refuse(json!({"properties": many}), "at most 500 different bounds");
    let values: Vec<u64> = (0..3000).map(|index| (1 << 60) + index).collect();
    let grammar = compile(&Grammar::JsonSchema(json!({"enum": values})));
    check(&grammar, &((1u64 << 60) + 2999).to_string(), Some(true));
    check(&grammar, &((1u64 << 60) + 3000).to_string(), None);
}

fn small_number() -> impl Strategy<Value = String> {
    let hundredths = prop_oneof![-1300..1300i32, (-13..13i32).prop_map(|it| it * 100)];
    let text = |it: i32| Decimal::of(&json!(f64::from(it) / 100.0)).unwrap().text();
    hundredths.prop_map(text)
}

proptest! {
    #[test]
    fn numbers_come_as_far_as_they_fit(
        bounds in proptest::collection::vec((0..4usize, small_number()), 0..3),
        others in proptest::collection::vec(small_number(), 1..8),
        is_integer: bool,
    ) {
        let keyword = |(index, number): &(usize, String)| {
            (Bounds::KEYWORDS[*index].to_owned(), json_from_str(number).unwrap())
        };
        let mut schema: Map<String, Value> = bounds.iter().map(keyword).collect();
        let fits = Bounds::of(&schema).unwrap();
        schema.insert("type".to_owned(), json!(if is_integer { "integer" } else { "number" }));
        let described = format!("{schema:?}");
        let texts = others.into_iter().chain(bounds.into_iter().map(|(_, number)| number));
        let grammar = compiler().compile(&Grammar::JsonSchema(schema.into()), Reasoning::Off);
        for text in texts {
            let number = Decimal::of(&json_from_str(&text).unwrap()).unwrap();
            let expected = fits.contain(&number).unwrap() && (!is_integer || number.is_integer());
            let ids = text.bytes().map(u32::from);
            let found = grammar.as_ref().is_ok_and(|it| follow(&mut it.matcher(), ids) == Some(true));
            prop_assert_eq!(found, expected, "{} {}", text, described);
        }
    }
}
