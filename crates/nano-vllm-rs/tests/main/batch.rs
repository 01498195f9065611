//! `nv generate` of many requests.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::nv::{command, greedy, model_with, nv, refuse, stderr, stdout, str};

const PROMPTS: [&str; 3] = ["In the beginning", "And God said", "The LORD"];

fn file(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in");
    fs::write(&path, text).unwrap();
    (dir, path)
}

/// What `nv generate --jsonl` makes of `lines`, with more options.
fn jsonl(lines: &str, options: &[&str]) -> (Output, Vec<Value>) {
    let (_dir, path) = file(lines);
    let output = nv(&[&["generate", "--jsonl", str(&path)], options].concat());
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    let values = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output, values)
}

/// The results of lines that all succeed.
fn results(lines: &str, options: &[&str]) -> Vec<Value> {
    let (output, values) = jsonl(lines, options);
    assert!(output.status.success(), "{}", stderr(&output));
    values
}

fn text(result: &Value) -> &str {
    result["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn each_of_many_prompts_gets_what_it_gets_alone() {
    let expected: String =
        PROMPTS.map(|prompt| format!("==> {prompt} <==\n{}\n", greedy(&[prompt]))).concat();
    let [first, second, third] = PROMPTS;
    assert_eq!(greedy(&[first, "--prompt", second, "--prompt", third]), expected);
    let (_dir, path) = file(&format!("{first}\n\n{second}\r\n{third}"));
    assert_eq!(greedy(&["--prompt-file", str(&path)]), expected);
    // One at a time, in tiny chunks, with guesses: the same.
    let slow = ["--max-num-seqs", "1", "--max-num-batched-tokens", "2"];
    let options = ["--prompt-file", str(&path), "--num-speculative-tokens", "3"];
    assert_eq!(greedy(&[&options[..], &slow].concat()), expected);
}

#[test]
fn lines_of_json_are_answered_in_their_order() {
    // The first is the longest, and comes first all the same.
    let lines = r#"
        {"prompt": "In the beginning", "max_tokens": 40}
        {"prompt": [5, 6, 7], "max_tokens": 2, "return_token_ids": true}

        {"prompt": "And God said", "seed": 7, "temperature": 0.8, "max_tokens": 5}
    "#;
    let results = results(lines, &["--temperature", "0"]);
    let prompts_and_tokens: Vec<_> = results
        .iter()
        .map(|result| (result["index"].clone(), result["usage"]["completion_tokens"].clone()))
        .collect();
    assert_eq!(
        prompts_and_tokens,
        [(json!(0), json!(40)), (json!(1), json!(2)), (json!(2), json!(5))]
    );
    let long = stdout(&["generate", PROMPTS[0], "--temperature", "0", "--max-tokens", "40"]);
    assert_eq!(format!("{}\n", text(&results[0])), long);
    assert_eq!(results[0]["choices"][0]["finish_reason"], "length");
    assert_eq!(results[0]["choices"][0]["token_ids"], Value::Null);
    assert_eq!(results[0]["seed"], Value::Null);
    assert_eq!(results[1]["choices"][0]["token_ids"].as_array().unwrap().len(), 2);
    assert_eq!(results[1]["usage"]["prompt_tokens"], 3);
    let seeded = ["--temperature", "0.8", "--seed", "7", "--max-tokens", "5"];
    let seeded = stdout(&[&["generate", PROMPTS[1]], &seeded[..]].concat());
    assert_eq!(format!("{}\n", text(&results[2])), seeded);
    assert_eq!(results[2]["seed"], 7);
}

#[test]
fn a_wrong_line_is_an_error_of_its_own() {
    let lines = "{\"prompt\": \"The LORD\"}\n{\"prompt\": \"a\", \"top_p\": 2}\n\n{\"prompt\": 5}\nnonsense\n\
                 {\"prompt\": \"a\", \"logprobs\": 5000}\n{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n";
    let (output, results) = jsonl(lines, &["--max-tokens", "3", "--temperature", "0"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(results[0]["usage"]["completion_tokens"], 3);
    let errors: Vec<&str> = results[1..].iter().map(|r| r["error"].as_str().unwrap()).collect();
    assert_eq!(
        errors,
        [
            "line 2: top_p: expected a number from 0 to 1, found 2",
            "line 4: field `prompt`: expected a string or a list of token ids, found 5",
            "line 5: expected ident at line 1 column 2",
            "line 6: logprobs: expected at most the vocabulary's 2048, found 5000",
            "line 7: field `messages`: the model has no chat template",
        ]
    );
    assert!(stderr(&output).contains("6 requests; "), "{}", stderr(&output));
    assert!(stderr(&output).ends_with("; 5 failed\n"), "{}", stderr(&output));

    // In text, errors are talk.
    let long = "word ".repeat(2000);
    let output = nv(&["generate", &long, "--prompt", PROMPTS[2], "--max-tokens", "3"]);
    assert_eq!(output.status.code(), Some(1));
    let error = "error: prompt 1: the prompt has 2002 tokens: expected fewer than the model's 1024 positions\n";
    assert!(stderr(&output).contains(error), "{}", stderr(&output));
    assert!(output.stdout.starts_with(b"==> The LORD <==\n"));
}

#[test]
fn a_top_k_of_minus_1_is_all_as_in_vllm() {
    let lines = ["0", "-1", "1", "-2", "\"5\""]
        .map(|top_k| format!("{{\"prompt\": \"The LORD\", \"top_k\": {top_k}}}\n"));
    let options = ["--temperature", "1.5", "--seed", "3", "--max-tokens", "10", "--top-k", "1"];
    let (_, results) = jsonl(&lines.concat(), &options);
    assert_eq!(text(&results[1]), text(&results[0]));
    assert_ne!(text(&results[1]), text(&results[2]));
    for (result, found) in results[3..].iter().zip(["-2", "\"5\""]) {
        let error = result["error"].as_str().unwrap();
        let expected = format!("field `top_k`: expected a whole number from -1, found {found}");
        assert!(error.ends_with(&expected), "{error}");
    }
}

#[test]
fn a_conversation_goes_through_the_template_and_a_prompt_does_not() {
    let template = "{% for m in messages %}{{ m.content }} the {% endfor %}";
    let dir = model_with(&[("chat_template.jinja", Some(template))]);
    let lines = r#"{"messages": [{"role": "user", "content": "In"}, {"role": "assistant", "content": "all"}]}
        {"prompt": "In the all the "}"#;
    let options = ["--model", str(dir.path()), "--temperature", "0", "--max-tokens", "9"];
    let results = results(lines, &options);
    assert_eq!(text(&results[0]), text(&results[1]));
}

#[test]
fn logprobs_are_told_for_text_and_prompt() {
    let line = r#"{"prompt": "In the beginning", "max_tokens": 3, "logprobs": 2, "prompt_logprobs": 0,
        "return_token_ids": true}"#;
    let result = &results(&line.replace('\n', " "), &["--temperature", "0"])[0];
    let choice = &result["choices"][0];
    let logprobs = choice["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 3);
    let tokens: String = logprobs.iter().map(|one| one["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, text(result));
    for (one, token_id) in logprobs.iter().zip(choice["token_ids"].as_array().unwrap()) {
        assert_eq!(&one["token_id"], token_id);
        assert_eq!((&one["rank"], &one["top_logprobs"][0]["token_id"]), (&json!(1), token_id));
        assert_eq!(one["top_logprobs"].as_array().unwrap().len(), 2);
        assert!(one["logprob"].as_f64().unwrap() <= 0.0);
    }
    assert_eq!(result["prompt_logprobs"].as_array().unwrap().len(), 3);
}

#[test]
fn a_stop_string_ends_its_own_text_alone() {
    let whole = greedy(&[PROMPTS[0]]);
    let stop = whole.split_whitespace().nth(3).unwrap();
    let before = whole.split(stop).next().unwrap();
    assert_eq!(greedy(&[PROMPTS[0], "--stop", stop]), format!("{before}\n"));
    let kept = greedy(&[PROMPTS[0], "--stop", stop, "--include-stop-str-in-output"]);
    assert_eq!(kept, format!("{before}{stop}\n"));
    // Not before its time.
    let late = greedy(&[PROMPTS[0], "--stop", stop, "--min-tokens", "16"]);
    assert_eq!(late, whole);

    let options = ["--jsonl", "-", "--temperature", "1", "--max-tokens", "30", "-n", "4"];
    let mut child =
        command(&[&["generate"], &options[..]].concat()).stdin(Stdio::piped()).spawn().unwrap();
    let line = br#"{"prompt": "And God said", "seed": 5, "stop": ["e", "xyz"]}"#;
    child.stdin.take().unwrap().write_all(line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let choices = result["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for choice in choices {
        assert!(!choice["text"].as_str().unwrap().contains('e'), "{choice}");
        let is_stopped = choice["finish_reason"] == "stop";
        assert_eq!(choice["stop_reason"] == "e", is_stopped, "{choice}");
    }
    assert!(choices.iter().any(|choice| choice["finish_reason"] == "stop"));
}

#[test]
fn a_known_beginning_is_found_in_the_cache() {
    let prompt =
        "In the beginning God created the heaven and the earth and the earth was without form";
    let line = json!({ "prompt": prompt, "max_tokens": 2 }).to_string();
    // The second one runs when the first one has ended.
    let results =
        results(&format!("{line}\n{line}"), &["--max-num-seqs", "1", "--block-size", "8"]);
    let cached = |i: usize| &results[i]["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!((cached(0), cached(1)), (&json!(0), &json!(16)));
}

#[test]
fn every_option_has_its_effect() {
    let plain = greedy(&[PROMPTS[0]]);
    let token_ids = |options: &[&str]| {
        let output = greedy(&[&[PROMPTS[0], "--json", "--return-token-ids"], options].concat());
        let result: Value = serde_json::from_str(&output).unwrap();
        let token_ids = result["choices"][0]["token_ids"].as_array().unwrap().clone();
        token_ids.into_iter().map(|id| id.as_u64().unwrap()).collect::<Vec<_>>()
    };
    let tokens = token_ids(&[]);
    let first = tokens[0].to_string();
    assert_ne!(token_ids(&["--banned-token-ids", &first])[0], tokens[0]);
    assert_ne!(token_ids(&["--logit-bias", &format!("{first}:-100")])[0], tokens[0]);
    assert!(token_ids(&["--allowed-token-ids", "9,10"]).iter().all(|id| [9, 10].contains(id)));
    let place = tokens.iter().position(|id| *id == tokens[5]).unwrap();
    assert_eq!(token_ids(&["--stop-token-ids", &tokens[5].to_string()]), tokens[..place]);
    for penalty in ["--presence-penalty", "--frequency-penalty", "--repetition-penalty"] {
        assert_ne!(greedy(&[PROMPTS[0], penalty, "2"]), plain, "{penalty}");
    }
    let hot = ["--temperature", "5", "--seed", "1", "--max-tokens", "16"];
    let min_p = [&["generate", PROMPTS[0], "--min-p", "1"], &hot[..]].concat();
    assert_eq!(stdout(&min_p), plain);
    // An end that is ignored is only a token.
    let dir = model_with(&[(
        "generation_config.json",
        Some(&format!(r#"{{"eos_token_id": [{first}]}}"#)),
    )]);
    let model = ["--model", str(dir.path())];
    assert!(token_ids(&model).is_empty());
    assert_eq!(token_ids(&[&model[..], &["--ignore-eos"]].concat()), tokens);
    // Too little memory is told before anything is computed.
    let output = nv(&["generate", PROMPTS[0], "--kv-cache-memory", "1KiB"]);
    let error = "error: kv_cache_memory: expected at least 98304 bytes (a block of 32 tokens), found 1024\n";
    assert!(stderr(&output).ends_with(error), "{}", stderr(&output));
}

#[test]
fn bad_command_lines_are_usage_errors() {
    let check = |args: &[&str], expected: &str| refuse(&[&["generate"], args].concat(), expected);
    check(&["x", "--jsonl", "y"], "cannot be used with");
    check(&["--raw", "--jsonl", "y"], "cannot be used with");
    check(&["--prompt", "x", "--prompt-file", "y"], "cannot be used with");
    check(&["x", "--logprobs", "1"], "<--jsonl <FILE>|--json>");
    check(&["x", "--min-p", "2"], "min_p: expected a number from 0 to 1, found 2");
    check(&["x", "-n", "0"], "n: expected at least 1, found 0");
    check(&["x", "--stop", ""], "field `stop[0]`: expected a string of at least one character");
    check(&["x", "--include-stop-str-in-output"], "--stop <TEXT>");
    check(&["x", "--logit-bias", "5"], "expected TOKEN:BIAS, such as 42:-1.5");
    check(&["x", "--presence-penalty", "-3"], "presence_penalty: expected a number from -2 to 2");
    check(&["x", "--kv-cache-memory", "2GB"], "expected bytes, such as 500MiB");
}

#[test]
fn nothing_to_do_is_an_error() {
    let (_dir, path) = file("\n \n");
    for option in ["--jsonl", "--prompt-file"] {
        let output = nv(&["generate", option, str(&path)]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stderr(&output), format!("error: there is no prompt in {}\n", path.display()));
    }
}
