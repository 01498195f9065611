//! Who gets in, how much of it, and what happens to those that leave.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nano_vllm_rs::server::ServerConfig;
use serde_json::{Value, json};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::client::{get, metric, post, receive, send, start, wait_for_metric};
use super::serve;

const CHAT: &str = "/v1/chat/completions";

fn request(said: &str, fields: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": said}], "temperature": 0});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

fn config() -> ServerConfig {
    ServerConfig::new("scripted")
}

#[test]
fn a_client_that_goes_away_ends_its_request() {
    let address = serve(config());
    for (num_before, stream) in [(0., true), (1., false)] {
        let fields = json!({"stream": stream, "max_tokens": 2000});
        let connection = start(address, CHAT, &request("<forever>", fields));
        wait_for_metric(address, "vllm:num_requests_running", 1.);
        assert!(metric(address, "vllm:kv_cache_usage_perc") > 0.);
        drop(connection);
        wait_for_metric(address, "vllm:num_requests_running", 0.);
        wait_for_metric(address, "vllm:kv_cache_usage_perc", 0.);
        let aborts = "vllm:request_success_total{finished_reason=\"abort\"";
        assert!((metric(address, aborts) - num_before - 1.).abs() < 0.1);
    }
    assert!(metric(address, "vllm:generation_tokens_total") < 3000.);
}

#[test]
fn a_stop_string_ends_what_the_engine_does() {
    let address = serve(config());
    let fields = json!({"stop": "o!Hel"});
    let answer = post(address, CHAT, &request("<forever>", fields)).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "Hell");
    wait_for_metric(address, "vllm:kv_cache_usage_perc", 0.);
    assert!(metric(address, "vllm:generation_tokens_total") < 500.);
    let stops = "vllm:request_success_total{finished_reason=\"stop\"";
    assert!((metric(address, stops) - 1.).abs() < 0.1);
    assert!((metric(address, "vllm:e2e_request_latency_seconds_count") - 1.).abs() < 0.1);
}

#[test]
fn a_stop_string_ends_its_continuation_and_not_the_others() {
    let address = serve(config());
    // Hot enough that each says something else, and comes to the letter at another time.
    let fields = json!({
        "n": 4, "stop": "a", "temperature": 10, "seed": 1, "max_tokens": 1500, "ignore_eos": true,
    });
    let answer = post(address, CHAT, &request("<forever>", fields)).json();
    let reasons = answer["choices"].as_array().unwrap().iter();
    let reasons: Vec<_> = reasons.map(|choice| choice["finish_reason"].as_str()).collect();
    assert!(reasons.contains(&Some("stop")), "{reasons:?}");
    wait_for_metric(address, "vllm:kv_cache_usage_perc", 0.);
    let counted = answer["usage"]["completion_tokens"].as_f64().unwrap();
    assert!(counted < 3000., "{counted}");
    let generated = metric(address, "vllm:generation_tokens_total");
    // A few steps pass until the engine hears of it.
    assert!(generated < counted + 400., "{generated} for {counted}");
}

#[test]
fn more_than_the_queue_holds_is_refused() {
    // The engine runs four.
    let address = serve(ServerConfig { max_num_waiting: 2, ..config() });
    let forever = request("<forever>", json!({"stream": true}));
    let running: Vec<_> = (0..6).map(|_| start(address, CHAT, &forever)).collect();
    wait_for_metric(address, "vllm:num_requests_running", 4.);
    wait_for_metric(address, "vllm:num_requests_waiting", 2.);
    let refused = post(address, CHAT, &request("Hi", json!({})));
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    drop(running);
    wait_for_metric(address, "vllm:num_requests_running", 0.);
    assert_eq!(post(address, CHAT, &request("Hi", json!({}))).status, 200);
    // More than there is ever room for gets all of it.
    assert_eq!(post(address, CHAT, &request("Hi", json!({"n": 50}))).status, 200);
}

#[test]
fn a_key_is_asked_for() {
    let keys = vec!["right".to_owned(), "second".to_owned()];
    let address = serve(ServerConfig { api_keys: keys, ..config() });
    let ask = |key: &str| {
        let headers = format!("content-type: application/json\r\n{key}");
        let body = request("Hi", json!({})).to_string();
        receive(send(address, "POST", CHAT, &headers, body.as_bytes()))
    };
    for key in ["", "authorization: Bearer wrong\r\n", "authorization: right\r\n"] {
        let answer = ask(key);
        assert_eq!(answer.status, 401);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
    }
    assert_eq!(ask("authorization: Bearer right\r\n").status, 200);
    assert_eq!(ask("authorization: Bearer second\r\n").status, 200);
    for path in ["/v1/models", "/v1/models/scripted"] {
        assert_eq!(get(address, path).status, 401, "{path}");
    }
    for path in ["/health", "/ready", "/metrics", "/version", "/openapi.json", "/"] {
        assert_eq!(get(address, path).status, 200, "{path}");
    }
}

#[test]
fn a_body_that_is_too_long_is_not_read() {
    let address = serve(ServerConfig { max_body_bytes: 10_000, ..config() });
    let answer = post(address, CHAT, &request(&"a".repeat(11_000), json!({})));
    assert_eq!(answer.status, 413);
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("longer than 10000 bytes"), "{message}");
}

#[test]
fn who_sends_half_a_request_and_waits_is_left() {
    let limit = Duration::from_millis(300);
    let address = serve(ServerConfig { read_timeout: limit, ..config() });
    let check = |sent: &str, expected: &str| {
        let start = Instant::now();
        let mut connection = TcpStream::connect(address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        connection.write_all(sent.as_bytes()).unwrap();
        // Others are answered meanwhile.
        assert_eq!(get(address, "/health").status, 200);
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with(expected) && answer.is_empty() == expected.is_empty(),
            "{answer}"
        );
        assert!(start.elapsed() >= limit);
    };
    check("", "");
    check("POST /v1/chat/completions HTTP/1.1\r\nhost: te", "");
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n";
    check(
        &format!("{head}content-length: 100\r\n\r\n{{\"messages\": ["),
        "HTTP/1.1 408 Request Timeout",
    );
    check(&format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{\"mes"), "HTTP/1.1 408");
    // It may come in pieces, and what takes longer than that to answer is answered.
    let body = request("<forever>", json!({"max_tokens": 400})).to_string();
    let head = format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut connection = TcpStream::connect(address).unwrap();
    for piece in (head + &body).as_bytes().chunks(60) {
        connection.write_all(piece).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    let start = Instant::now();
    assert_eq!(receive(connection).json()["usage"]["completion_tokens"], 400);
    assert!(start.elapsed() > limit);
}

#[test]
fn who_reads_slowly_holds_nobody_up_and_misses_nothing() {
    let address = serve(config());
    // Megabytes, more than the system keeps for a socket.
    let fields = json!({
        "stream": true, "max_tokens": 1500, "logprobs": true, "top_logprobs": 20, "ignore_eos": true,
    });
    let slow = start(address, CHAT, &request("<forever>", fields));
    wait_for_metric(address, "vllm:num_requests_running", 1.);
    let other = post(address, CHAT, &request("Hi", json!({})));
    assert_eq!(other.json()["choices"][0]["message"]["content"], "Hello!");
    // The engine is through with it before a byte was read.
    wait_for_metric(address, "vllm:num_requests_running", 0.);
    wait_for_metric(address, "vllm:kv_cache_usage_perc", 0.);
    let chunks = receive(slow).chunks();
    let logprobs =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(logprobs.map(Vec::len).sum::<usize>(), 1500);
}

#[test]
fn a_request_that_takes_too_long_is_ended() {
    let limit = Duration::from_millis(100);
    let address = serve(ServerConfig { request_timeout: Some(limit), ..config() });
    let answer = post(address, CHAT, &request("<forever>", json!({})));
    assert_eq!(answer.status, 504);
    assert_eq!(answer.json()["error"]["message"], "the request was not done after 0.1 s");
    let chunks = post(address, CHAT, &request("<forever>", json!({"stream": true}))).chunks();
    let (last, text) = chunks.split_last().unwrap();
    assert_eq!(last["error"]["code"], "timeout");
    assert!(text.len() > 2 && text.iter().all(|chunk| chunk.get("error").is_none()));
    wait_for_metric(address, "vllm:kv_cache_usage_perc", 0.);
}

#[test]
fn what_fails_in_a_stream_is_logged_under_the_id_of_its_request() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let writer = Arc::new(file.reopen().unwrap());
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let targets = Targets::new().with_target("nv_server", LevelFilter::INFO);
    tracing_subscriber::registry().with(layer.with_filter(targets)).init();
    let address = serve(config());
    let body = request("<fail>", json!({"stream": true})).to_string();
    let headers = "content-type: application/json\r\nx-request-id: fails-1\r\n";
    let chunks = receive(send(address, "POST", CHAT, headers, body.as_bytes())).chunks();
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["error"]["type"], "server_error", "{last}");
    assert!(before.len() > 2, "{before:?}");
    let log = fs::read_to_string(file.path()).unwrap();
    let failed = log.lines().find(|line| line.contains("ERROR")).unwrap();
    assert!(failed.contains("request_id=\"fails-1\""), "{failed}");
    assert!(failed.contains("the script says so"), "{failed}");
}

#[test]
fn pages_of_other_origins_are_let_in_only_if_asked_for() {
    const ORIGIN: &str = "origin: https://example.org\r\n";
    const HEADERS: &str = "authorization,content-type,x-stainless-lang";
    let allowed = |config| {
        let preflight = format!(
            "{ORIGIN}access-control-request-method: POST\r\naccess-control-request-headers: {HEADERS}\r\n"
        );
        let address = serve(config);
        let answers = [
            receive(send(address, "OPTIONS", CHAT, &preflight, b"")),
            receive(send(address, "GET", "/version", ORIGIN, b"")),
        ];
        let origins = answers
            .each_ref()
            .map(|answer| answer.header("access-control-allow-origin").map(str::to_owned));
        if origins[0].is_some() {
            // By name: `*` would not cover the key.
            assert_eq!(answers[0].header("access-control-allow-headers"), Some(HEADERS));
        }
        origins
    };
    let with = |origins: &[&str]| ServerConfig {
        cors_origins: origins.iter().map(|&origin| origin.to_owned()).collect(),
        api_keys: vec!["key".to_owned()],
        ..config()
    };
    assert_eq!(allowed(with(&[])), [None, None]);
    assert_eq!(allowed(with(&["https://other.org"])), [None, None]);
    let origin = Some("https://example.org".to_owned());
    assert_eq!(allowed(with(&["https://example.org"])), [origin.clone(), origin]);
    assert_eq!(allowed(with(&["*"])), [Some("*".to_owned()), Some("*".to_owned())]);
}
