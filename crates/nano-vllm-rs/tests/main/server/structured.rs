//! Answers that are held to a form: what the scripted model would say is said where the form allows it, and the demo
//! checkpoint, which knows nothing of JSON, writes it.

use std::net::SocketAddr;
use std::sync::{OnceLock, mpsc};
use std::thread;

use nano_vllm_rs::config::GenerationConfig;
use nano_vllm_rs::engine::{Engine, EngineConfig, KvCacheMemory};
use nano_vllm_rs::model::{
    DType, Device, ModelFiles, Qwen3ForCausalLM, load_config, load_safetensors,
};
use nano_vllm_rs::server::{ServedModel, Server, ServerConfig, run};
use nano_vllm_rs::text::Tokenizer;
use serde_json::{Value, json};

use super::client::{get, post, receive, send};
use super::shared;
use crate::demo;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// The demo checkpoint, guessing ahead.
fn demo_server() -> SocketAddr {
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    *SERVER.get_or_init(|| {
        let files = ModelFiles::from_dir(demo()).unwrap();
        let config = load_config(&files.config).unwrap();
        let vb = load_safetensors(&files.weights, DType::F32, &Device::Cpu).unwrap();
        let engine_config = EngineConfig {
            kv_cache_memory: KvCacheMemory::Tokens(4096),
            num_speculative_tokens: 3,
            ..EngineConfig::default()
        };
        let model = Qwen3ForCausalLM::new(&config, vb).unwrap();
        let tokenizer = Tokenizer::from_dir(&files.dir).unwrap();
        let end = tokenizer.token_to_id("<|endoftext|>").unwrap();
        let served = ServedModel {
            tokenizer,
            chat_template: None,
            generation_config: GenerationConfig {
                eos_token_id: vec![end],
                ..GenerationConfig::default()
            },
        };
        let engine = Engine::new(model, engine_config).unwrap();
        let server = Server::new(engine, served, ServerConfig::new("demo")).unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || run(server, "127.0.0.1", 0, |address| sender.send(address).unwrap()));
        receiver.recv().unwrap()
    })
}

fn with(mut request: Value, fields: Value) -> Value {
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

/// A chat with the scripted model, which would say `said`.
fn scripted(said: &str, fields: Value) -> Value {
    let content = format!("<say>{said}</say>");
    with(json!({"messages": [{"role": "user", "content": content}], "temperature": 0}), fields)
}

/// The choice of an answer, which a stream gives as well.
#[track_caller]
fn choice(address: SocketAddr, request: &Value) -> Value {
    let answer = post(address, CHAT, request);
    assert_eq!(answer.status, 200, "{request}: {answer:?}");
    let choice = answer.json()["choices"][0].clone();
    let chunks = post(address, CHAT, &with(request.clone(), json!({"stream": true}))).chunks();
    let joined = |field: &str| -> String {
        let texts = chunks.iter().filter_map(|chunk| chunk.pointer(field)?.as_str());
        texts.collect()
    };
    let message = &choice["message"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    assert_eq!(joined("/choices/0/delta/content"), text(&message["content"]));
    assert_eq!(joined("/choices/0/delta/reasoning_content"), text(&message["reasoning_content"]));
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let arguments: String = calls.iter().map(|call| text(&call["function"]["arguments"])).collect();
    assert_eq!(joined("/choices/0/delta/tool_calls/0/function/arguments"), arguments);
    assert_eq!(joined("/choices/0/finish_reason"), text(&choice["finish_reason"]));
    choice
}

#[track_caller]
fn check(said: &str, fields: Value, content: &str) {
    let choice = choice(shared(), &scripted(said, fields.clone()));
    assert_eq!(choice["message"]["content"], content, "{fields}");
    assert_eq!(choice["finish_reason"], "stop", "{fields}");
}

fn city() -> Value {
    json!({
        "type": "object",
        "properties": {"city": {"enum": ["Bonn", "Köln"]}, "days": {"type": "integer", "maximum": 9, "minimum": 1}},
        "required": ["city", "days"],
        "additionalProperties": false,
    })
}

fn response_format(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": true}})
}

#[test]
fn each_field_holds_the_answer_to_its_form() {
    let said = r#"{"city": "Köln", "days": 3}"#;
    for fields in [
        json!({"response_format": response_format(&city())}),
        json!({"response_format": {"type": "json_object"}}),
        // As llama.cpp and Together have it.
        json!({"response_format": {"type": "json_object", "schema": city()}}),
        json!({"response_format": {"type": "json_object", "schema": {}}}),
        json!({"response_format": {"type": "json_schema", "schema": city()}}),
        json!({"guided_json": city()}),
        json!({"guided_json": city().to_string()}),
        json!({"structured_outputs": {"json": city(), "regex": null}}),
        json!({"structured_outputs": {"json_object": true}}),
        // All fields of vLLM's class, as Python writes it.
        json!({"structured_outputs": {
            "json": null, "regex": null, "choice": null, "grammar": null, "json_object": true,
            "disable_fallback": false, "disable_any_whitespace": false,
            "disable_additional_properties": false, "whitespace_pattern": null,
            "structural_tag": null, "_backend": null, "_backend_was_auto": false,
        }}),
        json!({"guided_regex": "\\{.*\\}"}),
    ] {
        check(said, fields, said);
    }
    check("yes", json!({"guided_regex": "^[a-z]{3}$"}), "yes");
    check("yes", json!({"structured_outputs": {"regex": "[a-z]+"}}), "yes");
    check("maybe", json!({"guided_choice": ["no", "maybe", "yes"]}), "maybe");
    check("maybe", json!({"structured_outputs": {"choice": ["no", "maybe"]}}), "maybe");
    let sums = "start: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]/\n";
    check("1+2+3", json!({"guided_grammar": sums}), "1+2+3");
    check("1+2+3", json!({"structured_outputs": {"grammar": sums}}), "1+2+3");
    check(
        "anything",
        json!({"response_format": {"type": "text"}, "guided_json": null}),
        "anything",
    );
}

#[test]
fn what_the_form_does_not_allow_is_not_said() {
    // Of tokens that are equally likely, the first.
    check("Well, 5.", json!({"guided_choice": ["yes", "no"]}), "no");
    check("12 and more", json!({"guided_regex": "[0-9]{2}"}), "12");
    let choice = choice(shared(), &scripted("I'd say Köln.", json!({"guided_json": city()})));
    let value: Value =
        serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
    assert!(["Bonn", "Köln"].contains(&value["city"].as_str().unwrap()), "{value}");
    // A text ends where its form does, whoever else would go on, and is cut where it is asked to be.
    check("aaaa<forever>", json!({"guided_regex": "a{7}", "ignore_eos": true}), "aaaaaaa");
    let answer =
        post(shared(), CHAT, &scripted("aaaa", json!({"guided_regex": "a+", "max_tokens": 2})));
    let answer = answer.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["message"]["content"], "aa");
    // A token each, and none for an end that nobody had to say.
    let answer = post(shared(), CHAT, &scripted("ab", json!({"guided_choice": ["ab"]}))).json();
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[test]
fn completions_have_the_same_fields() {
    let ask = |fields: Value| {
        let request = json!({"prompt": ["<say>y</say>", "<say>n</say>"], "temperature": 0, "n": 2});
        let answer = post(shared(), COMPLETIONS, &with(request, fields));
        assert_eq!(answer.status, 200, "{answer:?}");
        let choices = answer.json()["choices"].as_array().unwrap().clone();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let texts = ask(json!({"guided_choice": ["yes", "no"]}));
    assert_eq!(texts.len(), 4);
    assert!(texts.iter().all(|text| text == "yes" || text == "no"), "{texts:?}");
    let texts = ask(json!({"response_format": response_format(&city()), "max_tokens": 600}));
    for text in texts {
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.as_object().unwrap().len(), 2);
    }
}

#[test]
fn an_answer_is_held_to_its_form_after_its_reasoning() {
    let fields = json!({
        "guided_json": city(), "chat_template_kwargs": {"enable_thinking": true}, "max_tokens": 200,
    });
    // The prompt has said the beginning.
    let said = "<think>\nHm, \"Bonn\"?\n</think>\n\n{\"city\": \"Bonn\", \"days\": 1}";
    let choice = choice(shared(), &scripted(said, fields));
    assert_eq!(choice["message"]["reasoning_content"], "Hm, \"Bonn\"?");
    assert_eq!(choice["message"]["content"], r#"{"city": "Bonn", "days": 1}"#);
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "weather", "parameters": city(), "strict": true}},
        {"type": "function", "function": {"name": "time"}},
    ])
}

fn call(name: &str, arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

/// The names and arguments of the calls, and why the answer ended.
#[track_caller]
fn calls(said: &str, fields: Value) -> (Vec<(String, Value)>, Value) {
    let fields = with(json!({"tools": tools()}), fields);
    let choice = choice(shared(), &scripted(said, fields));
    assert!(choice["message"]["content"].is_null(), "{choice}");
    let call = |call: &Value| {
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let name = call["function"]["name"].as_str().unwrap().to_owned();
        (name, serde_json::from_str(arguments).unwrap())
    };
    let calls = choice["message"]["tool_calls"].as_array().unwrap().iter().map(call).collect();
    (calls, choice["finish_reason"].clone())
}

#[test]
fn calls_are_made_that_are_asked_for() {
    let bonn = || ("weather".to_owned(), json!({"city": "Bonn", "days": 2}));
    let time = || ("time".to_owned(), json!({}));
    let said = call("weather", r#"{"city": "Bonn", "days": 2}"#);
    let required = json!({"tool_choice": "required"});
    let named =
        |name: &str| json!({"tool_choice": {"type": "function", "function": {"name": name}}});
    assert_eq!(calls(&said, required.clone()), (vec![bonn()], json!("tool_calls")));
    assert_eq!(calls(&said, named("weather")), (vec![bonn()], json!("stop")));
    assert_eq!(calls(&said, named("time")), (vec![time()], json!("stop")));
    // However little the model wants to.
    let (found, reason) = calls("Let me think about it.", required.clone());
    assert!(["weather", "time"].contains(&&*found[0].0) && reason == "tool_calls", "{found:?}");

    let both = format!("{said}\n{}", call("time", "{}"));
    let single = with(required.clone(), json!({"parallel_tool_calls": false}));
    assert_eq!(calls(&both, single).0, [bonn()]);
    assert_eq!(calls(&both, named("weather")).0, [bonn()]);
    let request = scripted(&both, with(required, json!({"tools": tools()})));
    let answer = post(shared(), CHAT, &request).json();
    let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[1]["function"]["name"], "time");
}

#[test]
fn an_answer_in_a_form_may_call_tools_instead() {
    let fields = json!({"tools": tools(), "response_format": response_format(&city())});
    let said = call("time", "{}");
    let choice_of = |said: &str| choice(shared(), &scripted(said, fields.clone()));
    let called = choice_of(&said);
    assert_eq!(called["message"]["tool_calls"][0]["function"]["name"], "time");
    assert_eq!(called["finish_reason"], "tool_calls");
    let said = r#"{"city": "Bonn", "days": 2}"#;
    assert_eq!(choice_of(said)["message"]["content"], said);
}

#[test]
fn schemas_beside_the_type_hold_and_integers_keep_their_digits() {
    let id = 175_928_847_299_117_063_u64;
    let schema = json!({
        "type": "object", "properties": {"id": {"enum": [id]}}, "required": ["id"],
        "additionalProperties": false,
    });
    let said = format!(r#"{{"id": {id}}}"#);
    check(&said, json!({"response_format": {"type": "json_object", "schema": schema}}), &said);
    // More than 64 bits, and as a client writes it.
    let request = r#"{"messages": [{"role": "user", "content": "a"}], "guided_json": {"const": 123456789012345678901234567890}}"#;
    let headers = "content-type: application/json\r\n";
    let answer = receive(send(shared(), "POST", CHAT, headers, request.as_bytes()));
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "123456789012345678901234567890");
}

#[track_caller]
fn refuse(fields: Value, param: &str, message: &str) {
    let answer = post(shared(), CHAT, &scripted("a", fields.clone()));
    assert_eq!(answer.status, 400, "{fields}: {answer:?}");
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["param"], param, "{fields}: {error}");
    let found = error["message"].as_str().unwrap();
    for word in ["coerce_one_of", "f64", "usize", "x-guidance", "lenient"] {
        assert!(!found.contains(word), "{found}");
    }
    assert!(found.contains(message) && found.len() < 900, "{fields}: {found}");
    assert_eq!(get(shared(), "/health").status, 200);
}

#[test]
fn forms_that_make_no_sense_are_refused_by_field() {
    let schema = "response_format.json_schema.schema";
    let format = |schema: Value| json!({"response_format": response_format(&schema)});
    refuse(json!({"response_format": {"type": "xml"}}), "response_format.type", "expected text");
    refuse(
        json!({"response_format": {"type": "json_schema"}}),
        "response_format.json_schema",
        "an object",
    );
    refuse(
        json!({"response_format": {"type": "structural_tag"}}),
        "response_format",
        "not supported",
    );
    refuse(format(Value::Null), schema, "found nothing");
    let beside =
        |kind: &str, schema: Value| json!({"response_format": {"type": kind, "schema": schema}});
    let field = "response_format.schema";
    refuse(beside("json_object", json!({"uniqueItems": true})), field, "`uniqueItems`");
    refuse(beside("json_object", json!(5)), field, "an object");
    refuse(beside("json_schema", json!({"type": "thing"})), field, "Invalid type: thing");
    let mut twice = response_format(&city());
    twice["schema"] = city();
    refuse(json!({"response_format": twice}), field, "one schema");
    refuse(format(json!("{}")), schema, "an object");
    refuse(format(json!({"type": "thing"})), schema, "Invalid type: thing");
    refuse(format(json!({"$ref": "#/$defs/none"})), schema, "none");
    refuse(format(json!({"type": "string", "pattern": "("})), schema, "regex");
    // Not in the words of the library that compiles them.
    refuse(format(json!({"minimum": "a"})), schema, "minimum");
    let parts = ["a", "b"].map(|name| json!({"properties": {name: {"type": "string"}}}));
    refuse(format(json!({"oneOf": parts})), schema, "oneOf");
    refuse(json!({"guided_json": "{"}), "guided_json", "expected a JSON schema");
    refuse(json!({"guided_json": [1]}), "guided_json", "an object");
    refuse(json!({"guided_regex": "("}), "guided_regex", "regex");
    refuse(json!({"guided_regex": 5}), "guided_regex", "expected a string");
    refuse(json!({"guided_choice": []}), "guided_choice", "at least one character");
    refuse(json!({"guided_choice": "a"}), "guided_choice", "expected a list, found \"a\"");
    refuse(json!({"guided_grammar": "root ::= x"}), "guided_grammar", "");
    refuse(
        json!({"structured_outputs": {"xml": "a"}}),
        "structured_outputs.xml",
        "unknown: expected `json`",
    );
    refuse(json!({"structured_outputs": {"json": null}}), "structured_outputs", "expected `json`");
    refuse(json!({"structured_outputs": {"regex": "("}}), "structured_outputs.regex", "regex");
    refuse(
        json!({"guided_regex": "a", "guided_choice": ["a"]}),
        "guided_choice",
        "`guided_regex`, too",
    );
    refuse(json!({"guided_whitespace_pattern": " "}), "guided_whitespace_pattern", "not supported");

    // Deep, wide and without end.
    let deep = (0..100).fold(json!({"type": "string"}), |inner, _| json!({"items": inner}));
    refuse(format(json!({"allOf": [deep, {"$ref": "#/none"}]})), schema, "none");
    let definitions: serde_json::Map<String, Value> = (0..9000)
        .map(|index| (index.to_string(), json!({"$ref": format!("#/$defs/{}", index + 1)})))
        .collect();
    refuse(format(json!({"$ref": "#/$defs/0", "$defs": definitions})), schema, "bytes");
    refuse(json!({"guided_json": "[".repeat(100_000)}), "guided_json", "expected a JSON schema");
    refuse(json!({"guided_regex": "(".repeat(10_000)}), "guided_regex", "regex");
    refuse(
        json!({"guided_grammar": format!("start: {}", "(".repeat(10_000))}),
        "guided_grammar",
        "brackets",
    );
    // Of whom each token asks too much.
    let doubled: Vec<String> =
        (0..60).map(|index| format!("r{index}: r{0} r{0}\n", index + 1)).collect();
    let doubled = doubled.concat();
    let grammar = format!("start: r0 \"b\"\n{doubled}r60: \"a\"?\n");
    let answer = post(shared(), CHAT, &scripted("a", json!({"guided_grammar": grammar})));
    assert_eq!(answer.status, 400, "{answer:?}");
}

#[test]
fn tools_that_make_no_sense_are_refused_by_field() {
    let tools = |fields: Value| with(json!({"tools": tools()}), fields);
    let named = json!({"type": "function", "function": {"name": "none"}});
    refuse(tools(json!({"tool_choice": named})), "tool_choice.function.name", "found \"none\"");
    refuse(
        tools(json!({"tool_choice": {"type": "function"}})),
        "tool_choice.function.name",
        "a string",
    );
    refuse(tools(json!({"tool_choice": {"type": "custom"}})), "tool_choice.type", "function");
    refuse(
        tools(json!({"tool_choice": "required", "guided_regex": "a"})),
        "guided_regex",
        "`tool_choice`",
    );
    // Of several tools, the one that is wrong; said early, or only by what compiles it.
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let good = || tool("good", json!({"type": "object"}));
    let pattern = json!({"properties": {"x": {"type": "string", "pattern": "("}}});
    let overlapping = json!({"properties": {"x": {"oneOf": [
        {"properties": {"a": {"type": "object"}}}, {"properties": {"b": {"type": "object"}}},
    ]}}});
    for (parameters, message) in [
        (json!({"type": "array"}), "`bad`"),
        (pattern, "regex"),
        (json!({"$ref": "#/none"}), "none"),
        (overlapping, "oneOf"),
    ] {
        for fields in [
            json!({"tools": [good(), tool("bad", parameters.clone())], "tool_choice": "required"}),
            json!({"tools": [good(), tool("bad", parameters.clone())], "response_format": {"type": "json_object"}}),
            json!({
                "tools": [good(), tool("bad", parameters.clone())],
                "tool_choice": {"type": "function", "function": {"name": "bad"}},
            }),
        ] {
            refuse(fields, "tools[1].function.parameters", message);
        }
    }
    // What is wrong with the form is not the tools' fault.
    let fields =
        json!({"tools": [good()], "response_format": response_format(&json!({"type": "thing"}))});
    refuse(fields, "response_format.json_schema.schema", "Invalid type: thing");
}

#[test]
fn a_model_that_knows_no_json_writes_it() {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 999},
            "kind": {"enum": ["prophet", "king", "priest"]},
            "sons": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3},
            "lives": {"type": "boolean"},
        },
        "required": ["name", "age", "kind", "sons", "lives"],
        "additionalProperties": false,
    });
    for (seed, temperature) in [(1, 0.0), (2, 0.7), (3, 1.0), (4, 1.5)] {
        let request = json!({
            "messages": [{"role": "user", "content": "And David the king said"}],
            "response_format": response_format(&schema),
            "seed": seed, "temperature": temperature, "max_tokens": 600,
        });
        let answer = choice(demo_server(), &request);
        assert_eq!(answer["finish_reason"], "stop", "{answer}");
        let text = answer["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(value.as_object().unwrap().len(), 5, "{text}");
        assert!(value["name"].as_str().unwrap().chars().count() <= 20, "{text}");
        assert!(value["age"].as_u64().unwrap() <= 999, "{text}");
        let kind = value["kind"].as_str().unwrap();
        assert!(["prophet", "king", "priest"].contains(&kind), "{text}");
        let sons = value["sons"].as_array().unwrap();
        assert!(sons.len() <= 3 && sons.iter().all(Value::is_string), "{text}");
        assert!(value["lives"].is_boolean(), "{text}");
    }
    // Several at once, each in the form.
    let request = json!({
        "messages": [{"role": "user", "content": "In the beginning"}],
        "guided_regex": "[A-Z][a-z]{2,8}( [a-z]{1,8}){2}\\.", "n": 4, "seed": 5, "temperature": 1,
    });
    let answer = post(demo_server(), CHAT, &request).json();
    for choice in answer["choices"].as_array().unwrap() {
        let text = choice["message"]["content"].as_str().unwrap();
        assert!(text.ends_with('.') && text.split(' ').count() == 3, "{text}");
        assert_eq!(choice["finish_reason"], "stop");
    }
}
