//! The fields of a request's body, taken one by one, so that errors name them and nothing is overlooked.
//!
//! Knows no field by name.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderName, header};
use nv_text::{big_integer, json_from_str, rounded};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::server::Server;
use crate::shortened::{VALUE, shortened};

/// The fields of a JSON object that were not taken yet.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        let json = |reason: String| Error::Json { reason };
        let text = str::from_utf8(body).map_err(|error| json(error.to_string()))?;
        let value = json_from_str(text).map_err(|error| json(error.to_string()))?;
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => Err(json(format!("found {}", kind(&other)))),
        }
    }

    /// The value of a field; `None` if it isn't there or null.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>> {
        let Some(value) = self.take_value(name) else { return Ok(None) };
        // What holds no JSON takes an integer beyond 64 bits for a float.
        let rounded = rounded(&value);
        let result = serde_path_to_error::deserialize(value);
        let result = match (result, rounded) {
            (Err(_), Some(rounded)) => serde_path_to_error::deserialize(rounded),
            (result, _) => result,
        };
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let path = error.path().to_string();
                let field = match &*path {
                    "." => name.to_owned(),
                    path if path.starts_with('[') => format!("{name}{path}"),
                    path => format!("{name}.{path}"),
                };
                Err(Error::Field {
                    field,
                    reason: shortened(&error.into_inner().to_string(), VALUE).into_owned(),
                })
            }
        }
    }

    /// As [`Self::take`], for a field that must be there.
    pub(crate) fn require<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T> {
        self.take(name)?.ok_or_else(|| Error::field(name, "expected a value, found nothing"))
    }

    pub(crate) fn take_value(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Leaves out what asks for nothing in a field that is an object, as [`Self::refuse`] has it: clients write all that
    /// there is.
    pub(crate) fn drop_unasked(&mut self, name: &str) {
        if let Some(Value::Object(object)) = self.0.get_mut(name) {
            object.retain(|_, value| !matches!(value, Value::Null | Value::Bool(false)));
        }
    }

    /// Whether a field is there that was not taken.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    /// Refuses fields that mean something and are not supported; nobody asks for anything by null, false or nothing.
    pub(crate) fn refuse(&mut self, unsupported: &[(&'static str, &'static str)]) -> Result<()> {
        for &(field, reason) in unsupported {
            let asks = |value: &Value| match value {
                Value::Bool(is_on) => *is_on,
                Value::Array(items) => !items.is_empty(),
                Value::Null => false,
                _ => true,
            };
            if self.0.remove(field).as_ref().is_some_and(asks) {
                return Err(Error::Unsupported { field, reason });
            }
        }
        Ok(())
    }

    /// Refuses values other than the default, given as JSON, of fields that mean something and of which no other is supported.
    pub(crate) fn refuse_others(
        &mut self,
        fixed: &[(&'static str, &str, &'static str)],
    ) -> Result<()> {
        for &(field, default, reason) in fixed {
            let found = self.take_value(field).map(|value| value.to_string());
            if found.is_some_and(|found| found != default) {
                return Err(Error::Unsupported { field, reason });
            }
        }
        Ok(())
    }

    /// Ends the reading: fields that nobody knows are ignored, as vLLM does, but not in silence. Their names are the
    /// client's words, which the log doesn't repeat.
    pub(crate) fn finish(self) {
        if !self.0.is_empty() {
            tracing::warn!(num_fields = self.0.len(), "unknown fields ignored");
        }
    }
}

impl FromRequest<Server> for Fields {
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
                axum::http::StatusCode::PAYLOAD_TOO_LARGE => Error::BodyTooLarge { max_body_bytes },
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
        Fields::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn errors_name_the_field_and_the_way_to_it() {
        let check = |json, expected: &str| {
            let error = fields(json).take::<Vec<Vec<u32>>>("a").unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(r#"{"a": 1}"#, "field `a`: invalid type: integer `1`, expected a sequence");
        check(
            r#"{"a": [[1], [2, -3]]}"#,
            "field `a[1][1]`: invalid value: integer `-3`, expected u32",
        );
        assert_eq!(fields(r#"{"a": null}"#).take::<u32>("a").unwrap(), None);
        let missing = fields("{}").require::<u32>("a").unwrap_err();
        assert_eq!(missing.to_string(), "field `a`: expected a value, found nothing");
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        let check = |body: &[u8], expected: &str| {
            let error = Fields::parse(body).unwrap_err().to_string();
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
        for json in ["{}", r#"{"a": null}"#, r#"{"a": false}"#, r#"{"a": []}"#] {
            fields(json).refuse(&unsupported).unwrap();
        }
        for json in [r#"{"a": true}"#, r#"{"a": 0}"#, r#"{"a": {}}"#, r#"{"a": [1]}"#] {
            let error = fields(json).refuse(&unsupported).unwrap_err();
            assert_eq!(error.to_string(), "field `a` is not supported yet: use b");
        }
    }

    #[test]
    fn fixed_fields_are_refused_only_if_they_ask_for_something_else() {
        let fixed = [("a", "\"medium\"", "use b"), ("c", "true", "use d")];
        for json in ["{}", r#"{"a": null}"#, r#"{"a": "medium", "c": true}"#] {
            fields(json).refuse_others(&fixed).unwrap();
        }
        for json in [r#"{"a": "high"}"#, r#"{"c": "true", "a": 1}"#, r#"{"a": false}"#] {
            let error = fields(json).refuse_others(&fixed).unwrap_err();
            assert_eq!(error.to_string(), "field `a` is not supported yet: use b");
        }
        let error = fields(r#"{"c": false}"#).refuse_others(&fixed).unwrap_err();
        assert_eq!(error.to_string(), "field `c` is not supported yet: use d");
    }

    #[test]
    fn long_values_are_not_repeated() {
        let json = format!(r#"{{"a": "{}"}}"#, "é".repeat(5000));
        let error = fields(&json).take::<u32>("a").unwrap_err().to_string();
        assert!(error.chars().count() < 250 && error.ends_with("expected u32"), "{error}");
        assert!(error.contains("… (5037 characters) …"), "{error}");
    }
}
