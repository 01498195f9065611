//! `--trace`: what each step of the engine takes.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::nv::{nv, stderr, stdout};

#[test]
fn a_trace_has_every_step_and_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    let options = ["--max-tokens", "5", "--raw", "--temperature", "0"];
    let trace = ["--trace", path.to_str().unwrap()];
    stdout(&[&["generate", "In the beginning"], &options[..], &trace].concat());

    let events: Vec<Value> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let begun = |name: &str| {
        let is_begin = |event: &&Value| event["ph"] == "B" && event["name"] == name;
        events.iter().filter(is_begin).count()
    };
    // One for the prompt, which gives the first token, and one for each other; where nothing is to be computed, none.
    for name in ["forward", "logits", "sample"] {
        assert_eq!(begun(name), 5, "{name}");
    }
    assert!(begun("step") >= 5 && begun("step") == begun("schedule"));
    let tokens = events.iter().filter_map(|event| event["args"]["tokens"].as_str());
    assert!(tokens.map(|tokens| tokens.parse::<usize>().unwrap()).max() > Some(1));
}

#[test]
fn only_a_trace_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.json");
    let trace = |path: &Path| {
        nv(&["generate", "a", "--max-tokens", "1", "--trace", path.to_str().unwrap()])
    };
    for precious in ["prompts\n", "{}", "[1]", "[", "[\n{\"role\": \"user\"}]", " "] {
        fs::write(&path, precious).unwrap();
        let output = trace(&path);
        let is_kept = fs::read_to_string(&path).unwrap() == precious;
        // As much of a trace as there can be of one.
        let is_trace = precious == "[";
        assert_eq!((output.status.success(), is_kept), (is_trace, !is_trace), "{precious}");
        if !is_trace {
            assert!(output.stdout.is_empty());
            let expected = format!("--trace would overwrite {}, which is not a", path.display());
            assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
        }
    }
    fs::write(&path, "").unwrap();
    for _ in 0..2 {
        let output = trace(&path);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<Vec<Value>>(&fs::read_to_string(&path).unwrap()).unwrap();
    }
    // One without an event too.
    let output = nv(&["completions", "bash", "--trace", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(trace(&path).status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_trace_that_breaks_off_is_told() {
    let output = nv(&["generate", "a", "--max-tokens", "2", "--trace", "/dev/full"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write /dev/full") && !said.contains("panicked"), "{said}");
}

#[test]
fn a_trace_that_cannot_be_written_is_an_error() {
    let output = nv(&["generate", "a", "--trace", "no/such/folder/trace.json"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("cannot write no/such/folder/trace.json"));
}
