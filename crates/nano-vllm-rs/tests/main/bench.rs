//! `nv bench`, on the demo checkpoint.

use std::fs;
#[cfg(unix)]
use std::io::{BufRead, BufReader};
#[cfg(unix)]
use std::process::Stdio;
use std::process::{Command, Output};

use nano_vllm_rs::kernels::Isa;
use serde_json::Value;

use crate::demo;
use crate::nv::{nv, refuse, stderr};

/// A quick run, with more options.
fn command(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nv"));
    command.args(["bench", "--quick", "--threads", "2"]).args(options);
    command.env("HF_HUB_OFFLINE", "1").env_remove("NV_ISA");
    command
}

fn bench(options: &[&str]) -> Output {
    command(options).output().unwrap()
}

fn stdout(options: &[&str]) -> String {
    let output = bench(options);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{options:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_positive(value: &Value, fields: &[&str]) {
    for field in fields {
        let number = value[field].as_f64();
        assert!(number.is_some_and(|x| x.is_finite() && x > 0.0), "{field} of {value:#}");
    }
}

/// Section and name of each of `rows`.
fn names(rows: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| format!("{}, {}", text(&row["section"]), text(&row["name"]))).collect()
}

#[test]
fn json_has_every_row_with_its_limits() {
    let report = stdout(&["--model", demo().to_str().unwrap(), "--json"]);
    // Nothing but one JSON value.
    let report: Value = serde_json::from_str(&report).unwrap();

    assert_positive(&report["model"], &["parameters", "bytes_per_step"]);
    assert_eq!(report["model"]["dtype"], "bf16");
    assert_eq!(report["machine"]["threads"], 2);
    assert_eq!(report["interrupted"], false);
    for peak in report["machine"]["product_peaks"].as_array().unwrap() {
        assert_positive(peak, &["operations_per_second"]);
    }
    assert_eq!(
        names(&report["rows"]),
        [
            "load, open and build",
            "start, first token after 16",
            "prefill, 128 tokens",
            "prefill, 512 tokens",
            "decode, context 128",
            "batch, 1 sequence",
            "batch, 4 sequences",
            "batch, 8 sequences",
            "batch, 16 sequences",
        ]
    );
    for row in report["rows"].as_array().unwrap() {
        assert_positive(row, &["seconds", "repetitions", "read_bandwidth", "product_peak"]);
        let has_floor = !["load", "start"].contains(&row["section"].as_str().unwrap());
        if has_floor {
            assert_positive(row, &["tokens", "tokens_per_second", "floor_seconds", "ratio"]);
            assert!(["bandwidth", "arithmetic"].contains(&row["limit"].as_str().unwrap()));
        } else {
            assert_eq!(row["ratio"], Value::Null);
        }
    }
    let positions = "the model has 1,024 positions";
    for skipped in report["skipped"].as_array().unwrap() {
        let too_long = !skipped["section"].as_str().unwrap().contains("batch");
        let why = if too_long { positions } else { "more than 2,048 prompt tokens, and --quick" };
        assert_eq!(skipped["why"], why, "{skipped}");
    }
    assert_eq!(
        names(&report["skipped"]),
        [
            "prefill, 2,048 tokens",
            "prefill, 4,096 tokens",
            "prefill, 8,192 tokens",
            "decode, context 4,096",
            "decode, context 16,384",
            "batch, 32 sequences",
            "batch, 64 sequences",
        ]
    );
    if cfg!(target_os = "linux") {
        assert_positive(&report["memory"], &["peak_private_bytes", "kv_cache_bytes"]);
        assert_eq!(report["memory"]["prompt_tokens"], 1023);
    }
}

#[test]
fn the_table_has_what_was_asked_for_and_nothing_else() {
    let model = demo();
    let options = ["--model", model.to_str().unwrap(), "--only", "load,decode", "--dtype", "f32"];
    let table = stdout(&options);
    let titles: Vec<&str> =
        table.lines().filter(|line| !line.is_empty() && !line.starts_with(' ')).collect();
    assert_eq!(titles, ["model", "machine", "limits of the machine", "measured", "not measured"]);

    let (_, measured) = table.split_once("\nmeasured\n").unwrap();
    let (measured, skipped) = measured.split_once("\n\n").unwrap();
    let rows: Vec<Vec<&str>> =
        measured.lines().map(|line| line.split_whitespace().collect()).collect();
    let [head, load, decode] = rows.as_slice() else { panic!("{table}") };
    assert_eq!(head, &["time", "tok/s", "ratio", "floor", "limit", "GB/s", "GFLOP/s"]);
    assert_eq!(load[..4], ["load", "open", "and", "build"]);
    // No floor: time and its unit, and the two limits.
    assert_eq!(load.len(), 8);
    assert_eq!(decode[..3], ["decode", "context", "128"]);
    assert_eq!(decode.len(), 3 + 2 + 2 + 2 + 1 + 2);
    assert!(decode[5].parse::<f64>().is_ok_and(|speed| speed > 0.0), "{decode:?}");
    assert_eq!(skipped.lines().count(), 3);
}

#[test]
fn a_model_without_a_tokenizer_has_no_cold_start() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(demo().join(file), dir.path().join(file)).unwrap();
    }
    let report = stdout(&["--model", dir.path().to_str().unwrap(), "--only", "start", "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["rows"], Value::Array(Vec::new()));
    assert_eq!(names(&report["skipped"]), ["start, first token"]);
    let why = report["skipped"][0]["why"].as_str().unwrap();
    assert!(why.contains("has neither tokenizer.json nor vocab.json with merges.txt"), "{why}");
}

#[test]
fn the_variable_chooses_a_tier_that_the_machine_has() {
    let model = demo();
    let options = ["--model", model.to_str().unwrap(), "--only", "load", "--json"];
    for isa in Isa::ALL {
        let output = command(&options).env("NV_ISA", isa.to_string()).output().unwrap();
        if isa.is_available() {
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["machine"]["isa"], isa.to_string());
        } else {
            let stderr = String::from_utf8(output.stderr).unwrap();
            let best = Isa::detect();
            assert_eq!(output.status.code(), Some(1));
            assert_eq!(
                stderr,
                format!(
                    "error: NV_ISA: this machine does not have {isa}; its best tier is {best}\n"
                )
            );
        }
    }
}

/// Presses Ctrl-C when a run has measured its first row; returns what it has on stdout by then.
#[cfg(unix)]
fn interrupted(options: &[&str]) -> String {
    let model = demo();
    let args = [&["--model", model.to_str().unwrap()], options].concat();
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut progress = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = |line: &String| line.starts_with("prefill, 128 tokens:");
    assert!(progress.by_ref().map(Result::unwrap).any(|line| first(&line)));
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    // Until its end: a closed pipe would end it otherwise.
    progress.for_each(drop);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    String::from_utf8(output.stdout).unwrap()
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_with_the_rows_so_far() {
    let options = ["--only", "prefill,decode,batch"];
    let table = interrupted(&options);
    assert!(table.contains("\n  prefill  128 tokens  "), "{table}");
    assert!(!table.contains("  batch  16 sequences"), "{table}");
    assert!(table.ends_with("\n\ninterrupted: this is a part, what was measured until then\n"));

    let report: Value =
        serde_json::from_str(&interrupted(&[&options[..], &["--json"]].concat())).unwrap();
    assert_eq!(report["interrupted"], true);
    assert_eq!(names(&report["rows"])[0], "prefill, 128 tokens");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_writing_of_random_weights() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(&["--synth", "qwen3-0.6b"]);
    command.env("TMPDIR", dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(said.next().unwrap(), "writing a qwen3-0.6b with random weights");
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    assert_eq!(said.next(), None);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(130), &b""[..]));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the part that was written is left");
}

/// What `--requests` with more options measures.
fn requests(options: &[&str]) -> Value {
    let model = demo();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nv"));
    command.args(["bench", "--model", model.to_str().unwrap(), "--threads", "2", "--json"]);
    command.args(options).env_remove("NV_ISA");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{options:?}: {}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["rows"], Value::Array(Vec::new()));
    report["requests"].clone()
}

#[test]
fn requests_are_served_together() {
    // All prompts fit the first step.
    let found = requests(&["--requests", "--max-num-batched-tokens", "2048"]);
    let numbers = ["requests", "concurrency", "input_tokens", "output_tokens", "steps"];
    let numbers = numbers.map(|name| found[name].as_u64().unwrap());
    assert_eq!(numbers, [16, 16, 16 * 128, 16 * 64, 64]);
    assert_positive(
        &found,
        &[
            "seconds",
            "output_tokens_per_second",
            "total_tokens_per_second",
            "read_bandwidth",
            "product_peak",
            "floor_seconds",
            "ratio",
            "max_kv_blocks_used",
            "sampler_share",
            "overhead_share",
        ],
    );
    for times in ["time_to_first_token", "inter_token", "end_to_end"] {
        assert_positive(&found[times], &["p50", "p90", "p99"]);
        let at = |share| found[times][share].as_f64().unwrap();
        assert!(at("p50") <= at("p90") && at("p90") <= at("p99"));
    }
    assert_eq!(found["max_kv_blocks_used"], 16 * 6);
    assert_eq!((&found["preemptions"], &found["rate"]), (&Value::from(0), &Value::Null));
}

#[test]
fn requests_share_a_prefix_and_run_into_the_limits_that_are_set() {
    let lens = ["--input-len", "100-120", "--output-len", "20", "--shared-prefix", "80"];
    let found = requests(&[&["--requests", "6", "--concurrency", "1"], &lens[..]].concat());
    assert_eq!((&found["output_tokens"], &found["prefix_hits"]), (&120.into(), &(5 * 64).into()));
    let input_tokens = found["input_tokens"].as_u64().unwrap();
    assert!((600..=720).contains(&input_tokens));

    // 4 blocks of 48 KiB hold 64 tokens: two of 24 + 24 don't fit at once to their ends.
    let options = ["--requests", "4", "--input-len", "24", "--output-len", "24"];
    let found =
        requests(&[&options[..], &["--block-size", "16", "--kv-cache-memory", "192KiB"]].concat());
    assert!(found["preemptions"].as_u64().unwrap() > 0, "{found}");
    assert_eq!((&found["kv_blocks"], &found["max_kv_blocks_used"]), (&4.into(), &4.into()));
}

#[test]
fn requests_arrive_when_their_time_has_come() {
    let options = ["--requests", "8", "--rate", "40", "--input-len", "8", "--output-len", "2"];
    let found = requests(&options);
    assert_eq!((&found["rate"], &found["concurrency"]), (&40.0.into(), &Value::Null));
    assert_eq!((&found["ratio"], &found["requests"]), (&Value::Null, &8.into()));
    // The last arrival of seed 0 says how long it takes at least.
    assert!(found["seconds"].as_f64().unwrap() > 0.05, "{found}");
    assert!(found["end_to_end"]["p50"].as_f64().unwrap() < found["seconds"].as_f64().unwrap());
}

#[test]
fn requests_are_shown_as_a_table() {
    let model = demo();
    let table =
        nv(&["bench", "--model", model.to_str().unwrap(), "--requests", "3", "--output-len", "2"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("\n3 requests, 3 at once\n"), "{table}");
    for row in [
        "  output tokens  ",
        "  ratio  ",
        "  outside model and sampling  ",
        "  time to first token  ",
    ] {
        assert!(table.contains(row), "{row} of {table}");
    }
}

#[test]
fn senseless_numbers_of_threads_are_usage_errors() {
    for threads in ["0", "10000"] {
        let expected = format!("{threads} is not in 1..=1024");
        refuse(&["bench", "--model", "x", "--threads", threads], &expected);
    }
}

#[test]
fn bad_command_lines_are_usage_errors() {
    let check = |options: &[&str], expected: &str| {
        refuse(&[&["bench", "--quick"], options].concat(), expected);
    };
    check(&[], "--model <ID|DIR>");
    check(&["--model", "x", "--synth", "qwen3-0.6b"], "cannot be used with");
    check(&["--synth", "qwen3-7b"], "[possible values: qwen3-0.6b, qwen3-1.7b,");
    check(&["--synth", "qwen3-0.6b", "--revision", "main"], "cannot be used with");
    // It is quick.
    check(&["--model", "x", "--requests", "1"], "cannot be used with");
    check(&["--model", "x", "--rate", "1"], "cannot be used with");
    check(&["--model", "x", "--max-num-seqs", "1"], "settings of the engine are for --requests");
    check(&["--model", "x", "--only", "speed"], "[possible values: load, memory, start,");
}

#[test]
fn senseless_requests_are_usage_errors() {
    let check = |options: &[&str], expected: &str| {
        refuse(&[&["bench", "--model", "x"], options].concat(), expected);
    };
    check(&["--rate", "1"], "--requests [<N>]");
    check(&["--shared-prefix", "1"], "--requests [<N>]");
    check(&["--requests", "0"], "expected at least 1");
    check(&["--requests", "1", "--rate", "-1"], "a finite number from 0.000001");
    check(&["--requests", "1", "--rate", "1e-300"], "a finite number from 0.000001");
    check(&["--requests", "1", "--rate", "1", "--concurrency", "1"], "cannot be used with");
    check(&["--requests", "1", "--input-len", "9-8"], "MIN up to MAX");
    check(&["--requests", "1", "--only", "load"], "cannot be used with");
}
