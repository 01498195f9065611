//! The fields of a JSON object, taken one by one, so that an error names its field and what is left over is unknown.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use nano_vllm_rs::text::{json_from_str, rounded};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of an object that were not taken yet.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads an object.
    ///
    /// # Errors
    /// If `text` is no JSON, or something else than an object.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match json_from_str(text)? {
            Value::Object(map) => Ok(Self(map)),
            other => bail!("expected an object, found {}", describe(&other)),
        }
    }

    /// The value as it stands; `None` if it isn't there, or null.
    pub(crate) fn take_value(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A field; `None` if it isn't there, or null.
    ///
    /// # Errors
    /// If it is not what is `expected`.
    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>> {
        let Some(value) = self.take_value(name) else { return Ok(None) };
        let value = rounded(&value).unwrap_or(value);
        match T::deserialize(&value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => bail!("field `{name}`: expected {expected}, found {}", describe(&value)),
        }
    }

    /// Replaces `field`, if it is there.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(crate) fn take_into<T: DeserializeOwned>(
        &mut self,
        name: &str,
        expected: &str,
        field: &mut Option<T>,
    ) -> Result<()> {
        if let Some(value) = self.take(name, expected)? {
            *field = Some(value);
        }
        Ok(())
    }

    /// The entries of an object whose keys are numbers.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(crate) fn take_map(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<Vec<(u32, f64)>>> {
        let map: Option<BTreeMap<u32, f64>> = self.take(name, expected)?;
        Ok(map.map(|map| map.into_iter().collect()))
    }

    /// A list, which may be a single string instead.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(crate) fn take_one_or_many(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<Vec<String>>> {
        if let Some(Value::String(one)) = self.0.get_mut(name) {
            let one = std::mem::take(one);
            self.0.remove(name);
            return Ok(Some(vec![one]));
        }
        self.take(name, expected)
    }

    /// Ends the object.
    ///
    /// # Errors
    /// If there is a field that nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        match self.0.keys().next() {
            Some(name) => bail!("field `{name}` is unknown"),
            None => Ok(()),
        }
    }
}

/// What is there, without repeating long texts.
pub(crate) fn describe(value: &Value) -> String {
    const LONGEST: usize = 40;
    let kind = match value {
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
        Value::String(text) if text.len() > LONGEST => "a longer string",
        short => return short.to_string(),
    };
    let text = value.to_string();
    if text.len() > LONGEST { kind.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_field_and_what_is_there() {
        let check = |text: &str, read: fn(&mut Fields) -> Result<()>, expected: &str| {
            let mut fields = Fields::parse(text).unwrap();
            let error = read(&mut fields).and_then(|()| fields.finish()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        let count: fn(&mut Fields) -> Result<()> =
            |fields| fields.take::<usize>("n", "a whole number").map(drop);
        check(r#"{"n": "two"}"#, count, r#"field `n`: expected a whole number, found "two""#);
        check(r#"{"n": -1}"#, count, "field `n`: expected a whole number, found -1");
        check(r#"{"n": 1, "m": 2}"#, count, "field `m` is unknown");
        let long = format!(r#"{{"n": [{}0]}}"#, "1, ".repeat(50));
        check(&long, count, "field `n`: expected a whole number, found a list");
        let stop: fn(&mut Fields) -> Result<()> =
            |fields| fields.take_one_or_many("stop", "strings").map(drop);
        check(r#"{"stop": ["a", 1]}"#, stop, r#"field `stop`: expected strings, found ["a",1]"#);
        let bias: fn(&mut Fields) -> Result<()> =
            |fields| fields.take_map("bias", "numbers").map(drop);
        check(r#"{"bias": {"a": 1}}"#, bias, r#"field `bias`: expected numbers, found {"a":1}"#);
        assert_eq!(Fields::parse("[1]").unwrap_err().to_string(), "expected an object, found [1]");
    }

    #[test]
    fn what_is_there_is_taken_once_and_null_is_nothing() {
        let text =
            r#"{"n": 3, "stop": "a", "many": ["b"], "bias": {"7": -1, "8": 2.5}, "none": null}"#;
        let mut fields = Fields::parse(text).unwrap();
        let (mut n, mut none) = (Some(1), Some(5_u8));
        fields.take_into("n", "", &mut n).unwrap();
        fields.take_into("none", "", &mut none).unwrap();
        assert_eq!((n, none), (Some(3), Some(5)));
        assert_eq!(fields.take_one_or_many("stop", "").unwrap(), Some(vec!["a".to_owned()]));
        assert_eq!(fields.take_one_or_many("many", "").unwrap(), Some(vec!["b".to_owned()]));
        assert_eq!(fields.take_map("bias", "").unwrap(), Some(vec![(7, -1.0), (8, 2.5)]));
        assert_eq!(fields.take::<u8>("n", "").unwrap(), None);
        fields.finish().unwrap();
    }
}
