//! Where answers end: at stop strings, and cut by `max_tokens`; the same whole and streamed.

use serde_json::{Value, json};

use super::client::post;
use super::shared;

/// An answer, as both forms tell it.
#[derive(Debug, PartialEq)]
struct Told {
    reasoning: String,
    content: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    finish_reason: String,
    stop_reason: Value,
}

fn request(said: &str, fields: &Value) -> Value {
    let mut request = json!({
        "messages": [{"role": "user", "content": format!("<say>{said}</say>")}],
        "temperature": 0,
    });
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn whole(request: &Value) -> Vec<Told> {
    let answer = post(shared(), "/v1/chat/completions", request);
    assert_eq!(answer.status, 200, "{answer:?}");
    let choices = answer.json()["choices"].take();
    let told = choices.as_array().unwrap().iter().map(|choice| {
        let message = &choice["message"];
        let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
        let call =
            |call: Value| (text(&call["function"]["name"]), text(&call["function"]["arguments"]));
        Told {
            reasoning: text(&message["reasoning_content"]),
            content: text(&message["content"]),
            calls: calls.into_iter().map(call).collect(),
            finish_reason: text(&choice["finish_reason"]),
            stop_reason: choice["stop_reason"].clone(),
        }
    });
    told.collect()
}

/// Puts a stream's chunks together as clients do.
fn streamed(request: &Value) -> Vec<Told> {
    let mut request = request.clone();
    request["stream"] = true.into();
    let chunks = post(shared(), "/v1/chat/completions", &request).chunks();
    let n = request["n"].as_u64().unwrap_or(1);
    let choice = |index: u64| {
        let mut told = Told {
            reasoning: String::new(),
            content: String::new(),
            calls: Vec::new(),
            finish_reason: String::new(),
            stop_reason: Value::Null,
        };
        for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
            if choice["index"] != index {
                continue;
            }
            assert_eq!(told.finish_reason, "", "nothing follows the reason: {chunks:?}");
            let delta = &choice["delta"];
            told.reasoning += &text(&delta["reasoning_content"]);
            told.content += &text(&delta["content"]);
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                if call["id"].is_string() {
                    assert_eq!(index, told.calls.len());
                    told.calls.push((text(&call["function"]["name"]), String::new()));
                }
                told.calls[index].1 += &text(&call["function"]["arguments"]);
            }
            if !choice["finish_reason"].is_null() {
                assert_eq!(*delta, json!({}), "the reason has a chunk of its own");
                told.finish_reason = text(&choice["finish_reason"]);
                told.stop_reason = choice["stop_reason"].clone();
            }
        }
        told
    };
    (0..n).map(choice).collect()
}

/// What is answered where `said` is said, in both forms and twice.
#[track_caller]
fn answer(said: &str, fields: Value) -> Told {
    let request = request(said, &fields);
    let one = whole(&request).pop().unwrap();
    assert_eq!(streamed(&request), std::slice::from_ref(&one), "{said:?} {fields}");
    let mut several = request;
    several["n"] = 2.into();
    let whole = whole(&several);
    assert_eq!(streamed(&several), whole, "{said:?} {fields}");
    assert_eq!(whole.iter().collect::<Vec<_>>(), [&one, &one], "{said:?} {fields}");
    one
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}])
}

#[test]
fn an_answer_is_the_same_whole_and_streamed_wherever_it_is_cut() {
    const TEXTS: [&str; 2] = [
        "<think>\nHm.\n</think>\n\nI ask.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"parameters\": \"{\\\"a\\\": 1}\"\n</tool_call>\n<tool_call>\n{\"id\": 1, \"name\": \"time\", \"arguments\": null}\n</tool_call>",
    ];
    for said in TEXTS {
        let full = whole(&request(said, &json!({"tools": tools()}))).pop().unwrap();
        for max_tokens in 1..=said.len() {
            let request = request(said, &json!({"tools": tools(), "max_tokens": max_tokens}));
            let told = whole(&request).pop().unwrap();
            assert_eq!(streamed(&request), std::slice::from_ref(&told), "{max_tokens}");
            assert_eq!(told.finish_reason, "length");
            assert!(full.content.starts_with(&told.content), "{max_tokens} {told:?}");
            assert!(full.reasoning.starts_with(&told.reasoning), "{max_tokens} {told:?}");
            for ((name, arguments), (full_name, full_arguments)) in
                told.calls.iter().zip(&full.calls)
            {
                assert_eq!(name, full_name);
                assert!(full_arguments.starts_with(arguments), "{max_tokens} {told:?}");
            }
        }
    }
}

#[test]
fn a_cut_call_holds_the_text_so_far() {
    let said = "I ask.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";
    let cut = |text: &str| {
        let max_tokens = said.find(text).unwrap() + text.len();
        let told = answer(said, json!({"tools": tools(), "max_tokens": max_tokens}));
        assert_eq!((&*told.content, &*told.finish_reason), ("I ask.", "length"));
        told.calls
    };
    let call = |arguments: &str| vec![("weather".to_owned(), arguments.to_owned())];
    assert_eq!(cut("<tool_c"), []);
    assert_eq!(cut("{\"name\": \"wea"), []);
    assert_eq!(cut("\"weather\""), call(""));
    assert_eq!(cut("{\"city\": \"Bo"), call("{\"city\": \"Bo"));
}

#[test]
fn lenient_calls_are_read_alike() {
    let check = |json: &str, arguments: &str| {
        let told = answer(&format!("<tool_call>\n{json}\n</tool_call>"), json!({"tools": tools()}));
        assert_eq!(told.calls, [("weather".to_owned(), arguments.to_owned())], "{json}");
        assert_eq!((&*told.content, &*told.finish_reason), ("", "tool_calls"), "{json}");
    };
    check(
        r#"{"name": "weather", "arguments": "{\"city\": \"K\u00f6ln\"}"}"#,
        r#"{"city": "Köln"}"#,
    );
    check(r#"{"name": "weather", "parameters": {"city": "Bonn"}}"#, r#"{"city": "Bonn"}"#);
    check(r#"{"name": "weather", "arguments": null}"#, "{}");
    check(r#"{"name": "weather"}"#, "{}");
    check(r#"{"id": 7, "name": "weather", "arguments": {"x": 1}}"#, r#"{"x": 1}"#);
    check(r#"{"name": "weather", "arguments": {"x": 1}, "type": "function"}"#, r#"{"x": 1}"#);
    check(r#"{"name": "weather", "arguments": {"x": 1}"#, r#"{"x": 1}"#);
    check(r#"{"name": "weather", "arguments": {"x": 1}}}"#, r#"{"x": 1}"#);
}

#[test]
fn a_call_ends_reasoning_that_is_not_closed() {
    let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>";
    let told = answer(&format!("<think>\nI ask.\n{call}"), json!({"tools": tools()}));
    assert_eq!((&*told.reasoning, &*told.content), ("I ask.", ""));
    assert_eq!(told.calls, [("weather".to_owned(), "{}".to_owned())]);
    assert_eq!(told.finish_reason, "tool_calls");
    // What is closed later was a draft.
    let told =
        answer(&format!("<think>\nI ask.\n{call}\n</think>\n\nNo."), json!({"tools": tools()}));
    assert_eq!((told.reasoning, &*told.content), (format!("I ask.\n{call}"), "No."));
    assert_eq!((told.calls, &*told.finish_reason), (vec![], "stop"));
}

#[test]
fn stop_strings_are_not_looked_for_in_reasoning() {
    let said = "<think>\nOne, two.\n\nSo: one.\n</think>\n\nIt is one, two.\n\nQ";
    let check = |stop: Value, content: &str, stop_reason: Value| {
        for fields in [json!({"stop": stop}), json!({"stop": stop, "tools": tools()})] {
            let told = answer(said, fields.clone());
            assert_eq!(told.reasoning, "One, two.\n\nSo: one.", "{fields}");
            assert_eq!(
                (told.content, &told.stop_reason),
                (content.to_owned(), &stop_reason),
                "{fields}"
            );
        }
    };
    check(json!(["\n\n"]), "It is one, two.", json!("\n\n"));
    check(json!(["two", "Q"]), "It is one, ", json!("two"));
    check(json!(["So"]), "It is one, two.\n\nQ", Value::Null);
    // Not across its end either.
    check(json!(["</think>", ".\n</think>\n\nIt"]), "It is one, two.\n\nQ", Value::Null);
    // Nor where the prompt opens the block.
    let opened = json!({"enable_thinking": true});
    let told = answer(said, json!({"stop": ["two"], "chat_template_kwargs": opened}));
    assert_eq!((&*told.reasoning, &*told.content), ("One, two.\n\nSo: one.", "It is one, "));
    // Whether reasoning begins is not certain before something is said.
    let told = answer("\n\none\n\ntwo", json!({"stop": ["\n\n"]}));
    assert_eq!((&*told.content, &told.stop_reason), ("", &json!("\n\n")));
    let told = answer("<thi", json!({"stop": ["hi"]}));
    assert_eq!((&*told.content, &told.stop_reason), ("<t", &json!("hi")));
}

#[test]
fn stop_strings_end_calls() {
    let call =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";
    let check = |stop: &str, calls: &[(&str, &str)], reason: &str| {
        let told =
            answer(&format!("I ask.\n{call}\n{call}"), json!({"stop": stop, "tools": tools()}));
        let own = |&(name, arguments): &(&str, &str)| (name.to_owned(), arguments.to_owned());
        assert_eq!(told.calls, calls.iter().map(own).collect::<Vec<_>>(), "{stop}");
        assert_eq!((&*told.content, &*told.finish_reason), ("I ask.", reason), "{stop}");
        assert_eq!(told.stop_reason, stop);
    };
    check("</tool_call>", &[("weather", "{\"city\": \"Bonn\"}")], "tool_calls");
    check("Bonn", &[("weather", "{\"city\": \"")], "stop");
    check("name", &[], "stop");
    let told = answer(&format!("I ask. {call}"), json!({"stop": "<tool_call>", "tools": tools()}));
    assert_eq!((&*told.content, told.calls), ("I ask. ", vec![]));
}

#[test]
fn a_stop_string_counts_if_it_ends_after_min_tokens() {
    let check = |said: &str, fields: Value, expected: &str| {
        let told = answer(said, fields.clone());
        assert_eq!(told.content, expected, "{fields}");
        let prompt = format!("<say>{said}</say><answer>");
        let mut request = json!({"prompt": prompt, "temperature": 0, "max_tokens": 50});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let completion = post(shared(), "/v1/completions", &request).json();
        assert_eq!(completion["choices"][0]["text"], expected, "{fields}");
        assert_eq!(completion["choices"][0]["stop_reason"], told.stop_reason);
    };
    let said = "one, two, one, two";
    for (min_tokens, expected) in [
        (0, "one, "),
        (5, "one, "),
        (7, "one, "),
        (8, "one, two, one, "),
        (17, "one, two, one, "),
        (18, said),
    ] {
        check(said, json!({"stop": "two", "min_tokens": min_tokens}), expected);
    }
    let fields = json!({"stop": "two", "min_tokens": 6, "include_stop_str_in_output": true});
    check(said, fields, "one, two");
    // One that ends too early can overlap one that counts.
    check("aaaa", json!({"stop": "aa", "min_tokens": 2}), "a");
    check("\n\nab\n\n", json!({"stop": "\n\n", "min_tokens": 2}), "\n\nab");
}

#[test]
fn a_streams_last_text_and_its_finish_reason_come_apart() {
    let request = json!({
        "prompt": "<say>abc</say><answer>", "temperature": 0, "max_tokens": 3, "stream": true, "logprobs": 0,
        "stream_options": {"include_usage": true},
    });
    let chunks = post(shared(), "/v1/completions", &request).chunks();
    let [texts @ .., end, usage] = &chunks[..] else { panic!("{chunks:?}") };
    assert!(texts.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    let text: String = texts.iter().map(|chunk| text(&chunk["choices"][0]["text"])).collect();
    assert_eq!(text, "abc");
    assert_eq!(
        end["choices"],
        json!([{
            "index": 0, "text": "", "logprobs": null, "finish_reason": "length", "stop_reason": null,
            "prompt_logprobs": null,
        }])
    );
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(3)));

    let request = request_of_chat("abc");
    let chunks = post(shared(), "/v1/chat/completions", &request).chunks();
    let [.., last, end, usage] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!(last["choices"][0]["delta"], json!({"content": "c"}));
    assert!(last["choices"][0]["finish_reason"].is_null());
    assert_eq!(end["choices"][0]["delta"], json!({}));
    assert_eq!(
        (&end["choices"][0]["finish_reason"], &end["choices"][0]["logprobs"]),
        (&json!("length"), &Value::Null)
    );
    assert_eq!(usage["choices"], json!([]));
}

fn request_of_chat(said: &str) -> Value {
    let fields = json!({
        "max_tokens": 3, "stream": true, "logprobs": true, "stream_options": {"include_usage": true},
    });
    request(said, &fields)
}
