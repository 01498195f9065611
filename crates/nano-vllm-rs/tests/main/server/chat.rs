//! `/v1/chat/completions`.

use serde_json::{Value, json};

use super::client::post;
use super::shared;

const PATH: &str = "/v1/chat/completions";

/// A request that is answered by `said`, with more fields.
fn request(said: &str, fields: Value) -> Value {
    let mut request = json!({
        "model": "scripted",
        "messages": [{"role": "user", "content": format!("<say>{said}</say>")}],
        "temperature": 0,
    });
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

#[track_caller]
fn ask(said: &str, fields: Value) -> Value {
    let answer = post(shared(), PATH, &request(said, fields));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[track_caller]
fn stream(said: &str, fields: Value) -> Vec<Value> {
    let mut request = request(said, fields);
    request["stream"] = true.into();
    post(shared(), PATH, &request).chunks()
}

/// The texts of a field of the deltas, put together.
fn joined(chunks: &[Value], field: &str) -> String {
    let deltas = chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta"));
    deltas.filter_map(|delta| delta[field].as_str()).collect()
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}])
}

#[test]
fn an_answer_has_the_form_of_the_openai_api() {
    let answer = ask("Grüß Gott", json!({}));
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["model"], "scripted");
    assert_eq!(
        answer["choices"],
        json!([{
            "index": 0,
            "message": {"role": "assistant", "content": "Grüß Gott", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
            "stop_reason": null,
        }])
    );
    let usage = &answer["usage"];
    // 11 bytes and the token that ends the text.
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(usage["total_tokens"], usage["prompt_tokens"].as_u64().unwrap() + 12);
}

#[test]
fn a_stream_brings_the_same_text_in_whole_characters() {
    let chunks = stream("Grüß €", json!({"stream_options": {"include_usage": true}}));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(chunks.len() > 5, "{chunks:?}");
    assert_eq!(joined(&chunks, "content"), "Grüß €");
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 11);
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null()));
    let finishes = chunks.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]);
    let finishes: Vec<_> = finishes.filter(|reason| !reason.is_null()).collect();
    assert_eq!(finishes, ["stop"]);
}

#[test]
fn usage_is_told_only_if_asked_for() {
    let chunks = stream("Hi", json!({}));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let chunks = stream("Hi", json!({"stream_options": options}));
    assert!(chunks.iter().all(|chunk| chunk["usage"]["prompt_tokens"].as_u64() > Some(0)));
}

#[test]
fn texts_end_where_they_are_asked_to() {
    let check = |fields: Value, content: &str, reason: &str, stop: Value| {
        let answer = ask("one, two, three", fields.clone());
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], content, "{fields}");
        assert_eq!(choice["finish_reason"], reason, "{fields}");
        assert_eq!(choice["stop_reason"], stop, "{fields}");
        let streamed = stream("one, two, three", fields.clone());
        assert_eq!(joined(&streamed, "content"), content, "{fields}");
    };
    check(json!({"max_tokens": 5}), "one, ", "length", Value::Null);
    check(json!({"max_completion_tokens": 3, "max_tokens": 9}), "one", "length", Value::Null);
    check(json!({"stop": "two"}), "one, ", "stop", json!("two"));
    check(json!({"stop": ["three", ", t"]}), "one", "stop", json!(", t"));
    let fields = json!({"stop": "two", "include_stop_str_in_output": true});
    check(fields, "one, two", "stop", json!("two"));
    check(json!({"stop": ",", "min_tokens": 6}), "one, two", "stop", json!(","));
    check(json!({"stop_token_ids": [44]}), "one", "stop", json!(44));
    let fields = json!({"stop_token_ids": [44], "include_stop_str_in_output": true});
    check(fields, "one,", "stop", json!(44));
    // 256 ends the text; without it nothing else is likely.
    let answer = ask("ab", json!({"ignore_eos": true, "max_tokens": 4}));
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn several_answers_are_told_apart() {
    let answer = ask("abc", json!({"n": 3}));
    for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], "abc");
    }
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let chunks = stream("abc", json!({"n": 3}));
    for index in 0..3 {
        let own: Vec<Value> =
            chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index).cloned().collect();
        assert_eq!(joined(&own, "content"), "abc");
        assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn log_probabilities_come_with_the_bytes_of_tokens() {
    let fields = json!({"logprobs": true, "top_logprobs": 2});
    let answer = ask("é!", fields.clone());
    let content = &answer["choices"][0]["logprobs"]["content"];
    let bytes: Vec<&Value> =
        content.as_array().unwrap().iter().map(|token| &token["bytes"]).collect();
    assert_eq!(bytes, [&json!([0xC3]), &json!([0xA9]), &json!([0x21])]);
    assert_eq!(content[2]["token"], "!");
    assert!(content[2]["logprob"].as_f64().unwrap() > -1e-6);
    let top = content[2]["top_logprobs"].as_array().unwrap();
    assert_eq!((top.len(), &top[0]["token"]), (2, &json!("!")));
    assert!(top[1]["logprob"].as_f64().unwrap() < -20.0);
    let streamed: Vec<Value> = stream("é!", fields)
        .iter()
        .filter_map(|chunk| chunk.pointer("/choices/0/logprobs/content")?.as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(&json!(streamed), content);
    let answer = ask("Hi", json!({"prompt_logprobs": 1}));
    let prompt = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
    assert!(prompt[0].is_null() && prompt[1]["115"]["decoded_token"] == "s", "{prompt:?}");
}

#[test]
fn tokens_are_told_by_their_ids_on_request() {
    let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>";
    for said in ["Grüß Gott", "<think>\nHm.\n</think>\n\nYes.", call] {
        let fields = json!({"tools": tools(), "return_token_ids": true, "logprobs": true, "return_tokens_as_token_ids": true});
        let answer = ask(said, fields.clone());
        let bytes: Vec<u32> = said.bytes().map(u32::from).collect();
        // With the token that ended it.
        let expected = json!([&bytes[..], &[256]].concat());
        assert_eq!(answer["choices"][0]["token_ids"], expected);
        let prompt = answer["prompt_token_ids"].as_array().unwrap();
        assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
        assert_eq!(prompt.last().unwrap(), 257);
        let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
        let spelled: Vec<_> = content.iter().map(|token| token["token"].clone()).collect();
        let token_id = |byte: &u32| json!(format!("token_id:{byte}"));
        assert_eq!(spelled, bytes.iter().map(token_id).collect::<Vec<_>>());
        assert_eq!(content[0]["bytes"], json!([bytes[0]]));

        let chunks = stream(said, fields);
        assert_eq!(chunks[0]["prompt_token_ids"], json!(prompt));
        assert!(chunks[1..].iter().all(|chunk| chunk.get("prompt_token_ids").is_none()));
        let ids = chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/token_ids"));
        let ids = ids.flat_map(|ids| ids.as_array().unwrap().clone());
        assert_eq!(json!(ids.collect::<Vec<_>>()), expected);
    }
}

#[test]
fn reasoning_is_told_apart_from_the_answer() {
    let said = "<think>\nHm.\n</think>\n\nYes.";
    let message = &ask(said, json!({}))["choices"][0]["message"];
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("Hm."), &json!("Yes."))
    );
    let chunks = stream(said, json!({}));
    assert_eq!(joined(&chunks, "reasoning_content"), "Hm.");
    assert_eq!(joined(&chunks, "content"), "Yes.");
    // The template of the scripted model closes the block, so that no other begins.
    let fields = json!({"chat_template_kwargs": {"enable_thinking": false}, "max_tokens": 3});
    let message = &ask("01234567890123456789012", fields)["choices"][0]["message"];
    assert!(message.get("reasoning_content").is_none(), "{message}");
    // By the API's own field as well, unless the template is told otherwise.
    let num_tokens = |fields: Value| ask("a", fields)["usage"]["prompt_tokens"].take();
    let kwargs = |thinks: bool| json!({"enable_thinking": thinks});
    let without = num_tokens(json!({"chat_template_kwargs": kwargs(false)}));
    assert_eq!(num_tokens(json!({"reasoning_effort": "none"})), without);
    assert_ne!(num_tokens(json!({"reasoning_effort": "medium"})), without);
    assert_eq!(
        num_tokens(json!({"reasoning_effort": "none", "chat_template_kwargs": kwargs(true)})),
        num_tokens(json!({"chat_template_kwargs": kwargs(true)}))
    );
}

#[test]
fn tool_calls_are_taken_out_of_the_text() {
    const CALL: &str = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";
    let both = format!("{CALL}\n{CALL}");
    let answer = ask(CALL, json!({"tools": tools()}));
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "Let me see.");
    let call = &choice["message"]["tool_calls"][0];
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(call["type"], "function");
    let function = json!({"name": "weather", "arguments": "{\"city\": \"Bonn\"}"});
    assert_eq!(call["function"], function);

    let chunks = stream(CALL, json!({"tools": tools(), "tool_choice": "auto"}));
    let calls: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0")).collect();
    assert_eq!(calls[0]["function"], json!({"name": "weather", "arguments": ""}));
    assert!(calls[1..].iter().all(|call| call.get("id").is_none() && call["index"] == 0));
    let arguments: String =
        calls.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{\"city\": \"Bonn\"}");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

    let num_calls = |fields| {
        let answer = ask(&both, fields);
        answer["choices"][0]["message"]["tool_calls"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(num_calls(json!({"tools": tools()})), 2);
    assert_eq!(num_calls(json!({"tools": tools(), "parallel_tool_calls": false})), 1);
    assert_eq!(num_calls(json!({"tools": tools(), "tool_choice": "none"})), 0);
    assert_eq!(num_calls(json!({})), 0);
}

#[test]
fn a_conversation_that_begins_alike_is_found_in_the_cache() {
    let said = "The same long beginning, which fills several blocks of the cache by itself.";
    let first = ask(said, json!({"cache_salt": "one"}));
    let cached =
        |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached(&first), Some(0));
    assert!(cached(&ask(said, json!({"cache_salt": "one"}))) > Some(50));
    assert_eq!(cached(&ask(said, json!({"cache_salt": "two"}))), Some(0));
    // However many continuations there are, the prompt counts once.
    let several = ask(said, json!({"cache_salt": "one", "n": 3}));
    assert_eq!(cached(&several), cached(&ask(said, json!({"cache_salt": "one"}))));
}
