//! `--trace`: what each step of the engine takes.

use std::fs;

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
fn a_trace_that_cannot_be_written_is_an_error() {
    let output = nv(&["generate", "a", "--trace", "no/such/folder/trace.json"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("cannot write no/such/folder/trace.json"));
}
