//! The fields of a JSON object that a user or a client wrote, taken one by one, so that errors name them and nothing is
//! overlooked.
//!
//! Knows no field by name.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::big_integer::big_integer;
use crate::error::{Error, Result};

/// The fields of an object that were not taken yet.
///
/// ```
/// use nv_text::Fields;
/// use serde_json::json;
///
/// let mut fields = Fields::new(json!({"n": 2.0, "stop": null, "tokens": [1, -1]}), "")?;
/// assert_eq!(fields.take::<usize>("n")?, Some(2));
/// assert_eq!(fields.take::<String>("stop")?, None);
/// let error = fields.take::<Vec<u32>>("tokens").unwrap_err();
/// let expected = "field `tokens[1]`: expected a whole number from 0 to 4294967295, found -1";
/// assert_eq!(error.to_string(), expected);
/// # Ok::<(), nv_text::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fields {
    /// Where the object is; empty for an outermost one.
    path: String,
    map: Map<String, Value>,
}

/// What the value of a field can be read as.
pub trait FromField: Sized {
    /// Reads the value of the field at `path`, which errors name.
    ///
    /// # Errors
    /// [`Error::Field`] if it is something else, null included.
    fn from_field(value: Value, path: &str) -> Result<Self>;
}

impl Fields {
    /// The fields of the object at `path`.
    ///
    /// # Errors
    /// [`Error::Field`] if it is no object.
    pub fn new(value: Value, path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        Ok(Self { map: Map::from_field(value, &path)?, path })
    }

    /// The way to a field.
    pub fn path(&self, name: &str) -> String {
        match &*self.path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// The value as it stands; `None` if it isn't there or null.
    pub fn take_value(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A field; `None` if it isn't there or null.
    ///
    /// # Errors
    /// [`Error::Field`] if it is something else.
    pub fn take<T: FromField>(&mut self, name: &str) -> Result<Option<T>> {
        let value = self.take_value(name);
        value.map(|value| T::from_field(value, &self.path(name))).transpose()
    }

    /// As [`Self::take`], for a field that must be there.
    ///
    /// # Errors
    /// [`Error::Field`] if it isn't, or is something else.
    pub fn require<T: FromField>(&mut self, name: &str) -> Result<T> {
        T::from_field(self.take_value(name).unwrap_or_default(), &self.path(name))
    }

    /// A list of strings, which may be a single one instead.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_one_or_many(&mut self, name: &str) -> Result<Option<Vec<String>>> {
        let strings = match self.take_value(name) {
            None => return Ok(None),
            Some(Value::String(one)) => vec![one],
            Some(many @ Value::Array(_)) => Vec::from_field(many, &self.path(name))?,
            Some(other) => {
                let expected = "a string or a list of strings";
                return Err(Error::unexpected(self.path(name), expected, &other));
            }
        };
        Ok(Some(strings))
    }

    /// Whether a field is there that was not taken.
    pub fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// What was not taken.
    pub fn into_rest(self) -> Map<String, Value> {
        self.map
    }
}

impl FromField for Value {
    fn from_field(value: Value, _: &str) -> Result<Self> {
        Ok(value)
    }
}

impl FromField for bool {
    fn from_field(value: Value, path: &str) -> Result<Self> {
        value.as_bool().ok_or_else(|| Error::unexpected(path, "true or false", &value))
    }
}

impl FromField for String {
    fn from_field(value: Value, path: &str) -> Result<Self> {
        match value {
            Value::String(text) => Ok(text),
            found => Err(Error::unexpected(path, "a string", &found)),
        }
    }
}

impl FromField for f64 {
    fn from_field(value: Value, path: &str) -> Result<Self> {
        let number = match big_integer(&value) {
            Some(digits) => digits.parse().ok(),
            None => value.as_f64(),
        };
        let number = number.filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| Error::unexpected(path, "a number", &value))
    }
}

impl FromField for Map<String, Value> {
    fn from_field(value: Value, path: &str) -> Result<Self> {
        let is_number = big_integer(&value).is_some();
        match value {
            Value::Object(map) if !is_number => Ok(map),
            found => Err(Error::unexpected(path, "an object", &found)),
        }
    }
}

impl<T: FromField> FromField for Vec<T> {
    fn from_field(value: Value, path: &str) -> Result<Self> {
        let Value::Array(items) = value else {
            return Err(Error::unexpected(path, "a list", &value));
        };
        let item = |(index, item)| T::from_field(item, &format!("{path}[{index}]"));
        items.into_iter().enumerate().map(item).collect()
    }
}

/// By the ids of tokens.
impl<T: FromField> FromField for BTreeMap<u32, T> {
    fn from_field(value: Value, path: &str) -> Result<Self> {
        let map = Map::from_field(value, path)?;
        let entry = |(key, value): (String, Value)| match key.parse() {
            Ok(token_id) => Ok((token_id, T::from_field(value, &format!("{path}.{key}"))?)),
            Err(_) => {
                Err(Error::unexpected(path, "token ids as keys, such as \"42\"", &key.into()))
            }
        };
        map.into_iter().map(entry).collect()
    }
}

macro_rules! whole_numbers {
    ($($type:ty: $expected:literal,)*) => {$(
        impl FromField for $type {
            fn from_field(value: Value, path: &str) -> Result<Self> {
                let number = whole(&value).and_then(|number| Self::try_from(number).ok());
                number.ok_or_else(|| Error::unexpected(path, $expected, &value))
            }
        }
    )*};
}

whole_numbers! {
    usize: "a whole number from 0",
    u64: "a whole number from 0 to 18446744073709551615",
    u32: "a whole number from 0 to 4294967295",
    i32: "a whole number from -2147483648 to 2147483647",
    i128: "a whole number",
}

/// A whole number, which languages without integers write as `2.0` or `1e3`.
fn whole(value: &Value) -> Option<i128> {
    /// Beyond it, a float may stand for a whole number that nobody wrote.
    const MAX_FLOAT: f64 = (1u64 << 53) as f64;
    let integer = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from));
    #[expect(clippy::cast_possible_truncation, reason = "a whole number within its range")]
    let rounded = |float: f64| float as i128;
    integer.or_else(|| {
        let float = value.as_f64()?;
        (float.fract() == 0.0 && float.abs() <= MAX_FLOAT).then(|| rounded(float))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::big_integer::json_from_str;

    fn fields(value: Value) -> Fields {
        Fields::new(json!({"a": value}), "").unwrap()
    }

    #[test]
    fn whole_numbers_may_be_written_as_floats() {
        let check = |text: &str, expected: Option<i128>| {
            let value = json_from_str(text).unwrap();
            assert_eq!(fields(value).take::<i128>("a").ok().flatten(), expected, "{text}");
        };
        check("1", Some(1));
        check("1.0", Some(1));
        check("-3.0", Some(-3));
        check("-0.0", Some(0));
        check("1e3", Some(1000));
        check("9007199254740992.0", Some(1 << 53));
        check("18446744073709551615", Some(u64::MAX.into()));
        check("-9223372036854775808", Some(i64::MIN.into()));
        check("1.5", None);
        check("1e300", None);
        check("18446744073709551616", None);
        check("-99999999999999999999", None);
        check("\"1\"", None);
        check("true", None);
    }

    #[test]
    fn null_and_nothing_are_no_value() {
        assert_eq!(fields(Value::Null).take::<u32>("a").unwrap(), None);
        assert_eq!(fields(json!(1)).take::<u32>("b").unwrap(), None);
        assert!(!fields(Value::Null).has("a") && fields(json!(false)).has("a"));
        let error = fields(Value::Null).require::<bool>("a").unwrap_err();
        assert_eq!(error.to_string(), "field `a`: expected true or false, found nothing");
    }

    #[test]
    fn errors_name_the_field_and_the_way_to_it() {
        fn check<T: FromField>(value: Value, expected: &str) {
            let error = fields(value).take::<T>("a").err().unwrap();
            assert_eq!(error.to_string(), format!("field `a{expected}"));
        }
        check::<f64>(json!("hot"), "`: expected a number, found \"hot\"");
        check::<bool>(json!(1), "`: expected true or false, found 1");
        check::<usize>(json!(-1), "`: expected a whole number from 0, found -1");
        check::<String>(json!({}), "`: expected a string, found an object");
        let large = || json_from_str("123456789012345678901").unwrap();
        let found = "found an integer beyond 64 bits";
        check::<usize>(large(), &format!("`: expected a whole number from 0, {found}"));
        check::<Map<String, Value>>(large(), &format!("`: expected an object, {found}"));
        assert_eq!(fields(large()).take::<f64>("a").unwrap(), Some(123_456_789_012_345_678_901.0));
        check::<Vec<u32>>(json!(5), "`: expected a list, found 5");
        let range = "expected a whole number from 0 to 4294967295, found";
        check::<Vec<Vec<u32>>>(json!([[1], [2, 0.5]]), &format!("[1][1]`: {range} 0.5"));
        check::<BTreeMap<u32, f64>>(
            json!({"7": []}),
            ".7`: expected a number, found an empty list",
        );
        let keys = "`: expected token ids as keys, such as \"42\", found";
        check::<BTreeMap<u32, f64>>(json!({"-1": 1}), &format!("{keys} \"-1\""));
        check::<u32>(json!("é".repeat(50)), &format!("`: {range} a longer string"));
        let inner = Fields::new(json!({"b": 1}), "a[0]").unwrap().take::<bool>("b").unwrap_err();
        assert_eq!(inner.to_string(), "field `a[0].b`: expected true or false, found 1");
        let error = fields(json!(true)).take_one_or_many("a").unwrap_err().to_string();
        assert_eq!(error, "field `a`: expected a string or a list of strings, found true");
    }
}
