//! Requests that HTTP itself refuses, and what of them is repeated.

use super::client::{Answer, receive, send, send_bytes};
use super::shared;

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "content-type: application/json\r\n";

/// Sends the head of a request, and all that its client would say.
fn ask(head: &str) -> Answer {
    receive(send_bytes(shared(), format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()))
}

/// Asserts the form of the API's errors, and returns the message.
#[track_caller]
fn message(answer: &Answer) -> String {
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    assert!(answer.header("x-request-id").is_some(), "{answer:?}");
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error");
    assert!(error["param"].is_null() && error["code"].is_null(), "{error}");
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_request_says_once_and_well_which_host_it_is_for() {
    let check = |head: &str, expected: Option<&str>| {
        let answer = ask(head);
        let Some(expected) = expected else {
            assert_eq!(answer.status, 200, "{head}: {answer:?}");
            return;
        };
        assert_eq!(answer.status, 400, "{head}: {answer:?}");
        let found = message(&answer);
        assert!(found.contains("header `host`") && found.contains(expected), "{head}: {found}");
    };
    check("GET /version HTTP/1.1", Some("found nothing"));
    check("GET http://test/version HTTP/1.1", Some("found nothing"));
    check("GET /version HTTP/1.1\r\nhost: a\r\nhost: a", Some("found several"));
    check("GET /version HTTP/1.0\r\nhost: a\r\nhost: b", Some("found several"));
    for host in ["a b", "a/b", "user@a", "a:b", "[::1", "a, b", "http://a", "\u{e4}"] {
        check(&format!("GET /version HTTP/1.1\r\nhost: {host}"), Some(&format!("found `{host}`")));
    }
    for host in ["", "a", "a:80", "127.0.0.1:8000", "[::1]:8000"] {
        check(&format!("GET /version HTTP/1.1\r\nHost: {host}"), None);
    }
    check("GET /version HTTP/1.0", None);
    check("GET http://other.example/version HTTP/1.1\r\nhost: test", None);
    // Whatever is wrong with the request beside it.
    check("GET /nothing HTTP/1.1", Some("found nothing"));
    check(&format!("POST {CHAT} HTTP/1.1\r\ncontent-length: 0"), Some("found nothing"));
}

#[test]
fn what_is_no_request_is_refused_in_the_form_of_the_api() {
    let check = |head: &str, status: u16, expected: &str| {
        let answer = ask(head);
        assert_eq!(answer.status, status, "{head:.100}: {answer:?}");
        let found = message(&answer);
        assert!(found.contains(expected), "{found}");
        assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()));
    };
    check("GET", 400, "request line");
    check("GET /version HTTP/3.7\r\nhost: test", 400, "request line");
    check("GET /version\r\nhost: test", 400, "request line");
    check("G@T /version HTTP/1.1\r\nhost: test", 400, "request line");
    check("GET /version HTTP/1.1\r\nhost: test\r\nno colon", 400, "headers");
    let post = format!("POST {CHAT} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json");
    for length in ["abc", "-1", "1e3", "99999999999999999999999", "5\r\ncontent-length: 6"] {
        check(&format!("{post}\r\ncontent-length: {length}"), 400, "headers");
    }
    check(&format!("{post}\r\ntransfer-encoding: gzip"), 400, "headers");
    check(&format!("GET /{} HTTP/1.1\r\nhost: test", "a".repeat(70_000)), 414, "shorter URI");
    let headers = "\r\nx-much: more".repeat(200);
    check(&format!("GET /version HTTP/1.1\r\nhost: test{headers}"), 431, "fewer");
}

#[test]
fn every_method_and_path_is_answered_in_the_form_of_the_api() {
    let check = |method: &str, path: &str, status: u16, allow: Option<&str>| {
        let answer = receive(send(shared(), method, path, "", b""));
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
        if method == "HEAD" {
            assert_eq!(answer.body, "");
        } else {
            message(&answer);
        }
    };
    check("GET", "/v1/models/%ff", 400, None);
    check("GET", "/v1/models/a%C3%28b", 400, None);
    check("GET", "/%ff", 404, None);
    check("POST", "/v1/models/%ff", 405, Some("GET,HEAD"));
    check("PUT", CHAT, 405, Some("POST"));
    check("OPTIONS", CHAT, 405, Some("POST"));
    check("OPTIONS", "/v1/models", 405, Some("GET,HEAD"));
    check("OPTIONS", "*", 404, None);
    check("BREW", "/version", 405, Some("GET,HEAD"));
    check("HEAD", "/version", 200, None);
    check("HEAD", "/nothing", 404, None);
    check("HEAD", CHAT, 405, Some("POST"));
    check("CONNECT", "test:80", 404, None);
}

#[test]
fn a_body_says_that_it_is_json_and_no_more() {
    let check = |headers: &str, status: u16, expected: &str| {
        let answer = receive(send(shared(), "POST", "/tokenize", headers, b"{\"prompt\": \"a\"}"));
        assert_eq!(answer.status, status, "{headers}: {answer:?}");
        if status != 200 {
            let found = message(&answer);
            assert!(found.contains(expected), "{found}");
        }
    };
    check("", 415, "header `content-type`: expected application/json, found nothing");
    check("content-type:\r\n", 415, "found ``");
    check("content-type: text/plain\r\n", 415, "found `text/plain`");
    check("content-type: application/jsonl\r\n", 415, "found `application/jsonl`");
    check("content-type: multipart/form-data; boundary=application/json\r\n", 415, "multipart");
    check("content-type: \u{e4}\r\n", 415, "found `\u{e4}`");
    check("Content-Type: Application/JSON ; charset=utf-8\r\n", 200, "");
    check(&format!("{JSON}content-encoding: gzip\r\n"), 415, "header `content-encoding`");
    check(&format!("{JSON}content-encoding: identity\r\n"), 200, "");
    // One that breaks off in its own form.
    let head = format!("POST /tokenize HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{JSON}");
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\nsome\r\n");
    let answer = receive(send_bytes(shared(), chunked.as_bytes()));
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(message(&answer).contains("the body can't be read"), "{answer:?}");
}

#[test]
fn long_values_are_cut_in_errors() {
    let long = "\u{e4}".repeat(5000);
    let escaped = "%C3%A4".repeat(5000);
    let chat = |fields: &str| {
        let body = format!(r#"{{"messages": [{{"role": "user", "content": "Hi"}}], {fields}}}"#);
        receive(send(shared(), "POST", CHAT, JSON, body.as_bytes()))
    };
    let check = |answer: Answer, status: u16, expected: &str| {
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.body.len() < 3000, "{}", answer.body);
        let found = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        // What it is about isn't lost.
        assert!(found.contains(expected), "{found}");
    };
    let get = |path: &str| receive(send(shared(), "GET", path, "", b""));
    check(get(&format!("/{escaped}")), 404, "see /openapi.json");
    check(get(&format!("/v1/models/{escaped}")), 404, "this server has `scripted`");
    check(get(&format!("/v1/models/%ff{escaped}")), 400, "no UTF-8");
    let method = "A".repeat(5000);
    check(receive(send(shared(), &method, "/version", "", b"")), 405, "/version does not take A");
    let content_type = format!("content-type: {long}\r\n");
    check(receive(send(shared(), "POST", CHAT, &content_type, b"{}")), 415, "`content-type`");
    check(ask(&format!("GET / HTTP/1.1\r\nhost: {long}")), 400, "header `host`");
    check(chat(&format!(r#""model": "{long}""#)), 404, "this server has `scripted`");
    check(chat(&format!(r#""temperature": "{long}""#)), 400, "field `temperature`");
    check(
        chat(&format!(r#""stream_options": {{"include_usage": "{long}"}}"#)),
        400,
        "include_usage",
    );
    check(chat(&format!(r#""logit_bias": {{"{long}": "a"}}"#)), 400, "field `logit_bias");
    let tools = r#""tools": [{"type": "function", "function": {"name": "a"}}]"#;
    let choice = format!(r#"{{"type": "function", "function": {{"name": "{long}"}}}}"#);
    check(chat(&format!(r#"{tools}, "tool_choice": {choice}"#)), 400, "tool_choice.function.name");
    check(chat(&format!(r#""guided_regex": "({long}""#)), 400, "field `guided_regex`");
    check(chat(&format!(r#""guided_json": {{"type": "{long}"}}"#)), 400, "field `guided_json`");
    let role = format!(r#"{{"messages": [{{"role": "{long}"}}]}}"#);
    let answer = receive(send(shared(), "POST", CHAT, JSON, role.as_bytes()));
    check(answer, 400, "field `messages[0].role`");
    let found = get(&format!("/v1/models/{escaped}")).json();
    let (first, last) = ("\u{e4}".repeat(134), "\u{e4}".repeat(66));
    assert_eq!(
        found["error"]["message"],
        format!(
            "the model `{first}… (5000 characters) …{last}` does not exist: this server has `scripted`"
        )
    );
    let answer = chat(&format!(r#""logit_bias": {{"{long}": "a"}}"#)).json();
    assert!(answer["error"]["param"].as_str().unwrap().chars().count() < 300, "{answer}");
}
