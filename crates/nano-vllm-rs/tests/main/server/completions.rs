//! `/v1/completions`, `/tokenize` and `/detokenize`.

use serde_json::{Value, json};

use super::client::post;
use super::shared;

#[track_caller]
fn ask(fields: Value) -> Value {
    let mut request = json!({"model": "scripted", "temperature": 0, "max_tokens": 50});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let answer = post(shared(), "/v1/completions", &request);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[test]
fn prompts_are_texts_or_tokens_or_lists_of_them() {
    let tokens = |text: &str| [text.bytes().map(u32::from).collect(), vec![257]].concat();
    let check = |prompt: Value, expected: &[&str]| {
        let answer = ask(json!({"prompt": prompt}));
        assert_eq!(texts(&answer), expected, "{prompt}");
        assert_eq!(answer["object"], "text_completion");
    };
    // What is said begins after the token 257, `<answer>`.
    check(json!("<say>one</say><answer>"), &["one"]);
    check(json!(["<say>one</say><answer>", "<say>two</say><answer>"]), &["one", "two"]);
    check(json!(tokens("<say>by tokens</say>")), &["by tokens"]);
    check(
        json!([tokens("<say>by tokens</say>"), tokens("<say>second</say>")]),
        &["by tokens", "second"],
    );
}

#[test]
fn choices_of_prompts_follow_each_other() {
    let prompt = ["<say>one</say><answer>", "<say>two</say><answer>"];
    let answer = ask(json!({"prompt": prompt, "n": 2}));
    assert_eq!(texts(&answer), ["one", "one", "two", "two"]);
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    let request = json!({"prompt": prompt, "n": 2, "temperature": 0, "stream": true, "echo": true});
    let chunks = post(shared(), "/v1/completions", &request).chunks();
    for (index, expected) in ["one", "one", "two", "two"].into_iter().enumerate() {
        let own = chunks.iter().map(|chunk| &chunk["choices"][0]);
        let own = own.filter(|choice| choice["index"] == index);
        let text: String = own.map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(text, format!("{}{expected}", prompt[index / 2]));
    }
}

#[test]
fn an_echo_judges_the_prompt_too() {
    let prompt = "é<say>ab</say><answer>";
    let answer = ask(json!({"prompt": prompt, "echo": true, "logprobs": 1}));
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], format!("{prompt}ab"));
    let logprobs = &choice["logprobs"];
    // The bytes, of which the last token takes eight, and what is said.
    let num_tokens = prompt.len() - 7 + 2;
    for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[column].as_array().unwrap().len(), num_tokens, "{column}");
    }
    assert!(logprobs["token_logprobs"][0].is_null());
    assert!(logprobs["top_logprobs"][1].is_object());
    let offsets: Vec<_> = logprobs["text_offset"].as_array().unwrap().iter().collect();
    assert_eq!(offsets[..3], [0, 0, 1]);
    assert_eq!(offsets[num_tokens - 2..], [22, 23]);
    assert_eq!(logprobs["tokens"][num_tokens - 1], "b");

    let answer = ask(json!({"prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": 0}));
    assert_eq!(texts(&answer), [prompt]);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), num_tokens - 2);
}

#[test]
fn sixteen_tokens_are_the_default() {
    let request = json!({"prompt": "<forever><answer>", "temperature": 0});
    let answer = post(shared(), "/v1/completions", &request).json();
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let check = |request: Value, tokens: &[u32], text: &str| {
        let answer = post(shared(), "/tokenize", &request).json();
        assert_eq!(answer["tokens"], json!(tokens));
        assert_eq!(answer["count"], tokens.len());
        assert_eq!(answer["max_model_len"], 2048);
        let answer = post(shared(), "/detokenize", &json!({"tokens": tokens})).json();
        assert_eq!(answer, json!({"prompt": text}));
    };
    check(json!({"prompt": "aé"}), &[97, 0xC3, 0xA9], "aé");
    check(
        json!({"messages": [{"role": "user", "content": "a"}]}),
        &[117, 115, 101, 114, 58, 32, 97, 10, 257],
        "user: a\n<answer>",
    );
    let request = json!({"prompt": "a ", "return_token_strs": true});
    let answer = post(shared(), "/tokenize", &request).json();
    assert_eq!(answer["token_strs"], json!(["a", "Ġ"]));
}
