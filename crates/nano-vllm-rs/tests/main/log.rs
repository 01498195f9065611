//! The log: `RUST_LOG` for every command, and `--log-level`.

use serde_json::{Value, json};

use crate::demo;
use crate::nv::{command, model_with, stderr, str};
use crate::serve::Serving;
use crate::server::client::post;

/// What a command writes to stderr under this `RUST_LOG`, and its exit code.
fn logged(args: &[&str], rust_log: &str) -> (String, Option<i32>) {
    let output = command(args).env("RUST_LOG", rust_log).output().unwrap();
    (stderr(&output), output.status.code())
}

#[test]
fn a_command_logs_what_it_is_asked_to_and_else_nothing() {
    let args = ["generate", "In the beginning", "--raw", "--temperature", "0", "--max-tokens", "5"];
    let quiet = stderr(&command(&args).output().unwrap());
    let is_log = |line: &&str| line.contains(" DEBUG ") || line.contains(" INFO ");
    assert_eq!(quiet.lines().filter(is_log).count(), 0, "{quiet}");

    let (log, code) = logged(&args, "nv_engine=debug");
    assert_eq!(code, Some(0));
    // The prompt gives the first token, each other step one more.
    let steps = log.lines().filter(|line| line.contains("forward: nv_engine::"));
    let steps: Vec<&str> = steps.collect();
    assert_eq!(steps.len(), 5, "{log}");
    assert!(
        steps.iter().all(|line| line.contains(" DEBUG step{") && line.contains("time.busy=")),
        "{log}"
    );

    for rust_log in ["", "nv_engine=info", "nv_server=trace", "debug,nv_engine=off"] {
        let (log, code) = logged(&args, rust_log);
        assert_eq!((log.lines().filter(is_log).count(), code), (0, Some(0)), "{rust_log}: {log}");
    }
}

#[test]
fn what_a_config_leaves_open_is_a_warning() {
    let config = std::fs::read_to_string(demo().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config.as_object_mut().unwrap().remove("rope_theta").unwrap();
    let dir = model_with(&[("config.json", Some(&config.to_string()))]);
    let args = ["inspect", str(dir.path())];
    let output = command(&args).output().unwrap();
    assert_eq!(
        stderr(&output),
        format!(
            " WARN {}: field `rope_theta` is missing: 1000000 is assumed, where transformers assumes 10000; \
             add the field if that is wrong\n",
            dir.path().join("config.json").display()
        )
    );
    assert_eq!(logged(&args, "off"), (String::new(), Some(0)));
    assert_eq!(stderr(&command(&["inspect", str(&demo())]).output().unwrap()), "");
}

#[test]
fn a_malformed_directive_is_refused_by_name_whatever_the_command() {
    let commands: [&[&str]; 4] = [
        &["generate", "a"],
        &["inspect", "no/such/model"],
        &["completions", "bash"],
        &["serve", "--log-level", "info", "--port", "0"],
    ];
    for args in commands {
        let (said, code) = logged(args, "info,nv_engine=loud");
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains("error: RUST_LOG: `nv_engine=loud` is no directive; expected a level"),
            "{said}"
        );
    }
}

#[test]
fn a_server_follows_rust_log_unless_a_level_is_given() {
    let log = |options: &[&str], rust_log: &str| {
        let serving = Serving::start_with(options, |command| {
            command.env("RUST_LOG", rust_log);
        });
        let request = json!({"prompt": "In the beginning", "max_tokens": 2});
        assert_eq!(post(serving.address, "/v1/completions", &request).status, 200);
        serving.signal("-TERM");
        let (code, log) = serving.end();
        assert_eq!(code, Some(0), "{log}");
        log
    };
    let (answered, step) = ("answered", "time.busy=");
    let found = log(&[], "nv_engine=debug");
    assert!(found.contains(step) && !found.contains(answered), "{found}");
    let found = log(&["--log-level", "info"], "nv_engine=debug");
    assert!(!found.contains(step) && found.contains(answered), "{found}");
    let found = log(&[], "");
    assert!(!found.contains(step) && found.contains(answered), "{found}");
    // However much is logged, it isn't what was asked.
    let found = log(&[], "trace");
    assert!(found.contains(step) && !found.contains("beginning"), "{found}");
    let found = log(&["--log-format", "json"], "warn,nv_engine=debug");
    // What is said to whom started the server is no event.
    let events = found.lines().filter(|line| line.starts_with('{'));
    let events = events.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let names: Vec<_> = events
        .filter(|line| line["level"] == "DEBUG")
        .map(|line| line["span"]["name"].clone())
        .collect();
    assert!(names.contains(&"forward".into()) && !found.contains(answered), "{found}");
}
