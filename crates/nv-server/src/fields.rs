//! The body of a request: the object whose fields handlers take one by one, and what becomes of those that they don't.
//!
//! Knows no field by name.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderName, StatusCode, header};
use nv_text::{Fields, big_integer, json_from_str};
use serde_json::Value;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::server::Server;

/// The fields of a request's body.
#[derive(Debug)]
pub(crate) struct Body(pub(crate) Fields);

impl Body {
    fn parse(body: &[u8]) -> Result<Self> {
        let json = |reason: String| Error::Json { reason };
        let text = str::from_utf8(body).map_err(|error| json(error.to_string()))?;
        let value = json_from_str(text).map_err(|error| json(error.to_string()))?;
        let found = kind(&value);
        Fields::new(value, "").map(Self).map_err(|_| json(format!("found {found}")))
    }
}

impl FromRequest<Server> for Body {
    type Rejection = Error;

    async fn from_request(request: Request, server: &Server) -> Result<Self> {
        // A page of another origin can't send this without asking first.
        let is_json = |value: &str| {
            let media_type = value.split(';').next().unwrap_or_default();
            media_type.trim().eq_ignore_ascii_case("application/json")
        };
        check_header(&request, &header::CONTENT_TYPE, "application/json", is_json)?;
        if request.headers().contains_key(header::CONTENT_ENCODING) {
            let is_plain = |value: &str| value.trim().eq_ignore_ascii_case("identity");
            check_header(&request, &header::CONTENT_ENCODING, "identity, or none", is_plain)?;
        }
        let limit = server.config().read_timeout;
        let body = timeout(limit, Bytes::from_request(request, server)).await;
        let body = body.map_err(|_| Error::BodyTimeout { limit })?.map_err(|rejection| {
            let max_body_bytes = server.config().max_body_bytes;
            match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Error::BodyTooLarge { max_body_bytes },
                _ => Error::Body { reason: rejection.body_text() },
            }
        })?;
        Self::parse(&body)
    }
}

/// Refuses a request of which a header isn't as expected, or isn't there.
fn check_header(
    request: &Request,
    header: &'static HeaderName,
    expected: &'static str,
    is_right: impl FnOnce(&str) -> bool,
) -> Result<()> {
    let value = request.headers().get(header);
    let value = value.map(|value| String::from_utf8_lossy(value.as_bytes()));
    match value {
        Some(value) if is_right(&value) => Ok(()),
        value => {
            let found = value.map_or_else(|| "nothing".to_owned(), |value| format!("`{value}`"));
            Err(Error::Header { header: header.as_str(), expected, found })
        }
    }
}

/// Refuses fields that mean something and are not supported. Null, false and what is empty ask for nothing.
pub(crate) fn refuse(
    fields: &mut Fields,
    unsupported: &[(&'static str, &'static str)],
) -> Result<()> {
    for &(field, reason) in unsupported {
        if fields.take_value(field).as_ref().is_some_and(asks) {
            return Err(Error::Unsupported { field, reason });
        }
    }
    Ok(())
}

/// Whether a value asks for anything: clients write all fields that there are.
pub(crate) fn asks(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_on) => *is_on,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Number(_) | Value::Object(_) => true,
    }
}

/// Refuses values other than some, given as JSON, of fields that mean something and of which no other is supported.
pub(crate) fn refuse_others(
    fields: &mut Fields,
    fixed: &[(&'static str, &[&str], &'static str)],
) -> Result<()> {
    for &(field, supported, reason) in fixed {
        let Some(found) = fields.take_value(field) else { continue };
        let is_found = |text: &&str| {
            serde_json::from_str::<Value>(text).is_ok_and(|value| is_same(&value, &found))
        };
        if !supported.iter().any(is_found) {
            return Err(Error::Unsupported { field, reason });
        }
    }
    Ok(())
}

fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        // 1.0 is 1.
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (one, other) => one == other,
    }
}

/// Ends the reading: fields that nobody knows are ignored, as vLLM does, but not in silence. Their names are the client's
/// and stay out of the log.
pub(crate) fn finish(fields: Fields) {
    let num_fields = fields.into_rest().len();
    if num_fields > 0 {
        tracing::warn!(num_fields, "unknown fields ignored");
    }
}

/// What a JSON value is.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        _ if big_integer(value).is_some() => "a number",
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Body::parse(json.as_bytes()).unwrap().0
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        let check = |body: &[u8], expected: &str| {
            let error = Body::parse(body).unwrap_err().to_string();
            assert_eq!(error, format!("the body is no JSON object: {expected}"));
        };
        check(b"[1]", "found a list");
        check(b"", "EOF while parsing a value at line 1 column 0");
        check(b"\"\xFF\"", "invalid utf-8 sequence of 1 bytes from index 1");
        check("[".repeat(200).as_bytes(), "recursion limit exceeded at line 1 column 128");
    }

    #[test]
    fn unsupported_fields_are_refused_only_if_they_ask_for_something() {
        let unsupported = [("a", "use b")];
        for json in ["{}", r#"{"a": null}"#, r#"{"a": false}"#, r#"{"a": []}"#, r#"{"a": ""}"#] {
            refuse(&mut fields(json), &unsupported).unwrap();
        }
        for json in [r#"{"a": true}"#, r#"{"a": 0}"#, r#"{"a": {}}"#, r#"{"a": [1]}"#] {
            let error = refuse(&mut fields(json), &unsupported).unwrap_err();
            assert_eq!(error.to_string(), "field `a` is not supported yet: use b");
        }
    }

    #[test]
    fn fixed_fields_are_refused_only_if_they_ask_for_something_else() {
        let fixed: &[(_, &[_], _)] =
            &[("a", &["\"medium\"", "1"], "use b"), ("c", &["true"], "use d")];
        for json in ["{}", r#"{"a": null}"#, r#"{"a": "medium", "c": true}"#, r#"{"a": 1.0}"#] {
            refuse_others(&mut fields(json), fixed).unwrap();
        }
        for json in [r#"{"a": "high"}"#, r#"{"c": "true", "a": 2}"#, r#"{"a": false}"#] {
            let error = refuse_others(&mut fields(json), fixed).unwrap_err();
            assert_eq!(error.to_string(), "field `a` is not supported yet: use b");
        }
        let error = refuse_others(&mut fields(r#"{"c": false}"#), fixed).unwrap_err();
        assert_eq!(error.to_string(), "field `c` is not supported yet: use d");
    }
}
