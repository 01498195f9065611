//! The bodies of requests, by the server's own router.

use std::sync::OnceLock;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response};
use nano_vllm_rs::server::{ServerConfig, router};
use nv_testing::scripted_server;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

/// Tokens of prompt and answer: few, so that whoever asks for as many as there are is answered soon.
const MAX_MODEL_LEN: usize = 256;

/// The first line is a path to post to, the rest a body: it is answered, or refused in the form of the API, and never has
/// the server fail.
pub fn openai_request(data: &[u8]) {
    static SERVER: OnceLock<(Runtime, Router)> = OnceLock::new();
    let (runtime, router) = SERVER.get_or_init(server);
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let (path, body) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_vec()));
    // No line of HTTP could have such a path.
    let Ok(request) = request else { return };
    runtime.block_on(async {
        let Ok(response) = router.clone().oneshot(request).await;
        check(response).await;
    });
}

fn server() -> (Runtime, Router) {
    let config = ServerConfig::new("scripted");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let server = scripted_server(config, MAX_MODEL_LEN, Duration::ZERO);
    (runtime, router(server).expect("no origins, which could be wrong"))
}

async fn check(response: Response<Body>) {
    let status = response.status();
    let is_stream =
        response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("the whole body");
    let text = str::from_utf8(&body).expect("a body of text");
    if !status.is_success() {
        assert!(status.is_client_error(), "{status}: {text}");
        check_error(&serde_json::from_slice(&body).expect("a body of JSON"));
    } else if is_stream {
        let chunks: Vec<&str> =
            text.split("\n\n").filter(|chunk| !chunk.starts_with(':')).collect();
        let [chunks @ .., "data: [DONE]", ""] = &*chunks else { panic!("no end: {text}") };
        for chunk in chunks {
            let json = chunk.strip_prefix("data: ").expect("an event with data alone");
            let json: Value = serde_json::from_str(json).expect("a chunk of JSON");
            if json.get("error").is_some() {
                check_error(&json);
            }
        }
    } else {
        serde_json::from_slice::<Value>(&body).expect("a body of JSON");
    }
}

/// Asserts the form of the OpenAI API's errors, and that the error is the client's.
fn check_error(body: &Value) {
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    assert!(error["type"].as_str().is_some_and(|kind| kind != "server_error"), "{body}");
    for field in ["param", "code"] {
        assert!(
            error.get(field).is_some_and(|value| value.is_null() || value.is_string()),
            "{body}"
        );
    }
}
