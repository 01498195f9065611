//! Every path: what it is, what else is asked there, and that the description knows it.

use nano_vllm_rs::server::ServerConfig;
use serde_json::{Value, json};

use super::client::{get, post, receive, send};
use super::{serve, shared};

#[test]
fn what_is_not_there_is_said_in_the_form_of_the_api() {
    let check = |method: &str, path: &str, status: u16| {
        let answer = receive(send(shared(), method, path, "", b""));
        assert_eq!(answer.status, status, "{answer:?}");
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().unwrap().contains(path), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    };
    check("GET", "/nothing", 404);
    check("POST", "/v1/embeddings", 404);
    check("GET", "/v1/chat/completions", 405);
    check("DELETE", "/health", 405);
    check("POST", "/v1/models", 405);
}

#[test]
fn a_model_that_is_not_served_is_not_found() {
    let names = ["a".to_owned(), "org/b".to_owned()];
    let address =
        serve(ServerConfig { served_model_names: names.to_vec(), ..ServerConfig::new("") });
    let models = get(address, "/v1/models").json();
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["a", "org/b"]);
    assert_eq!(get(address, "/v1/models/org/b").json()["max_model_len"], 2048);
    assert_eq!(get(address, "/v1/models/c").status, 404);
    let ask = |model: Value| {
        let messages = [json!({"role": "user", "content": "Hi"})];
        post(address, "/v1/chat/completions", &json!({"model": model, "messages": messages}))
    };
    assert_eq!(ask(json!("org/b")).json()["model"], "a");
    assert_eq!(ask(Value::Null).status, 200);
    let unknown = ask(json!("gpt-4"));
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
    assert_eq!(unknown.json()["error"]["param"], "model");
}

#[test]
fn requests_keep_the_id_that_they_bring() {
    let id = |header: &str| {
        let answer = receive(send(shared(), "GET", "/version", header, b""));
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("x-request-id: mine-1\r\n"), "mine-1");
    assert!(id("").starts_with("req-"));
    assert_ne!(id(""), id(""));
    assert!(id("x-request-id: with blanks\r\n").starts_with("req-"));
    assert!(id(&format!("x-request-id: {}\r\n", "a".repeat(200))).starts_with("req-"));
}

#[test]
fn the_description_names_what_there_is() {
    let document = get(shared(), "/openapi.json").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert_eq!(document["info"]["version"], get(shared(), "/version").json()["version"]);
    let mut num_paths = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{model}", "scripted");
            let answer = receive(send(shared(), &method.to_uppercase(), &path, "", b""));
            // What takes a body says that there is none.
            let expected = if method == "post" { 415 } else { 200 };
            assert_eq!(answer.status, expected, "{method} {path}");
            num_paths += 1;
        }
    }
    assert_eq!(num_paths, 12);
}

#[test]
fn metrics_bear_the_names_of_vllm() {
    let address = serve(ServerConfig::new("with \"quotes\""));
    let messages = [json!({"role": "user", "content": "<say>abc</say>"})];
    let request = json!({"messages": messages, "temperature": 0});
    assert_eq!(post(address, "/v1/chat/completions", &request).status, 200);
    let answer = get(address, "/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let labels = r#"{engine="0",model_name="with \"quotes\"""#;
    for sample in [
        "num_requests_running@} 0",
        "num_requests_waiting@} 0",
        "kv_cache_usage_perc@} 0",
        "gpu_cache_usage_perc@} 0",
        "cache_config_info@,block_size=\"8\",num_gpu_blocks=\"1024\"} 1",
        "prefix_cache_queries_total@} 22",
        "prefix_cache_hits_total@} 0",
        "num_preemptions_total@} 0",
        "prompt_tokens_total@} 22",
        "generation_tokens_total@} 4",
        "request_success_total@,finished_reason=\"stop\"} 1",
        "request_success_total@,finished_reason=\"error\"} 0",
        "time_to_first_token_seconds_count@} 1",
        "inter_token_latency_seconds_count@} 3",
        "time_per_output_token_seconds_bucket@,le=\"+Inf\"} 3",
        "time_per_output_token_seconds_bucket@,le=\"0.00025\"} 0",
        "e2e_request_latency_seconds_count@} 1",
    ] {
        let line = format!("vllm:{}", sample.replace('@', labels));
        assert!(answer.body.lines().any(|found| found == line), "{line} is not in {}", answer.body);
    }
    // Every sample belongs to a metric of a type.
    for line in answer.body.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split('{').next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let found = [Some(name), base]
            .into_iter()
            .flatten()
            .any(|name| answer.body.contains(&format!("# TYPE {name} ")));
        assert!(found, "{line}");
    }
}
