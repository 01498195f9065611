//! Grammars over a vocabulary of bytes and a few longer tokens.

mod schema;

use std::time::Instant;

use nv_testing::Random;
use serde_json::{Map, Value, json};

use super::*;
use crate::tokenizer::tests::{END, SPACED, THINK, tokenizer};
use crate::{ChatParser, ToolCalls};

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(&tokenizer()).unwrap()
}

fn compile(grammar: &Grammar) -> CompiledGrammar {
    compiler().compile(grammar, Reasoning::Off).unwrap()
}

fn is_allowed(next: &NextTokens, id: u32) -> bool {
    next.allowed.get(id as usize / 32).is_some_and(|word| word & (1 << (id % 32)) != 0)
}

/// Whether a text may be these tokens and then end; `None` if one of them may not come.
fn follow(matcher: &mut GrammarMatcher, ids: impl IntoIterator<Item = u32>) -> Option<bool> {
    for id in ids {
        if !is_allowed(&matcher.next_tokens().unwrap(), id) {
            return None;
        }
        matcher.push(id).unwrap();
    }
    Some(matcher.next_tokens().unwrap().may_end)
}

/// Where a grammar leaves no choice, tokens are those that the tokenizer makes of the text.
#[track_caller]
fn check(grammar: &CompiledGrammar, text: &str, expected: Option<bool>) {
    let ids = tokenizer().encode(text, false).unwrap();
    assert_eq!(follow(&mut grammar.matcher(), ids), expected, "{text}");
}

/// A text of tokens that chance chooses, cut after a thousand.
fn random_text(grammar: &CompiledGrammar, seed: u64) -> String {
    let (mut matcher, mut ids, mut random) = (grammar.matcher(), Vec::new(), Random::new(seed));
    while ids.len() < 1000 {
        let next = matcher.next_tokens().unwrap();
        let allowed: Vec<u32> = (0..260).filter(|&id| is_allowed(&next, id)).collect();
        // Closing characters come often, so that texts end.
        let ending = allowed.iter().copied().filter(|id| b"\"]}".map(u32::from).contains(id));
        let ending: Vec<u32> = ending.collect();
        let among = if ending.is_empty() || random.below(4) == 0 { &allowed } else { &ending };
        if among.is_empty() || (next.may_end && random.below(2) == 0) {
            assert!(next.may_end);
            break;
        }
        let id = among[random.below(among.len())];
        ids.push(id);
        if matcher.push(id).unwrap() {
            break;
        }
    }
    tokenizer().decode(&ids, true)
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "é x"]}, "maxItems": 3},
            "boss": {"$ref": "#"},
        },
        "required": ["name", "age"],
        "additionalProperties": false,
    })
}

fn assert_person(value: &Value) {
    let object = value.as_object().unwrap();
    assert!(object["name"].as_str().unwrap().chars().count() <= 8, "{value}");
    assert!(object["age"].as_u64().unwrap() <= 150, "{value}");
    for (key, value) in object {
        match &**key {
            "name" | "age" => {}
            "tags" => {
                let tags = value.as_array().unwrap();
                assert!(tags.len() <= 3 && tags.iter().all(|tag| tag == "a" || tag == "é x"));
            }
            "boss" => assert_person(value),
            _ => panic!("{key}"),
        }
    }
}

#[test]
fn json_is_what_its_schema_says() {
    let grammar = compile(&Grammar::JsonSchema(person()));
    check(&grammar, r#"{"name": "th", "age": 3}"#, Some(true));
    check(&grammar, "{\n    \"name\": \"\", \"age\":150,\r\n\t\"tags\": [\"a\"]\n}", Some(true));
    check(
        &grammar,
        r#"{"name":"é","age":0,"boss":{"name":"","age":1,"boss":{"name":"","age":2}}}"#,
        Some(true),
    );
    check(&grammar, r#"{"name": "th", "age": 3"#, Some(false));
    check(&grammar, r#"{"name": "123456789"#, None);
    check(&grammar, r#"{"name": "th", "age": 151"#, None);
    check(&grammar, r#"{"age": 3, "name""#, None);
    check(&grammar, r#"{"name": "th"}"#, None);
    check(&grammar, r#"{"name": "th", "age": 3, "other""#, None);
    // A model could go on like this for ever.
    check(&grammar, "{  ", None);
    check(&grammar, &format!("{{\n{}", " ".repeat(33)), None);
    check(&grammar, " ", None);
    for seed in 0..60 {
        let text = random_text(&grammar, seed);
        assert_person(&serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{text}: {error}");
        }));
    }
}

#[test]
fn a_json_object_is_any() {
    let grammar = compile(&Grammar::JsonObject);
    check(&grammar, "{}", Some(true));
    check(&grammar, r#"{"a": [1.5e3, null, {"b": "\n€"}], "": true}"#, Some(true));
    check(&grammar, "[", None);
    check(&grammar, "null", None);
}

#[test]
fn what_a_schema_needs_is_not_what_it_ends_with() {
    let grammar = compile(&Grammar::JsonSchema(json!({"type": "integer"})));
    let mut matcher = grammar.matcher();
    assert_eq!(follow(&mut matcher, [u32::from(b'4')]), Some(true));
    // It may end, and may go on.
    assert!(!matcher.push(u32::from(b'2')).unwrap());
    let mut matcher = compile(&Grammar::JsonSchema(json!({"const": 42}))).matcher();
    assert!(!matcher.push(u32::from(b'4')).unwrap());
    assert!(matcher.push(u32::from(b'2')).unwrap());
    let end = NextTokens { allowed: Vec::new(), may_end: true };
    assert_eq!(matcher.next_tokens().unwrap(), end);
}

#[test]
fn expressions_match_the_whole_text() {
    for pattern in ["[a-c]+\\d{2}", "^[a-c]+\\d{2}$", "[a-c]+\\d{2}$"] {
        let grammar = compile(&Grammar::Regex(pattern.to_owned()));
        check(&grammar, "abc12", Some(true));
        check(&grammar, "abc1", Some(false));
        check(&grammar, "1", None);
        check(&grammar, "a123", None);
    }
    check(&compile(&Grammar::Regex("^a|b$".to_owned())), "b", Some(true));
    check(&compile(&Grammar::Regex("a/\\$".to_owned())), "a/$", Some(true));
}

#[test]
fn characters_come_whole_however_tokens_split_them() {
    let grammar = compile(&Grammar::Regex("[éü]+ ?x?".to_owned()));
    let mut matcher = grammar.matcher();
    let first = matcher.next_tokens().unwrap();
    let allowed: Vec<u32> = (0..300).filter(|&id| is_allowed(&first, id)).collect();
    // The first byte of both, and the token that begins with the one.
    assert_eq!((allowed, first.may_end), (vec![0xC3, SPACED], false));
    assert_eq!(follow(&mut matcher, [0xC3]), Some(false));
    let second = matcher.next_tokens().unwrap();
    let allowed: Vec<u32> = (0..300).filter(|&id| is_allowed(&second, id)).collect();
    assert_eq!(allowed, [0xA9, 0xBC]);
    assert_eq!(follow(&mut matcher, [0xBC, SPACED]), Some(true));
    // Any character is in a string, and no half of one.
    let grammar = compile(&Grammar::JsonSchema(json!({"type": "string"})));
    let quote = u32::from(b'"');
    assert_eq!(follow(&mut grammar.matcher(), [quote, 0xF0, 0x9F, 0xA4, 0x96, quote]), Some(true));
    assert_eq!(follow(&mut grammar.matcher(), [quote, 0xF0, 0x9F, quote]), None);
    assert_eq!(follow(&mut grammar.matcher(), [quote, 0xFF]), None);
}

#[test]
fn special_tokens_never_come() {
    for grammar in [Grammar::Regex("(?s:.*)".to_owned()), Grammar::Choice(vec!["<end>".to_owned()])]
    {
        let grammar = compile(&grammar);
        assert!(!is_allowed(&grammar.matcher().next_tokens().unwrap(), END));
        assert_eq!(follow(&mut grammar.matcher(), b"<end>".map(u32::from)), Some(true));
    }
    // What has bytes is text.
    let grammar = compile(&Grammar::Regex("(?s:.*)".to_owned()));
    assert_eq!(follow(&mut grammar.matcher(), [THINK, SPACED, 256]), Some(true));
}

#[test]
fn a_choice_is_one_of_its_texts() {
    let choices = ["yes", "yes, \"really\"", "né\\o\n"].map(str::to_owned).to_vec();
    let grammar = compile(&Grammar::Choice(choices.clone()));
    for choice in &choices {
        check(&grammar, choice, Some(true));
    }
    check(&grammar, "yes,", Some(false));
    check(&grammar, "no", None);
}

#[test]
fn grammars_are_lark() {
    let lark = "start: sum\nsum: NUMBER | sum \"+\" NUMBER\nNUMBER: /[0-9]+/\n";
    let grammar = compile(&Grammar::Lark(lark.to_owned()));
    check(&grammar, "1+22", Some(true));
    check(&grammar, "1+", Some(false));
    check(&grammar, "+", None);
}

#[test]
fn calls_are_those_that_the_parser_reads() {
    let functions = vec![
        FunctionSchema { name: "f\"1".to_owned(), parameters: None },
        FunctionSchema {
            name: "weather".to_owned(),
            parameters: Some(json!({"properties": {"city": {"enum": ["Bonn", "Köln"]}}})),
        },
    ];
    let call = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": {name:?}, \"arguments\": {arguments}}}\n</tool_call>")
    };
    let one = call("f\"1", "{}");
    let two = call("weather", r#"{"city": "Köln"}"#);
    let grammar = Grammar::ToolCalls { functions: functions.clone(), is_parallel: true };
    let grammar = compile(&grammar);
    check(&grammar, &one, Some(true));
    check(&grammar, &format!("{one}\n{two}\n{two}"), Some(true));
    check(&grammar, &call("weather", r#"{"city": "Rom""#), None);
    check(&grammar, &call("f\"1", r#"{"a""#), None);
    check(&grammar, "I ask", None);
    let answer = ChatParser::parse(&format!("{one}\n{two}"), Reasoning::Off, ToolCalls::On);
    let calls: Vec<_> =
        answer.tool_calls.iter().map(|call| (&*call.name, &*call.arguments)).collect();
    assert_eq!(calls, [("f\"1", "{}"), ("weather", r#"{"city": "Köln"}"#)]);
    assert_eq!(answer.content, "");

    let grammar = Grammar::ToolCalls { functions, is_parallel: false };
    let mut matcher = compile(&grammar).matcher();
    assert_eq!(follow(&mut matcher, tokenizer().encode(&two, false).unwrap()), Some(true));
    assert_eq!(matcher.next_tokens().unwrap().allowed, Vec::<u32>::new());
}

#[test]
fn a_text_may_be_of_either_kind() {
    let calls = Grammar::ToolCalls {
        functions: vec![FunctionSchema { name: "f".to_owned(), parameters: None }],
        is_parallel: false,
    };
    let either = Grammar::Either(Box::new(calls), Box::new(Grammar::JsonObject));
    for reasoning in [Reasoning::Off, Reasoning::Optional] {
        let grammar = compiler().compile(&either, reasoning).unwrap();
        check(&grammar, r#"{"a": 1}"#, Some(true));
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
        check(&grammar, call, Some(true));
        check(&grammar, "[", None);
    }
}

#[test]
fn a_text_begins_after_its_reasoning() {
    let grammar = Grammar::Choice(vec!["yes".to_owned()]);
    let opened = compiler().compile(&grammar, Reasoning::Opened).unwrap();
    check(&opened, "yes", Some(false));
    check(&opened, "\nHm: no?\n</thin</think>\n\nyes", Some(true));
    check(&opened, "</think>yes", Some(true));
    check(&opened, "</think>no", None);
    check(&opened, "</think>\n\n\n", None);
    let optional = compiler().compile(&grammar, Reasoning::Optional).unwrap();
    check(&optional, "yes", Some(true));
    check(&optional, "<think>\nyes\n</think>\n\nyes", Some(true));
    check(&optional, "<think>\nyes\n", Some(false));
    check(&optional, "no", None);
    let mut matcher = optional.matcher();
    assert_eq!(follow(&mut matcher, [THINK, 256]), Some(false));
}

#[track_caller]
fn check_refusal(grammar: &Grammar, message: &str) {
    let start = Instant::now();
    let error = compiler().compile(grammar, Reasoning::Off).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
    assert!(error.starts_with("the grammar can't be used: ") && error.len() < 1000, "{error}");
    // The time that one may take at most, and room for a slow machine.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn what_cannot_be_compiled_is_refused_with_the_reason() {
    let schema =
        |schema: Value, message: &str| check_refusal(&Grammar::JsonSchema(schema), message);
    schema(json!([]), "expected a schema that is an object");
    schema(json!(true), "expected a schema that is an object");
    schema(json!({"type": "text"}), "Invalid type: text");
    schema(json!({"type": "object", "properties": 5}), "properties");
    schema(json!({"not": {"type": "string"}}), "not");
    schema(json!({"$ref": "#/$defs/none"}), "none");
    schema(json!({"$ref": "https://example.com/schema"}), "example.com");
    schema(json!({"type": "string", "pattern": "("}), "regex");
    schema(json!({"minimum": 5, "maximum": 3, "type": "integer"}), "minimum");
    schema(json!({"type": "integer", "multipleOf": 1_000_003}), "`multipleOf`: expected");
    check_refusal(&Grammar::Regex("(".to_owned()), "regex");
    check_refusal(&Grammar::Regex("a\\bc".to_owned()), "regex");
    check_refusal(&Grammar::Choice(Vec::new()), "at least one character");
    check_refusal(&Grammar::Choice(vec![String::new()]), "at least one character");
    check_refusal(&Grammar::Lark("root ::= \"a\"".to_owned()), "");
    check_refusal(&Grammar::Lark("start: other".to_owned()), "other");
    check_refusal(&Grammar::Lark(String::new()), "");
    let function = |parameters| Grammar::ToolCalls {
        functions: vec![FunctionSchema { name: "f".to_owned(), parameters: Some(parameters) }],
        is_parallel: false,
    };
    check_refusal(&function(json!([])), "the parameters of `f`: expected a schema");
    let list = json!({"type": "array"});
    check_refusal(&function(list), "the parameters of `f`: expected the type \"object\"");
}

#[test]
fn hostile_grammars_are_refused_and_the_compiler_goes_on() {
    let chain = |num: usize, link: fn(Value) -> Value| {
        let name = |index| format!("#/$defs/{index}");
        let mut definitions: Map<String, Value> = (0..num)
            .map(|index| (index.to_string(), link(json!({"$ref": name(index + 1)}))))
            .collect();
        definitions.insert(num.to_string(), json!({"type": "string"}));
        Grammar::JsonSchema(json!({"$ref": name(0), "$defs": definitions}))
    };
    let nested = "(".repeat(200_000);
    let enumeration: Vec<String> = (0..20_000).map(|index| index.to_string()).collect();
    check_refusal(&chain(20_000, |next| next), "expected at most 131072 bytes");
    check_refusal(&Grammar::JsonSchema(json!({"enum": enumeration})), "expected at most");
    check_refusal(&Grammar::Regex(nested.clone()), "expected at most");
    check_refusal(&Grammar::Regex(nested[..1000].to_owned()), "regex");
    check_refusal(&Grammar::Lark(format!("start: {}", &nested[..1000])), "at most 256 brackets");
    let pattern = json!({"type": "string", "pattern": "(a|ab)*", "minLength": 100_000});
    check_refusal(&Grammar::JsonSchema(pattern), "`minLength`");
    let alternatives: Vec<Value> =
        (0..8).map(|i| json!({"type": "object", "required": [i.to_string()]})).collect();
    let product = json!({"allOf": vec![json!({"anyOf": alternatives}); 7]});
    check_refusal(&Grammar::JsonSchema(product), "too");

    // Deep enough for any stack of usual size, and no reason to refuse them.
    let compiler = compiler();
    for grammar in [
        chain(3000, |next| next),
        chain(1000, |next| json!({"allOf": [next, {"type": "string"}]})),
        chain(1000, |next| json!({"type": "object", "properties": {"a": next}})),
    ] {
        let grammar = compiler.compile(&grammar, Reasoning::Off).unwrap();
        assert!(!grammar.matcher().next_tokens().unwrap().may_end);
    }
}
