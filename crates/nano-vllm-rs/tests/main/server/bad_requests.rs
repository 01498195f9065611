//! Whatever comes in: an error that names the field, and a server that goes on.

use serde_json::{Value, json};

use super::client::{get, post, receive, send};
use super::shared;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Sends a body as it is.
fn send_body(path: &str, body: &[u8]) -> super::client::Answer {
    receive(send(shared(), "POST", path, "content-type: application/json\r\n", body))
}

#[track_caller]
fn check(path: &str, body: &Value, param: Option<&str>, message: &str) {
    let answer = post(shared(), path, body);
    assert_eq!(answer.status, 400, "{body}: {answer:?}");
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["param"].as_str(), param, "{body}: {error}");
    let found = error["message"].as_str().unwrap();
    assert!(found.contains(message), "{body}: {found}");
    assert_eq!(get(shared(), "/health").status, 200);
}

/// A chat with one field that is wrong.
#[track_caller]
fn check_field(field: &str, value: Value, message: &str) {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], field: value});
    check(CHAT, &body, Some(field), message);
}

#[test]
fn bodies_that_are_no_json_are_refused() {
    for (body, message) in [
        (&b""[..], "EOF"),
        (b"{\"messages\": [", "EOF"),
        (b"null", "found null"),
        (b"[]", "found a list"),
        (b"{\"prompt\": \"\xFF\xFE\"}", "invalid utf-8"),
        (b"{\"prompt\": \"\\ud800\"}", "hex escape"),
        (b"{\"temperature\": NaN}", "expected value"),
        (b"{\"temperature\": 1e999}", "number out of range"),
    ] {
        for path in [CHAT, COMPLETIONS, "/tokenize", "/detokenize"] {
            let answer = send_body(path, body);
            assert_eq!(answer.status, 400, "{answer:?}");
            let error = answer.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(error.contains(message), "{error}");
        }
    }
    let deep = format!("{{\"prompt\": {}}}", "[".repeat(100_000));
    assert_eq!(send_body(COMPLETIONS, deep.as_bytes()).status, 400);
    // A page of another origin can send this without asking.
    let plain = "content-type: text/plain\r\n";
    assert_eq!(receive(send(shared(), "POST", CHAT, plain, b"{}")).status, 415);
    assert_eq!(receive(send(shared(), "POST", CHAT, "", b"{}")).status, 415);
}

#[test]
fn wrong_types_and_values_are_refused_by_name() {
    check_field("temperature", json!("hot"), "expected a number, found \"hot\"");
    check_field("temperature", json!(-1), "expected a finite number from 0");
    check_field("top_p", json!(-0.5), "expected a number from 0 to 1");
    check_field("top_p", json!(1.5), "from 0 to 1");
    check_field("top_k", json!(-2), "expected -1 or more");
    check_field("min_p", json!(2), "from 0 to 1");
    check_field("repetition_penalty", json!(0), "above 0");
    check_field("presence_penalty", json!(3), "from -2 to 2");
    check_field("n", json!(0), "at least 1");
    check_field("n", json!(-1), "expected a whole number from 0, found -1");
    check_field("n", json!(1.5), "expected a whole number from 0, found 1.5");
    check_field("n", json!(1_000_000), "at most 1024");
    check_field("max_tokens", json!(0), "at least 1");
    check_field("max_tokens", json!(-5), "expected a whole number from 0, found -5");
    check_field("max_tokens", json!(1_000_000_000), "at most 2048 together");
    check_field("max_tokens", json!(1e9), "at most 2048 together");
    check_field("max_tokens", json!(1e300), "expected a whole number from 0");
    check_field("max_tokens", json!(u64::MAX), "at most 2048 together");
    check_field("max_completion_tokens", json!(4096), "at most 2048 together");
    check_field("min_tokens", json!(5000), "the length of an answer, found 5000");
    check_field("seed", json!(1.5), "expected a whole number, found 1.5");
    check_field("seed", json!(1e30), "expected a whole number");
    check_field("stop", json!(5), "a string or a list of strings");
    check_field("stop", json!(vec!["a"; 65]), "expected at most 64 strings, found 65");
    check_field("stop", json!("a".repeat(65_537)), "expected at most 65536 bytes in all");
    check_field("logit_bias", json!({"a": 1}), "token ids as keys");
    check_field("logit_bias", json!({"1": 1000}), "from -100 to 100");
    check_field("logit_bias", json!({"100000": 1}), "below the vocabulary's");
    check_field("logprobs", json!(5), "expected true or false, found 5");
    check_field("top_logprobs", json!(2), "only with `logprobs`");
    check_field("top_logprobs", json!(21), "at most 20");
    check_field("stream", json!("yes"), "expected true or false, found \"yes\"");
    check_field("stream_options", json!({"include_usage": true}), "only with `stream`");
    check_field("stop_token_ids", json!([999_999]), "below the vocabulary's");
    let token_ids: Vec<u32> = (0..1025).collect();
    check_field("stop_token_ids", json!(token_ids), "at most 1024 different tokens, found 1025");
    check_field("allowed_token_ids", json!([]), "at least one token id");
    check_field("priority", json!("high"), "expected a whole number from");
    check_field("priority", json!(1_u64 << 40), "expected a whole number from");
    check_field("cache_salt", json!(""), "at least one character");
    check_field("response_format", json!("json"), "expected an object");
    check_field("tools", json!({}), "expected a list, found an object");
    check_field("tool_choice", json!("required"), "only with `tools`");
    check_field("tool_choice", json!(5), "a string or an object");
    check_field("chat_template_kwargs", json!([]), "expected an object, found an empty list");
    check_field("reasoning_effort", json!("huge"), "expected one of none, minimal, low");
    check_field("enable_thinking", json!("no"), "expected true or false");
    check_field("verbosity", json!("loud"), "expected low, medium or high");
}

#[test]
fn errors_name_the_way_to_what_is_wrong_and_no_field_that_was_not_sent() {
    let chat = |fields: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let token_id = "expected a whole number from 0 to 4294967295, found";
    check(
        CHAT,
        &chat(json!({"stop_token_ids": [1, -1]})),
        Some("stop_token_ids[1]"),
        &format!("{token_id} -1"),
    );
    check(CHAT, &chat(json!({"stop": ["a", 1]})), Some("stop[1]"), "expected a string, found 1");
    check(
        CHAT,
        &chat(json!({"logit_bias": {"5": "a"}})),
        Some("logit_bias.5"),
        "expected a number, found \"a\"",
    );
    check(
        CHAT,
        &chat(json!({"stream": true, "stream_options": {"include_usage": 1}})),
        Some("stream_options.include_usage"),
        "expected true or false, found 1",
    );
    check(
        CHAT,
        &chat(json!({"max_completion_tokens": 5, "min_tokens": 9})),
        Some("min_tokens"),
        "expected at most `max_completion_tokens`, which is 5, found 9",
    );
    check(
        COMPLETIONS,
        &json!({"prompt": "a", "min_tokens": 17}),
        Some("min_tokens"),
        "expected at most 16, the length of an answer, found 17",
    );
    let long = "a".repeat(5000);
    let room = "expected less than 2048, so that an answer fits";
    let messages = json!({"messages": [{"role": "user", "content": long}]});
    check(CHAT, &messages, Some("messages"), room);
    check(COMPLETIONS, &json!({"prompt": long}), Some("prompt"), room);
    let tool = |parameters: Value| json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
    check(
        CHAT,
        &chat(json!({"tools": [tool(json!({})), tool(json!("none"))]})),
        Some("tools[1].function.parameters"),
        "expected an object, found a string",
    );
}

#[test]
fn as_many_stops_as_may_be_are_taken_and_tokens_that_come_twice_count_once() {
    let body = json!({
        "messages": [{"role": "user", "content": "Hi"}],
        "stop": vec!["a".repeat(1024); 64],
        "stop_token_ids": vec![256; 5000],
    });
    let answer = post(shared(), CHAT, &body);
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn conversations_that_make_no_sense_are_refused_by_their_message() {
    let check = |messages: Value, param, message| {
        check(CHAT, &json!({"messages": messages}), Some(param), message);
    };
    check(json!([]), "messages", "found an empty list");
    check(json!("Hi"), "messages", "a list of at least one message");
    check(Value::Null, "messages", "found nothing");
    let second = json!([{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}]);
    check(second, "messages[1].role", "found \"critic\"");
    check(json!([{"role": "user"}]), "messages[0].content", "a string or a list of parts");
    let image = json!([{"role": "user", "content": [{"type": "image_url"}]}]);
    check(image, "messages[0].content[0].type", "\"text\"");
    // The template's own words.
    check(
        json!([{"role": "user", "content": "refuse"}]),
        "messages",
        "the template does not want to",
    );
}

#[test]
fn prompts_that_make_no_sense_are_refused() {
    let check = |prompt: Value, param, message| {
        check(COMPLETIONS, &json!({"prompt": prompt, "max_tokens": 1}), Some(param), message);
    };
    check(Value::Null, "prompt", "found nothing");
    check(json!(""), "prompt", "the prompt is empty");
    check(json!([]), "prompt", "found an empty list");
    check(json!(["a", 1]), "prompt[1]", "found a number");
    check(json!([1, -1]), "prompt[1]", "expected a whole number from 0 to 4294967295");
    check(json!([5_000_000]), "prompt", "expected an id below 258");
    check(json!([[1], [2.5]]), "prompt[1][0]", "expected a whole number from 0 to 4294967295");
    check(json!(vec!["a"; 3000]), "prompt", "at most 2048 prompts");
    check(json!("a".repeat(5000)), "max_tokens", "at most 2048 together");
    let body = json!({"prompt": vec!["a"; 3], "n": 1000, "max_tokens": 1});
    self::check(COMPLETIONS, &body, Some("n"), "at most 2048 for all prompts together, found 3000");
}

#[test]
fn what_is_not_supported_is_refused_and_not_ignored() {
    let check = |path, field: &str, value: Value| {
        let body = json!({
            "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", field: value,
        });
        check(path, &body, Some(field), "is not supported yet");
    };
    for path in [CHAT, COMPLETIONS] {
        check(path, "best_of", json!(2));
        // Names of other servers for what this one calls otherwise, or lacks.
        for (field, value) in [
            ("json_schema", json!({"type": "object"})),
            ("format", json!("json")),
            ("regex", json!("a+")),
            ("grammar", json!("root ::= \"a\"")),
            ("ebnf", json!("root ::= \"a\"")),
            ("max_new_tokens", json!(5)),
            ("max_output_tokens", json!(5)),
            ("n_predict", json!(5)),
            ("min_new_tokens", json!(5)),
            ("repeat_penalty", json!(1.1)),
            ("typical_p", json!(0.9)),
            ("mirostat", json!(2)),
            ("thinking_budget", json!(0)),
            ("thinking_token_budget", json!(100)),
            ("reasoning_budget", json!(100)),
        ] {
            check(path, field, value);
        }
    }
    check(CHAT, "functions", json!([{"name": "f"}]));
    check(CHAT, "function_call", json!({"name": "f"}));
    check(CHAT, "modalities", json!(["audio"]));
    check(CHAT, "audio", json!({"voice": "alloy", "format": "wav"}));
    check(CHAT, "web_search_options", json!({}));
    check(CHAT, "include_reasoning", json!(false));
    check(CHAT, "separate_reasoning", json!(false));
    check(CHAT, "reasoning_format", json!("none"));
    for path in [CHAT, "/tokenize"] {
        check(path, "chat_template", json!("{{ messages }}"));
        check(path, "continue_final_message", json!(true));
        check(path, "documents", json!([{"title": "a", "text": "b"}]));
    }
    check(COMPLETIONS, "suffix", json!("end"));
    let budget = json!({
        "messages": [{"role": "user", "content": "Hi"}],
        "thinking": {"type": "enabled", "budget_tokens": 100},
    });
    self::check(CHAT, &budget, Some("thinking.budget_tokens"), "is not supported yet");
}
