//! Typed access to the fields of a JSON object, so that every error names the field it is about.
//!
//! Serde's derived readers report a line and a column; whoever edits a config needs a name. It knows nothing of
//! what the fields mean.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A JSON object whose fields are taken by name and type. A null counts as an absent field.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// What stands before a field's name in errors: empty, or `rope_scaling.`.
    prefix: String,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, prefix: String::new() }
    }

    /// A field's name as errors show it.
    pub(crate) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The names and values of all fields that are not null.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.object.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (&**key, value))
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the field is written as null, which some fields tell apart from being absent.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    pub(crate) fn get<T: Field>(&self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match T::from_json(value) {
            Some(field) => Ok(Some(field)),
            None => Err(Error::invalid(self.name(key), T::EXPECTED, describe(value))),
        }
    }

    pub(crate) fn get_or<T: Field>(&self, key: &str, default: T) -> Result<T> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    /// The field called `key`, if it is there and can be read: for what decides nothing.
    pub(crate) fn get_if_valid<T: Field>(&self, key: &str) -> Option<T> {
        self.value(key).and_then(T::from_json)
    }

    pub(crate) fn require<T: Field>(&self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| Error::Missing { field: self.name(key) })
    }

    /// `value`, read from the field called `key`, as one spelling of a setting that may have several.
    pub(crate) fn spelling<T>(&self, key: &str, value: T) -> Spelling<T> {
        let shown = self.value(key).map(describe).unwrap_or_default();
        Spelling { name: self.name(key), shown, value }
    }

    /// The field called `key` as one spelling of a setting that may have several.
    pub(crate) fn get_spelling<T: Field>(&self, key: &str) -> Result<Option<Spelling<T>>> {
        Ok(self.get(key)?.map(|value| self.spelling(key, value)))
    }

    /// The fields of the object called `key`.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                Ok(Some(Fields { object, prefix: format!("{}.", self.name(key)) }))
            }
            Some(other) => Err(Error::invalid(self.name(key), "an object", describe(other))),
        }
    }
}

/// One of several fields that mean the same.
#[derive(Debug)]
pub(crate) struct Spelling<T> {
    name: String,
    /// The value as the file has it.
    shown: String,
    value: T,
}

/// The value that all given spellings of a setting agree on, if any is given.
pub(crate) fn agreed<T: PartialEq>(
    spellings: impl IntoIterator<Item = Option<Spelling<T>>>,
) -> Result<Option<T>> {
    let mut given = spellings.into_iter().flatten();
    let Some(first) = given.next() else { return Ok(None) };
    match given.find(|other| other.value != first.value) {
        None => Ok(Some(first.value)),
        Some(second) => Err(Error::Conflict {
            first: first.name,
            first_value: first.shown,
            second: second.name,
            second_value: second.shown,
        }),
    }
}

/// A type that a field can have.
pub(crate) trait Field: Sized {
    const EXPECTED: &str;

    fn from_json(value: &Value) -> Option<Self>;
}

impl Field for bool {
    const EXPECTED: &str = "true or false";

    fn from_json(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Field for usize {
    const EXPECTED: &str = "a non-negative integer";

    fn from_json(value: &Value) -> Option<Self> {
        whole(value)?.try_into().ok()
    }
}

impl Field for u32 {
    const EXPECTED: &str = "a token id";

    fn from_json(value: &Value) -> Option<Self> {
        whole(value)?.try_into().ok()
    }
}

/// A whole number from 0, which some writers spell `40960.0` or `1e6`.
fn whole(value: &Value) -> Option<u64> {
    /// Up to here a float is one whole number only.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number within the range of u64"
    )]
    let whole = |number: f64| number as u64;
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        ((0.0..=MAX_EXACT).contains(&number) && number.fract() == 0.0).then(|| whole(number))
    })
}

impl Field for f64 {
    const EXPECTED: &str = "a number";

    fn from_json(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

impl Field for String {
    const EXPECTED: &str = "a string";

    fn from_json(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

/// Strings, written as one string or as a list of them.
impl Field for Vec<String> {
    const EXPECTED: &str = "a list of strings";

    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Array(items) => items.iter().map(String::from_json).collect(),
            item => Some(vec![String::from_json(item)?]),
        }
    }
}

/// Token ids, written as one id or as a list of them. A negative one is no token's and left out.
impl Field for Vec<u32> {
    const EXPECTED: &str = "a token id or a list of token ids";

    fn from_json(value: &Value) -> Option<Self> {
        let ids = match value {
            Value::Array(ids) => ids.as_slice(),
            id => std::slice::from_ref(id),
        };
        let given = ids.iter().filter(|id| id.as_i64().is_none_or(|id| id >= 0));
        given.map(u32::from_json).collect()
    }
}

/// A value as errors show it: in full if it fits on a line, else by its kind.
pub(crate) fn describe(value: &Value) -> String {
    const MAX_LEN: usize = 60;
    match (value.to_string(), value) {
        (text, _) if text.len() <= MAX_LEN => text,
        (_, Value::Array(items)) => format!("a list of {} items", items.len()),
        (_, Value::Object(fields)) => format!("an object of {} fields", fields.len()),
        (text, _) => format!("{}…", text.chars().take(MAX_LEN).collect::<String>()),
    }
}

/// Reads the JSON object in the file at `path` through `read`, and puts the path into what fails.
pub(crate) fn load<T>(path: &Path, read: impl FnOnce(Fields<'_>) -> Result<T>) -> Result<T> {
    let path_buf = || path.to_path_buf();
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path_buf(), source })?;
    let object = serde_json::from_slice(&bytes)
        .map_err(|source| Error::Parse { path: path_buf(), source })?;
    read(Fields::new(&object))
        .map_err(|source| Error::File { path: path_buf(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn errors_name_the_file_and_then_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let check = |expected: &str, source: &str| {
            let error = load(&path, |fields| fields.require::<usize>("size")).unwrap_err();
            let path = path.display().to_string();
            assert_eq!(error.to_string(), expected.replace("PATH", &path));
            assert_eq!(error.source().unwrap().to_string(), source);
        };
        let missing = fs::read(&path).unwrap_err().to_string();
        check("cannot read PATH", &missing);
        for (content, source) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("[1]", "invalid type: sequence, expected a map at line 1 column 0"),
            ("<html>", "expected value at line 1 column 1"),
            (r#"{"size": NaN}"#, "expected value at line 1 column 10"),
        ] {
            fs::write(&path, content).unwrap();
            check("PATH is not a JSON object; download it again if it came from a hub", source);
        }
        fs::write(&path, r#"{"size": -1}"#).unwrap();
        check("cannot use PATH", "field `size`: expected a non-negative integer, found -1");
        fs::write(&path, r#"{"size": 3}"#).unwrap();
        assert_eq!(load(&path, |fields| fields.require::<usize>("size")).unwrap(), 3);
    }

    #[test]
    fn long_values_are_described_briefly() {
        let check = |value: Value, expected: &str| assert_eq!(describe(&value), expected);
        check(Value::from("short"), "\"short\"");
        check(Value::from(vec![0; 40]), "a list of 40 items");
        check((0..40).map(|i| (i.to_string(), i)).collect(), "an object of 40 fields");
        check(Value::from("é".repeat(60)), &format!("\"{}…", "é".repeat(59)));
    }
}
