//! What clients write that decides nothing, or that says a known thing in another way.

use nano_vllm_rs::server::ServerConfig;
use serde_json::{Value, json};

use super::client::{get, post, receive, send};
use super::{serve, shared};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn with(mut request: Value, fields: &Value) -> Value {
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

fn chat() -> Value {
    json!({"messages": [{"role": "user", "content": "<say>Hi</say>"}], "temperature": 0})
}

fn completion() -> Value {
    json!({"prompt": "<say>Hi</say><answer>", "temperature": 0})
}

/// The first choice of an answer.
#[track_caller]
fn choice(path: &str, request: &Value) -> Value {
    let answer = post(shared(), path, request);
    assert_eq!(answer.status, 200, "{request}: {answer:?}");
    answer.json()["choices"][0].take()
}

/// A field that makes no difference to the answer.
#[track_caller]
fn check(path: &str, field: &str, value: &Value) {
    let request = if path == CHAT { chat() } else { completion() };
    let choice = choice(path, &with(request, &json!({field: value})));
    let text = if path == CHAT { &choice["message"]["content"] } else { &choice["text"] };
    assert_eq!(
        (text, &choice["finish_reason"]),
        (&json!("Hi"), &json!("stop")),
        "{field}: {value}"
    );
}

#[test]
fn null_says_nothing_in_any_field() {
    let document = get(shared(), "/openapi.json").json();
    for (path, schema, required) in
        [(CHAT, "ChatRequest", "messages"), (COMPLETIONS, "CompletionRequest", "prompt")]
    {
        let parts = document["components"]["schemas"][schema]["allOf"].as_array().unwrap();
        let names = parts.iter().flat_map(|part| {
            let named = part["$ref"].as_str().and_then(|path| document.pointer(&path[1..]));
            named.unwrap_or(part)["properties"].as_object().unwrap().keys()
        });
        let names = names.filter(|name| *name != required);
        let nulls: Vec<(String, Value)> = names.map(|name| (name.clone(), Value::Null)).collect();
        assert!(nulls.len() > 25);
        let nulls: Value = nulls.into_iter().collect();
        let request = if path == CHAT { chat() } else { completion() };
        let mut nulls = nulls;
        nulls["temperature"] = json!(0);
        choice(path, &with(request, &nulls));
    }
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let numbers = json!({
        "max_tokens": 9.0, "min_tokens": 0.0, "n": 1.0, "top_k": 1.0, "seed": 3.0, "priority": 0.0,
        "prompt_logprobs": 1.0, "stop_token_ids": [7.0], "logit_bias": {"7": 1.0},
        "allowed_token_ids": [72.0, 105.0, 256.0], "best_of": 1.0,
    });
    let of_chat = json!({"logprobs": true, "top_logprobs": 1.0, "max_completion_tokens": 9e0});
    choice(CHAT, &with(with(chat(), &numbers), &of_chat));
    choice(COMPLETIONS, &with(with(completion(), &numbers), &json!({"logprobs": 1.0})));
    let by_tokens = json!({"prompt": [97.0, 257.0], "max_tokens": 1.0});
    choice(COMPLETIONS, &by_tokens);
    choice(COMPLETIONS, &json!({"prompt": [[97.0], [98]], "max_tokens": 1}));
    let answer = post(shared(), "/detokenize", &json!({"tokens": [97.0, 98]}));
    assert_eq!(answer.json(), json!({"prompt": "ab"}));
}

#[test]
fn fields_that_decide_nothing_are_taken() {
    for path in [CHAT, COMPLETIONS] {
        for (field, value) in [
            ("model", json!("")),
            ("user", json!("me")),
            ("user", json!(7)),
            ("metadata", json!({"a": "b"})),
            ("store", json!(true)),
            ("service_tier", json!("flex")),
            ("safety_identifier", json!("me")),
            ("prompt_cache_key", json!("me")),
            ("prompt_cache_retention", json!("24h")),
            ("request_id", json!("mine")),
            ("stop", json!("")),
            ("stop", json!([])),
            ("stop", json!([""])),
            ("seed", json!(u64::MAX)),
            ("seed", json!(i64::MIN)),
            ("temperature", json!(2.5)),
            ("top_p", json!(0)),
            ("top_p", json!(1)),
            ("logit_bias", json!({})),
            ("logit_bias", json!({"7": 0.0})),
            ("stop_token_ids", json!([])),
            ("best_of", json!(1)),
            ("return_token_ids", json!(false)),
            ("truncate_prompt_tokens", Value::Null),
            ("spaces_between_special_tokens", json!(true)),
            ("length_penalty", json!(1.0)),
            ("early_stopping", json!(false)),
            ("use_beam_search", json!(false)),
            ("repeat_penalty", json!(1)),
            ("repeat_penalty", json!(1.0)),
            ("mirostat", json!(0)),
            ("n_predict", json!(-1)),
            ("grammar", json!("")),
            ("thinking_budget", json!(-1)),
            ("unheard_of", json!(1)),
        ] {
            check(path, field, &value);
        }
    }
    for (field, value) in [
        ("verbosity", json!("low")),
        ("verbosity", json!("medium")),
        ("verbosity", json!("high")),
        ("modalities", json!(["text"])),
        ("audio", Value::Null),
        ("functions", json!([])),
        ("function_call", json!("auto")),
        ("tools", json!([])),
        ("tool_choice", json!("none")),
        ("tool_choice", json!("auto")),
        ("parallel_tool_calls", json!(false)),
        ("prediction", json!({"type": "content", "content": "Hi"})),
        ("web_search_options", Value::Null),
        ("response_format", json!({"type": "text"})),
        ("logprobs", json!(false)),
        ("top_logprobs", json!(0)),
        ("include_reasoning", json!(true)),
        ("separate_reasoning", json!(true)),
        ("reasoning_format", json!("auto")),
        ("continue_final_message", json!(false)),
        ("documents", json!([])),
        ("chat_template", json!("")),
        ("chat_template_kwargs", json!({})),
    ] {
        check(CHAT, field, &value);
    }
    check(COMPLETIONS, "suffix", &json!(""));
    let both =
        json!({"tools": [], "tool_choice": "auto", "functions": null, "function_call": "none"});
    choice(CHAT, &with(chat(), &both));
    // A stream's options that only others know.
    let options = json!({"include_usage": true, "include_obfuscation": false, "extra": 1});
    let request = with(chat(), &json!({"stream": true, "stream_options": options}));
    assert!(post(shared(), CHAT, &request).chunks().len() > 2);
}

#[test]
fn a_top_p_of_nothing_takes_the_likeliest_token() {
    let request = json!({
        "messages": [{"role": "user", "content": "<say>the likeliest</say>"}],
        "temperature": 100, "top_p": 0, "n": 3,
    });
    let answer = post(shared(), CHAT, &request).json();
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(choice["message"]["content"], "the likeliest");
    }
}

#[test]
fn completions_know_the_newer_name_of_their_length() {
    let request = with(completion(), &json!({"max_completion_tokens": 1, "max_tokens": 9}));
    let choice = choice(COMPLETIONS, &request);
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("H"), &json!("length")));
}

#[test]
fn nothing_need_be_added_to_a_prompt() {
    let prompt = &completion()["prompt"];
    for (echo, text) in [(true, prompt.clone()), (false, json!(""))] {
        let fields = json!({"max_tokens": 0, "echo": echo, "n": 2});
        let answer = post(shared(), COMPLETIONS, &with(completion(), &fields)).json();
        for index in 0..2 {
            let choice = &answer["choices"][index];
            assert_eq!((&choice["text"], &choice["finish_reason"]), (&text, &json!("length")));
        }
        assert_eq!(answer["usage"]["completion_tokens"], 0);

        let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
        let request = with(with(completion(), &fields), &streamed);
        let chunks = post(shared(), COMPLETIONS, &request).chunks();
        let (usage, chunks) = chunks.split_last().unwrap();
        assert_eq!(usage["usage"]["completion_tokens"], 0);
        let joined: String = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["index"] == 0)
            .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
            .collect();
        assert_eq!(json!(joined), text);
    }
}

#[test]
fn conversations_are_read_however_they_are_written() {
    let answer_of =
        |messages: Value| choice(CHAT, &json!({"messages": messages, "temperature": 0}));
    let user = json!({"role": "user", "content": "<say>Hi</say>"});
    let call = |arguments: Value| json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}});
    for before in [
        json!({"role": "developer", "content": "Be kind."}),
        json!({"role": "system", "content": [{"type": "input_text", "text": "a"}, "b"], "name": "Ada"}),
        json!({"role": "assistant", "content": null, "tool_calls": [call(json!("{}"))]}),
        json!({"role": "assistant", "tool_calls": [call(json!({"x": 1})), call(Value::Null)]}),
        json!({"role": "assistant", "content": "a", "tool_calls": null, "function_call": null,
            "audio": null, "refusal": null, "annotations": [], "reasoning": null}),
        json!({"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]}),
        json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}),
        json!({"role": "assistant", "content": "a", "reasoning": "Hm.", "reasoning_details": []}),
        json!({"role": "tool", "content": null, "tool_call_id": "1"}),
        json!({"role": "tool", "content": "without its call's id"}),
        json!({"role": "function", "name": "f", "content": "3"}),
    ] {
        let found = answer_of(json!([before, user]));
        assert_eq!(found["message"]["content"], "Hi", "{before}");
    }
    let parts = json!(["<say>one", {"type": "text", "text": "two"}, {"text": "three</say>"}]);
    let found = answer_of(json!([{"role": "user", "content": parts}]));
    assert_eq!(found["message"]["content"], "one\ntwo\nthree");
}

#[test]
fn reasoning_bears_both_names_and_what_nobody_asked_for_is_null() {
    let said = "<think>\nHm.\n</think>\n\nYes.";
    let request = json!({
        "messages": [{"role": "user", "content": format!("<say>{said}</say>")}], "temperature": 0,
    });
    let answer = post(shared(), CHAT, &request).json();
    assert_eq!(answer.get("prompt_logprobs"), Some(&Value::Null));
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (&message["reasoning"], &message["reasoning_content"]),
        (&json!("Hm."), &json!("Hm."))
    );
    let chunks = post(shared(), CHAT, &with(request, &json!({"stream": true}))).chunks();
    let joined = |field: &str| -> String {
        let deltas = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"][field]);
        deltas.filter_map(Value::as_str).collect()
    };
    assert_eq!((&*joined("reasoning"), &*joined("reasoning_content")), ("Hm.", "Hm."));
    let choice = choice(COMPLETIONS, &completion());
    assert_eq!(choice.get("prompt_logprobs"), Some(&Value::Null));
}

#[test]
fn thinking_is_switched_by_any_of_its_names() {
    let prompt = |path: &str, fields: Value| {
        let mut request = with(chat(), &fields);
        request["max_tokens"] = json!(1);
        let answer = post(shared(), path, &request);
        assert_eq!(answer.status, 200, "{fields}: {answer:?}");
        let answer = answer.json();
        answer.get("tokens").unwrap_or(&answer["usage"]["prompt_tokens"]).clone()
    };
    for path in [CHAT, "/tokenize"] {
        let told =
            |is_on: bool| prompt(path, json!({"chat_template_kwargs": {"enable_thinking": is_on}}));
        for is_on in [false, true] {
            let kind = if is_on { "enabled" } else { "disabled" };
            for fields in [
                json!({"enable_thinking": is_on}),
                json!({"thinking": {"type": kind}}),
                json!({"reasoning": {"enabled": is_on}}),
                json!({"reasoning": {"effort": if is_on { "high" } else { "none" }}}),
                json!({"reasoning_effort": if is_on { "low" } else { "minimal" }}),
            ] {
                assert_eq!(prompt(path, fields.clone()), told(is_on), "{fields}");
            }
        }
        assert_ne!(told(true), told(false));
    }
}

#[test]
fn paths_may_end_with_a_slash_and_schemes_are_written_in_any_case() {
    assert_eq!(post(shared(), "/v1/chat/completions/", &chat()).status, 200);
    assert_eq!(post(shared(), "/v1/completions/", &completion()).status, 200);
    assert_eq!(post(shared(), "/tokenize/", &json!({"prompt": "a"})).status, 200);
    for path in ["/v1/models/", "/v1/models/scripted/", "/health/", "/metrics/", "/version/"] {
        assert_eq!(get(shared(), path).status, 200, "{path}");
    }
    assert_eq!(get(shared(), "/v1/chat/completions/").status, 405);

    let address =
        serve(ServerConfig { api_keys: vec!["key".to_owned()], ..ServerConfig::new("scripted") });
    for (header, status) in [
        ("Bearer key", 200),
        ("bearer key", 200),
        ("BEARER  key", 200),
        ("Bearer keys", 401),
        ("Basic key", 401),
        ("key", 401),
    ] {
        for path in ["/v1/models", "/v1/models/", "/v1/models/scripted/"] {
            let header = format!("authorization: {header}\r\n");
            let answer = receive(send(address, "GET", path, &header, b""));
            assert_eq!(answer.status, status, "{header}");
        }
    }
}
