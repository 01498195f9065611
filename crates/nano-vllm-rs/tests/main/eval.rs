//! `nv eval`, on the demo checkpoint and its held-out chapters.

use std::f64::consts::LN_2;
use std::fs;
use std::io::Write;
#[cfg(unix)]
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::Command;
use std::process::Stdio;

use nano_vllm_rs::model::{DType, Device, Qwen3ForCausalLM, Tensor, load_config, load_safetensors};
use nano_vllm_rs::text::Tokenizer;
use nano_vllm_rs::weights::Checkpoint;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use crate::nv::{command, model_with, nv, refuse, stderr, stdout, str};
use crate::{demo, repository};

fn held_out() -> PathBuf {
    demo().join("held-out.txt")
}

/// A file of `text`.
fn file(text: impl AsRef<[u8]>) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_ref()).unwrap();
    file
}

/// What is measured of `model` over `text`, with more options.
fn eval(model: &Path, text: &Path, options: &[&str]) -> Value {
    let all = ["eval", str(model), "--text", str(text), "--threads", "2", "--json"];
    // Nothing but one JSON value.
    serde_json::from_str(&stdout(&[&all[..], options].concat())).unwrap()
}

/// Asserts that the run fails, and says why; `model` and the file of the text come before `options`.
#[track_caller]
fn fail(model: &Path, text: &Path, options: &[&str], expected: &str) {
    let output = nv(&[&["eval", str(model), "--text", str(text)], options].concat());
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{options:?}: {stderr}");
    assert!(stderr.contains(expected), "{options:?}: {stderr}");
    assert!(output.stdout.is_empty());
}

/// A copy of the demo whose config says `value` of `field`.
fn demo_with(field: &str, value: Value) -> TempDir {
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(demo().join("config.json")).unwrap()).unwrap();
    config[field] = value;
    model_with(&[("config.json", Some(&config.to_string()))])
}

/// A copy of the demo with a NaN in its last norm.
fn demo_with_nan() -> TempDir {
    let dir = model_with(&[]);
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let data = 8 + usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let start = header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap();
    let at = data + usize::try_from(start).unwrap();
    bytes[at..at + 2].copy_from_slice(&0x7FC0u16.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    dir
}

/// The negative log-probability of `token_id` in nats.
fn surprise(logits: &[f32], token_id: u32) -> f64 {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    sum.ln() - f64::from(logits[token_id as usize])
}

/// The sum of the negative log-probabilities in nats of all tokens of `windows` but the first of each, by the library in float32.
fn nats(windows: &[&[u32]]) -> f64 {
    let config = load_config(demo().join("config.json")).unwrap();
    let paths = [demo().join("model.safetensors")];
    let vb = load_safetensors(&paths, DType::F32, &Device::Cpu).unwrap();
    let mut model = Qwen3ForCausalLM::new(&config, vb).unwrap();
    let mut nats = 0.0;
    for window in windows {
        let ids = Tensor::new(*window, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model.forward_all(&ids, 0).unwrap().squeeze(0).unwrap();
        let rows = logits.to_vec2::<f32>().unwrap();
        nats += rows.iter().zip(&window[1..]).map(|(row, &id)| surprise(row, id)).sum::<f64>();
    }
    nats
}

#[test]
fn perplexity_and_bits_are_those_of_the_logits() {
    const CONTEXT: usize = 300;
    let text = fs::read_to_string(held_out()).unwrap();
    // Parts of characters are tokens, too.
    let text = format!("{}, n’est-ce pas?", &text[..2500]);
    let tokenizer = Tokenizer::from_dir(demo()).unwrap();
    let token_ids = tokenizer.encode(&text, false).unwrap();
    let windows: Vec<&[u32]> = token_ids.chunks(CONTEXT).collect();
    assert_eq!(windows.len(), 3);
    let num_predicted = token_ids.len() - windows.len();
    let firsts: usize = windows.iter().map(|window| tokenizer.token_bytes(window[0]).len()).sum();
    let num_bytes = text.len() - firsts;

    let file = file(&text);
    let context = ["--context", &CONTEXT.to_string(), "--dtype", "f32"];
    let found = eval(&demo(), file.path(), &context);
    let counts = ["windows", "context", "predicted_tokens", "predicted_bytes"];
    let counts = counts.map(|name| found[name].as_u64().unwrap());
    let expected = [windows.len(), CONTEXT, num_predicted, num_bytes];
    assert_eq!(counts, expected.map(|count| count as u64));
    assert_eq!(found["text"]["tokens"], token_ids.len());

    let nats = nats(&windows);
    let close = |name: &str, expected: f64| {
        let found = found[name].as_f64().unwrap();
        assert!((found / expected - 1.0).abs() < 1e-9, "{name}: {found} is not {expected}");
    };
    close("perplexity", (nats / num_predicted as f64).exp());
    close("bits_per_token", nats / LN_2 / num_predicted as f64);
    close("bits_per_byte", nats / LN_2 / num_bytes as f64);
    assert_eq!((&found["reference"], &found["interrupted"]), (&Value::Null, &json!(false)));

    // A part of it, by one thread, from stdin.
    let options = ["--text", "-", "--windows", "1", "--threads", "1", "--json"];
    let model = demo();
    let args = [&["eval", str(&model)], &options[..], &context].concat();
    let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let part = child.wait_with_output().unwrap();
    let mut part: Value = serde_json::from_slice(&part.stdout).unwrap();
    assert_eq!(part["predicted_tokens"], CONTEXT - 1);
    part["text"] = found["text"].clone();
    let one = eval(&demo(), file.path(), &[&context[..], &["--windows", "1"]].concat());
    part["text"]["name"] = one["text"]["name"].clone();
    assert_eq!(part, one);
}

#[test]
fn bits_in_f32_are_those_of_transformers() {
    let path = repository().join("tests/references/demo.safetensors");
    let reference = Checkpoint::open(&[path]).unwrap();
    let bytes = |name| reference.tensor(name).unwrap().bytes();
    let token_ids = bytes("input_ids").as_chunks().0.iter();
    let token_ids: Vec<u32> =
        token_ids.map(|id| u32::try_from(i64::from_le_bytes(*id)).unwrap()).collect();
    let logits: Vec<f32> =
        bytes("logits_f32").as_chunks().0.iter().map(|logit| f32::from_le_bytes(*logit)).collect();
    let vocab_size = logits.len() / token_ids.len();
    let nats: f64 = token_ids[1..]
        .iter()
        .zip(logits.chunks(vocab_size))
        .map(|(&id, row)| surprise(row, id))
        .sum();

    let tokenizer = Tokenizer::from_dir(demo()).unwrap();
    let file = file(tokenizer.decode(&token_ids, false));
    let found = eval(&demo(), file.path(), &["--dtype", "f32"]);
    assert_eq!((&found["predicted_tokens"], &found["windows"]), (&json!(255), &json!(1)));
    let bits = found["bits_per_token"].as_f64().unwrap();
    let expected = nats / LN_2 / 255.0;
    // Of float32, sums in another order leave some six digits.
    assert!((bits / expected - 1.0).abs() < 1e-5, "{bits} is not {expected}");
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let reference = demo();
    let options = ["--reference", str(&reference), "--windows", "1"];
    let found = eval(&demo(), &held_out(), &[&options[..], &["--dtype", "f32"]].concat());
    assert_eq!(found["windows"], 1);
    let expected = json!({
        "name": str(&reference),
        "dtype": "f32",
        "perplexity": found["perplexity"],
        "bits_per_token": found["bits_per_token"],
        "bits_per_byte": found["bits_per_byte"],
        "kl_divergence": { "mean": 0.0, "median": 0.0, "percentile_99": 0.0 },
        "likeliest_token_agreement": 1.0,
    });
    assert_eq!(found["reference"], expected);

    // The checkpoint's own dtype is another.
    let rounded = eval(&demo(), &held_out(), &options);
    assert_eq!(rounded["model"]["dtype"], "bf16");
    let mean = rounded["reference"]["kl_divergence"]["mean"].as_f64().unwrap();
    assert!(mean > 0.0 && mean < 0.001, "{mean}");
    assert_eq!(rounded["reference"]["perplexity"], found["perplexity"]);
}

#[test]
fn eight_bits_lose_little() {
    let reference = demo();
    let options = ["--reference", str(&reference), "--windows", "8"];
    let found = eval(&demo(), &held_out(), &[&options[..], &["--quantize", "q8"]].concat());
    let model = json!({
        "name": str(&reference), "dtype": "bf16", "formats": "q8", "quantize": "q8",
    });
    assert_eq!(found["model"], model);
    let at = |name: &str| found["reference"]["kl_divergence"][name].as_f64().unwrap();
    let (median, mean, percentile_99) = (at("median"), at("mean"), at("percentile_99"));
    assert!(mean <= 0.0008, "{mean}");
    assert!(0.0 < median && median < mean && mean < percentile_99, "{found:#}");
    let agreement = found["reference"]["likeliest_token_agreement"].as_f64().unwrap();
    assert!((0.97..1.0).contains(&agreement), "{agreement}");

    // What was quantised before is the same.
    let dir = tempfile::tempdir().unwrap();
    let quantized = dir.path().join("q8");
    stdout(&["quantize", str(&reference), "--to", "q8", "--out", str(&quantized)]);
    let mut again = eval(&quantized, &held_out(), &options);
    assert_eq!(again["model"]["formats"], "q8");
    again["model"] = found["model"].clone();
    assert_eq!(again, found);
}

#[test]
fn tables_have_the_same_numbers() {
    let (model, text) = (demo(), file("In the beginning God created the heaven and the earth."));
    let args = ["eval", str(&model), "--text", str(text.path()), "--dtype", "f32"];
    let table = stdout(&args);
    let titles = |table: &str| -> Vec<String> {
        let lines = table.lines().filter(|line| !line.is_empty() && !line.starts_with(' '));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(titles(&table), ["model", "text", "predictions"]);
    let found = eval(&model, text.path(), &["--dtype", "f32"]);
    let bits = format!("  bits a byte   {:.4}\n", found["bits_per_byte"].as_f64().unwrap());
    assert!(table.ends_with(&bits), "{table}");

    let output = nv(&[&args[..], &["--reference", str(&model), "-v"]].concat());
    assert!(stderr(&output).starts_with("weights copied to memory: none"), "{}", stderr(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    let expected = ["model", "text", "predictions", "difference to the reference"];
    assert_eq!(titles(&table), expected);
    assert!(table.ends_with("  same likeliest token             100.0 %\n"), "{table}");
}

#[test]
fn texts_that_cannot_be_measured_are_refused() {
    let check = |text: &[u8], expected: &str| fail(&demo(), file(text).path(), &[], expected);
    check(b"", "is empty");
    check(b"a", "is a single token: there is none to predict it from");
    check(b"abc\xFF", "is not UTF-8\n  caused by: invalid utf-8 sequence of 1 bytes from index 3");
    fail(&demo(), Path::new("/no/such/file"), &[], "cannot read the text from /no/such/file");
}

#[test]
fn models_that_cannot_be_compared_are_refused() {
    let text = file("In the beginning");
    let refuse = |model: &Path, options: &[&str], expected: &str| {
        fail(model, text.path(), options, expected);
    };
    let check = |reference: TempDir, options: &[&str], expected: &str| {
        refuse(&demo(), &[&["--reference", str(reference.path())], options].concat(), expected);
    };
    let size = "the model's tokenizer: expected a vocab_size of 2048, found 2047";
    check(demo_with("vocab_size", json!(2047)), &[], size);
    let tokenizer = fs::read_to_string(demo().join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&tokenizer).unwrap();
    tokenizer["model"]["merges"] = json!([]);
    let other = model_with(&[("tokenizer.json", Some(&tokenizer.to_string()))]);
    check(other, &[], "its own makes other tokens of the text");
    let short = || demo_with("max_position_embeddings", json!(16));
    check(short(), &["--context", "17"], "--context: the reference has 16 positions, found 17");
    check(
        demo_with_nan(),
        &[],
        "window 1, after token 1: the reference's logit of token id 0 is NaN",
    );

    let positions = "--context: the model has 1,024 positions, found 1,025";
    refuse(&demo(), &["--context", "1025"], positions);
    let few = demo_with("vocab_size", json!(64));
    refuse(few.path(), &[], "the tokenizer is not the model's");
    let nan = "window 1, after token 1: the model's logit of token id 0 is NaN";
    refuse(demo_with_nan().path(), &[], nan);
    // Unless it is asked for more, a window is as long as both can read.
    let short = short();
    let options = ["--reference", str(short.path()), "--windows", "1"];
    let found = eval(&demo(), &held_out(), &options);
    assert_eq!((&found["context"], &found["predicted_tokens"]), (&json!(16), &json!(15)));
}

#[test]
fn bad_command_lines_are_usage_errors() {
    refuse(&["eval", "x"], "--text <FILE>");
    refuse(&["eval", "--text", "x"], "<DIR|ID>");
    refuse(&["eval", "x", "--text", "x", "--context", "1"], "1 is not in 2..");
    refuse(&["eval", "x", "--text", "x", "--windows", "0"], "0 is not in 1..");
    refuse(&["eval", "x", "--text", "x", "--quantize", "q1"], "[possible values: q8");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_with_what_was_measured_so_far() {
    let (model, text) = (demo(), held_out());
    let args = ["eval", str(&model), "--text", str(&text), "--json", "--threads", "1"];
    // Told of what is done; a window after the first comes too late for none to be left.
    let mut child = command(&args).env("RUST_LOG", "nv=debug").spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("evaluated window=1 num_tokens=511")));
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    // Until its end: a closed pipe would end it otherwise.
    log.for_each(drop);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["interrupted"], true);
    let predicted = found["predicted_tokens"].as_u64().unwrap();
    assert!((511..44_000).contains(&predicted), "{found:#}");
    assert!(found["perplexity"].as_f64().unwrap() > 1.0);
}
