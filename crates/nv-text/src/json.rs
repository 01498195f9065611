//! JSON as Python writes it: what templates and models were made with.
//!
//! Source: Python `json/encoder.py`; the defaults of the `tojson` filter are those of transformers
//! `chat_template_utils.py`.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use crate::big_integer::{big_integer, digits_of, from_digits};

/// How deep a value may be nested: as deep as JSON that is read.
const MAX_DEPTH: usize = 128;

/// The `tojson` filter: `json.dumps(value)`, with its keyword arguments.
///
/// # Errors
/// If the value is undefined or can't be JSON, is nested too deep or costs more than a render may spend, or for an unknown
/// argument.
pub(crate) fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let separators = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (&**item, &**key),
        Some(_) => return Err(invalid("tojson: expected two separators")),
    };
    let mut writer = Writer {
        out: String::new(),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        separators,
    };
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(invalid("tojson: the value is undefined"));
    }
    let json = writer.convert(state, value, 0)?;
    writer.value(&json, 0);
    Ok(Value::from(writer.out))
}

/// A value without items.
fn to_json(value: &Value) -> Result<serde_json::Value, Error> {
    serde_json::to_value(value)
        .map_err(|source| invalid("tojson: the value cannot be JSON").with_source(source))
}

/// The name of a field, which JSON wants to be a string.
fn field_name(key: &Value) -> Result<String, Error> {
    if let Some(digits) = digits_of(key) {
        return Ok(digits);
    }
    match to_json(key)? {
        serde_json::Value::String(name) => Ok(name),
        other @ (serde_json::Value::Bool(_) | serde_json::Value::Number(_)) => {
            Ok(other.to_string())
        }
        _ => Err(invalid("tojson: the name of a field is neither a string nor a number")),
    }
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

struct Writer<'a> {
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    /// Spaces for each level; `None` for all in one line.
    indent: Option<usize>,
    /// Between items, and between key and value.
    separators: (&'a str, &'a str),
}

impl Writer<'_> {
    /// Pays for each item of `value` before it takes memory: a short template can name a value with more items, or ask for
    /// more space before each, than any memory holds.
    fn convert(
        &self,
        state: &State,
        value: &Value,
        depth: usize,
    ) -> Result<serde_json::Value, Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("tojson: the value is nested more than 128 deep"));
        }
        let num_spaces = self.indent.unwrap_or(0).saturating_mul(depth);
        let num_bytes = [num_spaces, self.separators.0.len(), self.separators.1.len()]
            .into_iter()
            .chain(value.as_str().map(str::len))
            .fold(0, usize::saturating_add);
        // As the template engine counts: in pieces of 64 bytes.
        state.consume_fuel(1 + num_bytes as u64 / 64)?;
        if let Some(digits) = digits_of(value) {
            return Ok(from_digits(digits));
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| self.convert(state, &item, depth + 1));
                items.collect::<Result<_, _>>().map(serde_json::Value::Array)
            }
            ValueKind::Map => {
                let fields = value.try_iter()?.map(|key| {
                    let item = self.convert(state, &value.get_item(&key)?, depth + 1)?;
                    Ok((field_name(&key)?, item))
                });
                fields.collect::<Result<_, _>>().map(serde_json::Value::Object)
            }
            _ => to_json(value),
        }
    }

    fn value(&mut self, value: &serde_json::Value, depth: usize) {
        if let Some(digits) = big_integer(value) {
            self.out.push_str(digits);
            return;
        }
        match value {
            serde_json::Value::String(string) => self.string(string),
            serde_json::Value::Number(number) => self.number(number),
            serde_json::Value::Array(items) => {
                self.out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.start_item(index, depth + 1);
                    self.value(item, depth + 1);
                }
                self.end_items(items.is_empty(), depth);
                self.out.push(']');
            }
            serde_json::Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.sort_keys {
                    fields.sort_by_key(|&(key, _)| key);
                }
                self.out.push('{');
                for (index, (key, value)) in fields.iter().enumerate() {
                    self.start_item(index, depth + 1);
                    self.string(key);
                    self.out.push_str(self.separators.1);
                    self.value(value, depth + 1);
                }
                self.end_items(fields.is_empty(), depth);
                self.out.push('}');
            }
            null_or_bool => self.out.push_str(&null_or_bool.to_string()),
        }
    }

    fn start_item(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(self.separators.0);
        }
        self.new_line(depth);
    }

    fn end_items(&mut self, empty: bool, depth: usize) {
        if !empty {
            self.new_line(depth);
        }
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, string: &str) {
        self.out.push('"');
        for char in string.chars() {
            match char {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                char if char < ' ' || (self.ensure_ascii && !(' '..='~').contains(&char)) => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}").expect("a string takes any text");
                    }
                }
                char => self.out.push(char),
            }
        }
        self.out.push('"');
    }

    /// Integers as they are; floats as Python's `repr`, whose exponents begin below 1e-4 and have two digits.
    fn number(&mut self, number: &serde_json::Number) {
        let text = match number.as_f64() {
            Some(float) if (1e-5..1e-4).contains(&float.abs()) => format!("{float:e}"),
            _ => number.to_string(),
        };
        match text.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
            Some((digits, Ok(exponent))) => {
                write!(self.out, "{digits}e{exponent:+03}").expect("a string takes any text");
            }
            _ => self.out.push_str(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;
    use minijinja::{Environment, ErrorKind};

    /// Applies `filter` to a value and compares with what Python's `json.dumps` printed.
    fn check(value: serde_json::Value, filter: &str, expected: &str) {
        let mut environment = Environment::new();
        environment.add_filter("tojson", super::tojson);
        let context = serde_json::json!({ "value": value });
        let text = environment.render_str(&format!("{{{{ value | {filter} }}}}"), Serde(&context));
        assert_eq!(text.unwrap(), expected, "{value} | {filter}");
    }

    #[test]
    fn numbers_are_written_as_in_python() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (100_000.0, "100000.0"),
            (0.1, "0.1"),
            (12_345.678, "12345.678"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (-1.5e-7, "-1.5e-07"),
            (1.5e-5, "1.5e-05"),
            (9.9e-5, "9.9e-05"),
            (1e15, "1000000000000000.0"),
            (1_634_742_300_527_214.3, "1634742300527214.2"),
            (1e16, "1e+16"),
            (1.234_567_890_123_456_8e17, "1.2345678901234568e+17"),
            (2.5e20, "2.5e+20"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ];
        for (float, expected) in cases {
            check(float.into(), "tojson", expected);
        }
        check(u64::MAX.into(), "tojson", "18446744073709551615");
        check(i64::MIN.into(), "tojson", "-9223372036854775808");
    }

    #[test]
    fn strings_are_escaped_as_in_python() {
        let string =
            serde_json::json!("<&'\">\\/ \n\r\t\u{8}\u{c}\u{0}\u{1f}\u{7f}\u{85}\u{2028} é🤖");
        let plain = "\"<&'\\\">\\\\/ \\n\\r\\t\\b\\f\\u0000\\u001f\u{7f}\u{85}\u{2028} é🤖\"";
        check(string.clone(), "tojson", plain);
        check(
            string,
            "tojson(ensure_ascii=true)",
            "\"<&'\\\">\\\\/ \\n\\r\\t\\b\\f\\u0000\\u001f\\u007f\\u0085\\u2028 \\u00e9\\ud83e\\udd16\"",
        );
    }

    #[test]
    fn containers_are_laid_out_as_in_python() {
        let value = || serde_json::json!({"b": [1, [], {}, {"c": null}], "a": true});
        check(value(), "tojson", r#"{"b": [1, [], {}, {"c": null}], "a": true}"#);
        check(value(), "tojson(sort_keys=true)", r#"{"a": true, "b": [1, [], {}, {"c": null}]}"#);
        check(value(), "tojson(separators=[',', ':'])", r#"{"b":[1,[],{},{"c":null}],"a":true}"#);
        check(
            value(),
            "tojson(indent=2)",
            "{\n  \"b\": [\n    1,\n    [],\n    {},\n    {\n      \"c\": null\n    }\n  ],\n  \"a\": true\n}",
        );
        check(serde_json::json!([[]]), "tojson(indent=0)", "[\n[]\n]");
    }

    #[test]
    fn unknown_arguments_are_refused() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", super::tojson);
        for call in ["tojson(compact=true)", "tojson(separators=[','])", "tojson(indent='x')"] {
            let text = environment.render_str(&format!("{{{{ 1 | {call} }}}}"), ());
            assert!(text.is_err(), "{call}: {text:?}");
        }
    }

    #[test]
    fn what_no_memory_holds_is_refused() {
        let mut environment = Environment::new();
        environment.set_fuel(Some(10_000));
        environment.set_recursion_limit(200);
        environment.add_filter("tojson", super::tojson);
        let check = |template: &str, expected: ErrorKind| {
            let error = environment.render_str(template, ()).unwrap_err();
            assert_eq!(error.kind(), expected, "{template}: {error}");
        };
        check("{{ [1] | tojson(indent=1000000000000) }}", ErrorKind::OutOfFuel);
        check("{{ [[1]] | tojson(indent=18446744073709551615) }}", ErrorKind::OutOfFuel);
        // As many items as there are steps to double them, to the power of two.
        let double = "{% set x = [x, x] %}".repeat(60);
        check(&format!("{double}{{{{ x | tojson }}}}"), ErrorKind::OutOfFuel);
        let deep = "{% set x = [x] %}".repeat(200);
        check(&format!("{deep}{{{{ x | tojson }}}}"), ErrorKind::InvalidOperation);
        let separators = "['a' * 100000, ':']";
        check(
            &format!("{{{{ ([1] * 1000) | tojson(separators={separators}) }}}}"),
            ErrorKind::OutOfFuel,
        );
    }

    #[test]
    fn names_of_fields_become_strings() {
        let environment = {
            let mut environment = Environment::new();
            environment.add_filter("tojson", super::tojson);
            environment
        };
        let text = environment.render_str("{{ {1: 2, false: 3, 'a': [4]} | tojson }}", ());
        assert_eq!(text.unwrap(), r#"{"1": 2, "false": 3, "a": [4]}"#);
        assert!(environment.render_str("{{ {none: 1} | tojson }}", ()).is_err());
    }
}
