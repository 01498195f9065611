//! Integers beyond 64 bits in JSON, which keep their digits as they do in Python.
//!
//! [`serde_json::Value`] has no number for one. (Its feature `arbitrary_precision` would change how numbers are read in
//! every program that this library is a part of.) So one is an object with a single field, [`FIELD`], that holds its
//! digits. Templates see a number, and JSON that they write has the digits.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, ValueKind};
use serde_json::Value;

/// The field that holds the digits.
const FIELD: &str = "$nv_text::BigInteger";

/// Digits of a number at most, as in Python: behind them it is left to `serde_json`, which refuses it.
const MAX_DIGITS: usize = 4300;

/// Reads JSON as [`serde_json::from_str`] does, but for integers beyond 64 bits: [`big_integer`] tells their digits,
/// where others have rounded them to a float. And `-0` is the integer 0, as in Python.
///
/// ```
/// let value = nv_text::json_from_str(r#"{"id": 123456789012345678901}"#)?;
/// assert_eq!(nv_text::big_integer(&value["id"]), Some("123456789012345678901"));
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// # Errors
/// As [`serde_json::from_str`].
pub fn json_from_str(text: &str) -> serde_json::Result<Value> {
    match with_fields(text) {
        Some(text) => serde_json::from_str(&text),
        None => serde_json::from_str(text),
    }
}

/// The digits of an integer beyond 64 bits, behind its sign; `None` of any other value.
pub fn big_integer(value: &Value) -> Option<&str> {
    match value {
        Value::Object(fields) if fields.len() == 1 => {
            fields.get(FIELD)?.as_str().filter(|text| is_big_integer(text))
        }
        _ => None,
    }
}

/// The value with floats in the place of integers beyond 64 bits, as `serde_json` reads them; `None` if it has none.
pub fn rounded(value: &Value) -> Option<Value> {
    fn has_big_integer(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().any(has_big_integer),
            Value::Object(fields) => {
                big_integer(value).is_some() || fields.values().any(has_big_integer)
            }
            _ => false,
        }
    }
    fn round(value: &Value) -> Value {
        if let Some(digits) = big_integer(value) {
            let float: f64 = digits.parse().unwrap_or_default();
            return float.clamp(f64::MIN, f64::MAX).into();
        }
        match value {
            Value::Array(items) => items.iter().map(round).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(key, value)| (key.clone(), round(value))).collect()
            }
            other => other.clone(),
        }
    }
    has_big_integer(value).then(|| round(value))
}

/// An integer of these digits, which are more than 64 bits.
pub(crate) fn from_digits(digits: String) -> Value {
    Value::Object([(FIELD.to_owned(), digits.into())].into_iter().collect())
}

/// A value of a template that was made of JSON, with numbers in the place of the objects that stand for them.
pub(crate) fn for_template(value: minijinja::Value) -> minijinja::Value {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => match value.try_iter() {
            Ok(items) => items.map(for_template).collect(),
            Err(_) => value,
        },
        ValueKind::Map => {
            if value.len() == Some(1)
                && let Ok(digits) = value.get_attr(FIELD)
                && let Some(digits) = digits.as_str().filter(|text| is_big_integer(text))
            {
                return number(digits);
            }
            let Ok(keys) = value.try_iter() else { return value };
            let fields = keys.map(|key| {
                let item = value.get_item(&key).unwrap_or_default();
                (key, for_template(item))
            });
            minijinja::Value::from_pairs(fields)
        }
        _ => value,
    }
}

/// The digits of a template's integer that is beyond 64 bits.
pub(crate) fn digits_of(value: &minijinja::Value) -> Option<String> {
    if let Some(BigInteger(digits)) = value.downcast_object_ref() {
        return Some(digits.clone());
    }
    let text = value.is_integer().then(|| value.to_string())?;
    is_big_integer(&text).then_some(text)
}

/// Templates reckon with 128 bits; what is beyond can only be written.
fn number(digits: &str) -> minijinja::Value {
    match (digits.parse::<i128>(), digits.parse::<u128>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(number)) => number.into(),
        _ => minijinja::Value::from_object(BigInteger(digits.to_owned())),
    }
}

/// An integer of more than 128 bits.
#[derive(Debug)]
struct BigInteger(String);

impl Object for BigInteger {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether JSON of this number is an integer that 64 bits don't hold, and that Python reads.
fn is_big_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    (19..=MAX_DIGITS).contains(&digits.len())
        && !digits.starts_with('0')
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse::<i64>().is_err()
        && text.parse::<u64>().is_err()
}

/// JSON with an object in the place of each integer beyond 64 bits, and 0 in that of `-0`; `None` if it has none.
fn with_fields(text: &str) -> Option<String> {
    let mut out = String::new();
    let (mut copied, mut position, mut is_in_string) = (0, 0, false);
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(position) {
        match byte {
            b'\\' if is_in_string => position += 1,
            b'"' => is_in_string = !is_in_string,
            b'-' | b'0'..=b'9' if !is_in_string => {
                let is_in_number = |byte: &u8| b"+-.eE0123456789".contains(byte);
                let len = bytes[position..].iter().take_while(|byte| is_in_number(byte)).count();
                let number = &text[position..position + len];
                let replacement = match number {
                    "-0" => Some("0".to_owned()),
                    _ if is_big_integer(number) => Some(from_digits(number.to_owned()).to_string()),
                    _ => None,
                };
                if let Some(replacement) = replacement {
                    out.push_str(&text[copied..position]);
                    out.push_str(&replacement);
                    copied = position + len;
                }
                position += len;
                continue;
            }
            _ => {}
        }
        position += 1;
    }
    (copied > 0).then(|| out + &text[copied..])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_keep_their_digits() {
        let big = |digits: &str| from_digits(digits.to_owned());
        let check = |text: &str, expected: Value| {
            assert_eq!(json_from_str(text).unwrap(), expected, "{text}");
        };
        check("18446744073709551615", json!(u64::MAX));
        check("18446744073709551616", big("18446744073709551616"));
        check("-9223372036854775808", json!(i64::MIN));
        check("-9223372036854775809", big("-9223372036854775809"));
        let many = "7".repeat(MAX_DIGITS);
        check(&many, big(&many));
        check(
            r#"[123456789012345678901,{"a\\\"":"123456789012345678901 \\","b":-123456789012345678901}, -0]"#,
            json!([
                big("123456789012345678901"),
                {"a\\\"": "123456789012345678901 \\", "b": big("-123456789012345678901")},
                0,
            ]),
        );
        // Floats are those of 64 bits in Python, too.
        check("123456789012345678901.0", json!(123_456_789_012_345_680_000.0));
        check("1e30", json!(1e30));
        check("-0.0", json!(-0.0));
        for text in ["0123456789012345678901", "-", "{123456789012345678901: 1}", "1e400"] {
            assert!(json_from_str(text).is_err(), "{text}");
        }
        assert!(json_from_str(&"7".repeat(MAX_DIGITS + 1)).is_err());
    }

    #[test]
    fn only_integers_beyond_64_bits_are_such() {
        for text in ["1", "18446744073709551615", "1e30", "00000000000000000000", "x"] {
            assert_eq!(big_integer(&from_digits(text.to_owned())), None, "{text}");
        }
        let mut more = from_digits("123456789012345678901".to_owned());
        assert_eq!(big_integer(&more), Some("123456789012345678901"));
        let expected = json!([123_456_789_012_345_680_000.0, "a"]);
        assert_eq!(rounded(&json!([more.clone(), "a"])), Some(expected));
        more["a"] = json!(1);
        assert_eq!(big_integer(&more), None);
        assert_eq!(rounded(&more), None);
    }
}
