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

/// The offsets of an answer that repeats its prompt, and its text.
fn echo(prompt: Value, more: Value) -> (Vec<usize>, String) {
    let mut request = json!({"prompt": prompt, "echo": true, "logprobs": 0});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = ask(request);
    let offsets = answer["choices"][0]["logprobs"]["text_offset"].as_array().unwrap().iter();
    let offsets = offsets.map(|offset| usize::try_from(offset.as_u64().unwrap()).unwrap());
    (offsets.collect(), texts(&answer)[0].to_owned())
}

#[test]
fn offsets_point_at_the_text_that_is_shown() {
    let mut ids: Vec<u32> = "aé<say>ab</say>".bytes().map(u32::from).collect();
    ids.insert(1, 256);
    ids.push(257);
    let check = |skip_special_tokens, expected_text: &str, first: &[usize], last: &[usize]| {
        let more = json!({"skip_special_tokens": skip_special_tokens});
        let (offsets, text) = echo(json!(ids), more);
        assert_eq!(text, expected_text);
        assert!(offsets.is_sorted(), "{offsets:?}");
        assert_eq!(offsets[..5], *first);
        assert_eq!(offsets[offsets.len() - 3..], *last);
    };
    // Tokens that aren't shown stand where the next one does.
    check(true, "aé<say>ab</say>ab", &[0, 1, 1, 1, 2], &[15, 15, 16]);
    check(false, "a<end>é<say>ab</say><answer>ab", &[0, 1, 6, 6, 7], &[20, 28, 29]);

    // A text is repeated as it came, which need not be how the tokenizer has it.
    let (offsets, text) = echo(json!("e\u{301}x<say>ab</say><answer>"), json!({}));
    assert_eq!(text, "e\u{301}x<say>ab</say><answer>ab");
    assert_eq!(offsets[..4], [0, 0, 2, 3]);
    assert_eq!(offsets[offsets.len() - 3..], [16, 24, 25]);
}

#[test]
fn of_tokens_with_one_text_the_likeliest_counts() {
    // What comes after <answer> is the first byte of é, and here it is no byte of a character: both read U+FFFD.
    let mut ids: Vec<u32> = "<say>é</say>".bytes().map(u32::from).collect();
    ids.extend([257, 0xFF]);
    let ask = |as_token_ids| {
        let answer = ask(json!({
            "prompt": ids, "echo": true, "logprobs": 1, "max_tokens": 1,
            "return_tokens_as_token_ids": as_token_ids,
        }));
        let logprobs = &answer["choices"][0]["logprobs"];
        let at = ids.len() - 1;
        (logprobs["tokens"][at].clone(), logprobs["top_logprobs"][at].clone())
    };
    let (token, top) = ask(false);
    assert_eq!(token, "\u{FFFD}");
    let top = top.as_object().unwrap();
    assert_eq!(top.len(), 1);
    assert!(top["\u{FFFD}"].as_f64().unwrap() > -1.0, "{top:?}");

    let (token, top) = ask(true);
    assert_eq!(token, "token_id:255");
    assert!(top["token_id:195"].as_f64().unwrap() > -1.0, "{top}");
    assert!(top["token_id:255"].as_f64().unwrap() < -20.0, "{top}");
}

#[test]
fn token_ids_are_returned_on_request() {
    let prompts = ["<say>é</say><answer>", "<say>two</say><answer>"];
    let tokens = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let expected = |index: usize| {
        let said = ["é", "two"][index];
        let prompt = [tokens(&format!("<say>{said}</say>")), vec![257]].concat();
        // With the token that ended it.
        (json!(prompt), json!([tokens(said), vec![256]].concat()))
    };
    let request = json!({"prompt": prompts, "return_token_ids": true});
    let answer = ask(request.clone());
    for index in 0..2 {
        let choice = &answer["choices"][index];
        let (prompt, said) = expected(index);
        assert_eq!(choice["prompt_token_ids"], prompt);
        assert_eq!(choice["token_ids"], said);
    }
    assert_eq!(answer["usage"]["completion_tokens"], 7);

    for echo in [false, true] {
        let mut request = request.clone();
        request["stream"] = true.into();
        request["echo"] = echo.into();
        let chunks = post(shared(), "/v1/completions", &request).chunks();
        for index in 0..2 {
            let own = chunks.iter().map(|chunk| &chunk["choices"][0]);
            let own: Vec<_> = own.filter(|choice| choice["index"] == index).collect();
            let (prompt, said) = expected(index);
            assert_eq!(own[0]["prompt_token_ids"], prompt);
            assert!(own[1..].iter().all(|choice| choice.get("prompt_token_ids").is_none()));
            let ids = own.iter().flat_map(|choice| choice["token_ids"].as_array().unwrap());
            assert_eq!(json!(ids.collect::<Vec<_>>()), said);
        }
    }
    let plain = ask(json!({"prompt": prompts}));
    assert!(plain["choices"][0].get("token_ids").is_none());

    let judged = ask(json!({
        "prompt": prompts[0], "return_token_ids": true, "echo": true, "logprobs": 0, "max_tokens": 0,
    }));
    assert_eq!(judged["choices"][0]["token_ids"], json!([]));
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
