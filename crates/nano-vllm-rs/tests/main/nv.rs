//! The `nv` binary, run as a user runs it.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nano_vllm_rs::text::Tokenizer;
use serde_json::json;
use tempfile::TempDir;

use crate::{demo, greedy_reference};

pub(crate) const PROMPT: &str = "In the beginning";

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nv"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // No test reaches a hub, or depends on the shell that it was started from.
    command.env("HF_HUB_OFFLINE", "1").env_remove("NV_ISA").env_remove("RUST_LOG");
    command
}

pub(crate) fn nv(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// The output of a run that succeeds.
pub(crate) fn stdout(args: &[&str]) -> String {
    let output = nv(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asserts that a command line is refused as one that makes no sense, before anything is done.
#[track_caller]
pub(crate) fn refuse(args: &[&str], expected: &str) {
    let output = nv(args);
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(stderr.contains(expected), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty());
}

/// Greedy text of 16 tokens, with more options.
pub(crate) fn greedy(options: &[&str]) -> String {
    stdout(&[&["generate", "--temperature", "0", "--max-tokens", "16"], options].concat())
}

/// A copy of the demo checkpoint with some files written or, if `None`, left out.
pub(crate) fn model_with(files: &[(&str, Option<&str>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    for (name, content) in files {
        let path = dir.path().join(name);
        match content {
            Some(content) => fs::write(path, content).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
    }
    dir
}

pub(crate) fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn greedy_text_in_f32_is_that_of_transformers() {
    let (prompt, token_ids) = greedy_reference();
    let tokenizer = Tokenizer::from_file(demo().join("tokenizer.json")).unwrap();
    let prompt = tokenizer.decode(&prompt, false);
    let num_tokens = token_ids.len().to_string();
    let options = ["--temperature", "0", "--dtype", "f32", "--max-tokens", &num_tokens];
    let text = stdout(&[&["generate", &prompt][..], &options].concat());
    assert_eq!(text, tokenizer.decode(&token_ids, true) + "\n");
}

#[test]
fn talk_goes_to_stderr() {
    let output = nv(&["generate", PROMPT, "--max-tokens", "5"]);
    let stderr = stderr(&output);
    let (first, rest) = stderr.split_once('\n').unwrap();
    assert_eq!(
        first,
        "This is the demo checkpoint, a very small model. A larger one: \
         cargo run --release -- generate --model Qwen/Qwen3-0.6B \"In the beginning\""
    );
    let words = [
        "prompt: 4 tokens, ",
        " tok/s; first token after ",
        "s; generated: 5 tokens, ",
        " tok/s; cut at --max-tokens; --seed ",
    ];
    assert!(words.iter().all(|words| rest.contains(words)), "{rest}");

    let output = nv(&["generate", PROMPT, "--max-tokens", "5", "--model", str(&demo())]);
    assert_eq!(self::stderr(&output).lines().count(), 1);
}

#[test]
fn a_seed_chooses_the_text() {
    let text = |seed| stdout(&["generate", PROMPT, "--max-tokens", "24", "--seed", seed]);
    assert_eq!(text("1"), text("1"));
    assert_ne!(text("1"), text("2"));
}

#[test]
fn a_random_seed_is_told_and_repeats_the_text() {
    let output = nv(&["generate", PROMPT, "--max-tokens", "24"]);
    let stderr = stderr(&output);
    let (_, seed) = stderr.trim_end().rsplit_once("--seed ").unwrap();
    let again = stdout(&["generate", PROMPT, "--max-tokens", "24", "--seed", seed]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), again);
}

#[test]
fn the_likeliest_token_alone_is_greedy() {
    let expected = greedy(&[PROMPT]);
    let options = ["generate", PROMPT, "--max-tokens", "16"];
    assert_eq!(stdout(&[&options[..], &["--top-k", "1"]].concat()), expected);
    assert_eq!(stdout(&[&options[..], &["--top-p", "1e-9"]].concat()), expected);
}

#[test]
fn the_model_says_how_it_is_sampled_and_where_it_ends() {
    let expected = greedy(&[PROMPT]);
    let dir = model_with(&[("generation_config.json", Some(r#"{"max_new_tokens": 16}"#))]);
    assert_eq!(stdout(&["generate", PROMPT, "--model", str(dir.path())]), expected);

    let dir = model_with(&[("generation_config.json", None)]);
    let options = ["--model", str(dir.path()), "--max-tokens", "16"];
    assert_eq!(stdout(&[&["generate", PROMPT], &options[..]].concat()), expected);

    let (prompt, token_ids) = greedy_reference();
    let end = token_ids[2];
    let tokenizer = Tokenizer::from_file(demo().join("tokenizer.json")).unwrap();
    let prompt = tokenizer.decode(&prompt, false);
    let end_token = tokenizer.id_to_token(end).unwrap();
    let named = json!({"eos_token_id": [2022, end]}).to_string();
    // The tokenizer's own end counts beside those that are named.
    let its_own = json!({"eos_token": end_token}).to_string();
    for (file, content) in [("generation_config.json", named), ("tokenizer_config.json", its_own)] {
        let dir = model_with(&[(file, Some(&content))]);
        let options = ["--model", str(dir.path()), "--dtype", "f32", "--temperature", "0"];
        let output = nv(&[&["generate", &prompt], &options[..]].concat());
        let stderr = stderr(&output);
        assert!(stderr.contains("generated: 2 tokens"), "{file}: {stderr}");
        assert!(stderr.ends_with(&format!("; ended by {end_token}\n")), "{file}: {stderr}");
        assert_eq!(output.stdout, (tokenizer.decode(&token_ids[..2], true) + "\n").as_bytes());
    }
}

#[test]
fn the_recommended_repetition_penalty_and_min_p_are_applied() {
    let generate = |config: &str, options: &[&str]| {
        let dir = model_with(&[("generation_config.json", Some(config))]);
        let all = ["generate", PROMPT, "--max-tokens", "16", "--model", str(dir.path())];
        stdout(&[&all[..], options].concat())
    };
    let plain = greedy(&[PROMPT]);
    assert_ne!(generate(r#"{"repetition_penalty": 1.5}"#, &[]), plain);
    assert_eq!(generate(r#"{"repetition_penalty": 1.0}"#, &[]), plain);
    // Nothing but the likeliest token is as likely as it.
    let hot = ["--temperature", "5", "--seed", "1"];
    assert_eq!(generate(r#"{"min_p": 1.0}"#, &hot), plain);
    assert_ne!(generate(r#"{"min_p": 0.0}"#, &hot), plain);
}

#[test]
fn a_chat_template_is_used_unless_raw() {
    let dir = model_with(&[("chat_template.jinja", Some("In the {{ messages[0].content }}"))]);
    let options = ["--model", str(dir.path())];
    assert_eq!(greedy(&[&["beginning"], &options[..]].concat()), greedy(&[PROMPT]));
    assert_eq!(greedy(&[&["beginning", "--raw"], &options[..]].concat()), greedy(&["beginning"]));
}

#[test]
fn a_prompt_may_come_from_a_file_or_stdin() {
    let expected = greedy(&[PROMPT]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"In the beginning\n").unwrap();
    assert_eq!(greedy(&["--prompt-file", str(file.path())]), expected);

    let args = ["generate", "--temperature", "0", "--max-tokens", "16", "--prompt-file", "-"];
    let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"In the beginning\r\n").unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), expected);
}

#[test]
fn bad_command_lines_are_usage_errors() {
    let check = |args: &[&str], expected: &str| refuse(&[&["generate"], args].concat(), expected);
    check(&[], "required arguments were not provided");
    check(&["x", "--prompt-file", "y"], "cannot be used with");
    check(&["x", "--no-such-flag"], "unexpected argument '--no-such-flag'");
    let temperature = "temperature: expected a finite number from 0, found";
    check(&["x", "--temperature", "-1"], &format!("{temperature} -1"));
    check(&["x", "--temperature", "NaN"], &format!("{temperature} NaN"));
    check(&["x", "--temperature", "warm"], "invalid float literal");
    check(&["x", "--top-p", "1.5"], "top_p: expected a number from 0 to 1, found 1.5");
    check(&["x", "--top-k", "-2"], "expected a whole number from -1, found -2");
    check(&["x", "--max-tokens", "0"], "max_tokens: expected at least 1, found 0");
    check(&["x", "--threads", "0"], "0 is not in 1..=1024");
    check(&["x", "--threads", "10000"], "10000 is not in 1..=1024");
    check(&["x", "--device", "tpu"], "[possible values: cpu, cuda, metal]");
    check(&["x", "--dtype", "f16"], "[possible values: f32, bf16]");
    check(&["x", "--revision", "main"], "--model <ID|DIR>");
}

/// The error of a run that fails, the demo's introduction left out.
#[track_caller]
fn check_error(args: &[&str], expected: &str) {
    check_failure(&mut command(args), expected);
}

#[track_caller]
fn check_failure(command: &mut Command, expected: &str) {
    let output = command.output().unwrap();
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {stderr}");
    assert!(stderr.ends_with(&format!("{expected}\n")), "{command:?}: {stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn errors_say_what_is_wrong_and_why() {
    let generate = |options: &[&str], expected: &str| {
        check_error(&[&["generate", PROMPT], options].concat(), &format!("error: {expected}"));
    };
    generate(
        &["--model", "./no/such/folder"],
        "`./no/such/folder` is neither a folder nor a model id such as `Qwen/Qwen3-0.6B`",
    );
    let empty = tempfile::tempdir().unwrap();
    let folder = empty.path().display();
    generate(
        &["--model", str(empty.path())],
        &format!("{folder} has no config.json: is it a model folder?"),
    );
    let demo = demo();
    generate(
        &["--model", str(&demo), "--revision", "main"],
        &format!("--revision is for models of the hub, and {} is a folder", demo.display()),
    );
    let dir = model_with(&[("config.json", Some(r#"{"model_type": "llama"}"#))]);
    generate(
        &["--model", str(dir.path())],
        &format!(
            "cannot use {}\n  caused by: field `model_type`: \"llama\" is not supported, only \"qwen3\" (the dense models)",
            dir.path().join("config.json").display(),
        ),
    );
    let dir = model_with(&[("tokenizer.json", None)]);
    generate(
        &["--model", str(dir.path())],
        &format!(
            "{} has neither tokenizer.json nor vocab.json with merges.txt, and text needs one of them",
            dir.path().display(),
        ),
    );
    let long = "word ".repeat(2000);
    check_error(
        &["generate", &long],
        "error: the prompt has 2002 tokens: expected fewer than the model's 1024 positions",
    );
    check_error(&["generate", ""], "error: the prompt is empty: expected at least one token");
    check_error(
        &["generate", "--prompt-file", "no-such-file"],
        "error: cannot read prompts from no-such-file\n  caused by: No such file or directory (os error 2)",
    );
}

#[test]
fn a_tier_that_does_not_exist_is_an_error() {
    let refused = |name: &OsStr, as_shown: &str| {
        check_failure(
            command(&["generate", PROMPT, "--model", str(&demo())]).env("NV_ISA", name),
            &format!(
                "error: NV_ISA: `{as_shown}` is not an instruction-set tier; use scalar, avx2, avxvnni, avx512 or avx512bf16"
            ),
        );
    };
    refused("sse9".as_ref(), "sse9");
    #[cfg(unix)]
    refused(std::os::unix::ffi::OsStrExt::from_bytes(b"avx\xff"), "avx\u{fffd}");
}

#[test]
fn a_nan_in_the_weights_is_an_error() {
    let dir = model_with(&[]);
    let path = dir.path().join("model.safetensors");
    let mut weights = fs::read(&path).unwrap();
    // The file's last tensor is `model.norm.weight`.
    let last = weights.len() - 2;
    weights[last..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(&path, weights).unwrap();
    for dtype in ["f32", "bf16"] {
        check_error(
            &["generate", PROMPT, "--model", str(dir.path()), "--dtype", dtype],
            "error: the logit of token 0 is NaN: expected a finite number or -inf",
        );
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_built_in_is_an_error() {
    check_error(
        &["generate", PROMPT, "--device", "cuda"],
        "error: this nv was built without CUDA: build it with `--features cuda`",
    );
}

#[test]
fn inspect_shows_what_a_model_is() {
    insta::assert_snapshot!(stdout(&["inspect", str(&demo())]));
}

#[test]
fn inspect_lists_every_tensor_on_demand() {
    let all = stdout(&["inspect", "--all", str(&demo())]);
    for name in ["model.layers.0.mlp.up_proj.weight", "model.layers.5.self_attn.q_norm.weight"] {
        assert_eq!(all.matches(name).count(), 1, "{name}");
    }
}

#[test]
fn inspect_fails_on_tensors_that_are_not_the_configs() {
    let config = fs::read_to_string(demo().join("config.json")).unwrap();
    let config = config.replace(r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 5"#);
    let dir = model_with(&[("config.json", Some(&config))]);
    let output = nv(&["inspect", str(dir.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("model.layers.{0..5}"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("the checkpoint does not match its config:\n  11 unexpected: "),
        "{stderr}"
    );
}

/// What `generate` refuses, `inspect` refuses with the same words.
#[test]
fn inspect_fails_on_what_generate_refuses() {
    // One tensor said to be of another dtype, in as many bytes.
    let demo_with_i16 = || {
        let dir = model_with(&[]);
        let path = dir.path().join("model.safetensors");
        let mut weights = fs::read(&path).unwrap();
        let dtype = weights.windows(6).position(|bytes| bytes == br#""BF16""#).unwrap();
        weights[dtype..dtype + 6].copy_from_slice(br#" "I16""#);
        fs::write(path, weights).unwrap();
        dir
    };
    let check = |dir: TempDir, expected: &[&str]| {
        let inspected = nv(&["inspect", str(dir.path())]);
        let found = stderr(&inspected);
        assert_eq!(inspected.status.code(), Some(1), "{found}");
        assert!(String::from_utf8_lossy(&inspected.stdout).contains("vocab_size"), "{found}");
        let problems = found.lines().filter(|line| line.starts_with("error: "));
        assert_eq!(problems.count(), expected.len(), "{found}");
        for expected in expected {
            assert!(found.contains(expected), "{expected}: {found}");
        }
        let generated = nv(&["generate", PROMPT, "--model", str(dir.path()), "--max-tokens", "1"]);
        let refused = stderr(&generated);
        assert_eq!(generated.status.code(), Some(1), "{refused}");
        assert!(expected.iter().any(|expected| refused.contains(expected)), "{refused}");
    };
    check(demo_with_i16(), &["1 of another dtype than BF16, F16, F32 and F64: `"]);
    check(
        model_with(&[("generation_config.json", Some(r#"{"repetition_penalty": 0}"#))]),
        &["`repetition_penalty`"],
    );
    check(model_with(&[("generation_config.json", Some("<html>"))]), &["generation_config.json"]);
    check(model_with(&[("tokenizer.json", Some("{}"))]), &["tokenizer.json"]);
    check(model_with(&[("tokenizer.json", None)]), &["tokenizer.json"]);
    check(model_with(&[("chat_template.jinja", Some("{% if %}"))]), &["chat_template.jinja"]);
    check(model_with(&[("tokenizer_config.json", Some("[]x"))]), &["tokenizer_config.json"]);
    let refusing = "{{ raise_exception('no users here') }}";
    check(model_with(&[("chat_template.jinja", Some(refusing))]), &["no users here"]);
    // A token that the model has no embedding for.
    let tokenizer = fs::read_to_string(demo().join("tokenizer.json")).unwrap();
    let other = tokenizer.replacen(r#""H": 39,"#, r#""H": 60000,"#, 1);
    assert_ne!(other, tokenizer);
    let files = [("tokenizer.json", Some(&*other)), ("chat_template.jinja", Some("H"))];
    check(model_with(&files), &["token 60000 has no logit"]);
    check(
        model_with(&[
            ("generation_config.json", Some(r#"{"repetition_penalty": -1}"#)),
            ("tokenizer.json", Some("")),
            ("chat_template.jinja", Some("{{")),
        ]),
        &["`repetition_penalty`", "tokenizer.json", "chat_template.jinja"],
    );
}

/// Starts a long generation and waits for its first byte.
fn start(options: &[&str]) -> Child {
    let args = [&["generate", PROMPT, "--seed", "1", "--max-tokens", "1000"], options].concat();
    let mut child = command(&args).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let mut child = start(&[]);
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(!stderr(&output).contains("error"), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_cleanly() {
    for options in [&[][..], &["--threads", "2"]] {
        let child = start(options);
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(status.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert!(stderr(&output).contains("; interrupted; "), "{}", stderr(&output));
        assert!(output.stdout.ends_with(b"\n"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn it_computes_with_the_threads_that_were_asked_for() {
    let num_threads = |threads| {
        let mut child = start(&["--threads", threads]);
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
        line.trim().parse::<usize>().unwrap()
    };
    assert!(num_threads("1") < num_threads("3"));
    assert!(num_threads("3") < num_threads("8"));
}
