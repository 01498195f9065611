//! What is too much to ask for: found before anything is compiled.

use llguidance::api::ParserLimits;
use serde_json::Value;

use crate::error::{Error, Result};

/// Bytes of a schema, an expression or a grammar at most. Compilers go down as deep as these can nest, or point on.
const MAX_BYTES: usize = 128 << 10;

/// Brackets of a grammar that may be open.
const MAX_DEPTH: usize = 256;

/// An automaton that counts modulo a number has as many states.
const MAX_MULTIPLES: u64 = 10_000;

/// Characters of a string that must match a pattern, too: an automaton of both has as many states.
const MAX_LENGTH_OF_PATTERN: u64 = 10_000;

/// What compiling, and the tokens that may come next, may cost; in steps, so that it is the same on every machine.
pub(super) fn parser_limits() -> ParserLimits {
    ParserLimits {
        step_lexer_fuel: 100_000,
        step_max_items: 25_000,
        max_lexer_states: 50_000,
        // Their time is not limited by steps.
        precompute_large_lexemes: false,
        // Errors go to whoever asked: what they asked need not be repeated.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

pub(super) fn check_text(text: &str) -> Result<()> {
    if text.len() > MAX_BYTES {
        let found = text.len();
        return Err(Error::grammar(format!("expected at most {MAX_BYTES} bytes, found {found}")));
    }
    Ok(())
}

pub(super) fn check_lark(grammar: &str) -> Result<()> {
    check_text(grammar)?;
    let mut depth = 0usize;
    for byte in grammar.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            let reason = format!("expected at most {MAX_DEPTH} brackets that are open at once");
            return Err(Error::grammar(reason));
        }
    }
    Ok(())
}

pub(super) fn check_schema(schema: &Value) -> Result<()> {
    if !schema.is_object() {
        return Err(Error::grammar("expected a schema that is an object"));
    }
    check_text(&schema.to_string())?;
    let (mut multiples, mut max_length, mut has_pattern) = (0u64, 0, false);
    let mut rest = vec![schema];
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(items) => rest.extend(items),
            Value::Object(fields) => {
                for (key, value) in fields {
                    match (&**key, value) {
                        ("multipleOf", Value::Number(number)) => {
                            multiples = multiples.saturating_add(digits(&number.to_string()));
                        }
                        ("minLength" | "maxLength", Value::Number(number)) => {
                            max_length = max_length.max(number.as_u64().unwrap_or(0));
                        }
                        ("pattern" | "format", Value::String(_)) => has_pattern = true,
                        _ => rest.push(value),
                    }
                }
            }
            _ => {}
        }
    }
    if multiples > MAX_MULTIPLES {
        let reason = format!(
            "`multipleOf`: expected numbers whose digits, as integers, make at most {MAX_MULTIPLES} together, found \
             {multiples}"
        );
        return Err(Error::grammar(reason));
    }
    if has_pattern && max_length > MAX_LENGTH_OF_PATTERN {
        let reason = format!(
            "`minLength`, `maxLength`: expected at most {MAX_LENGTH_OF_PATTERN} in a schema with `pattern` or `format`, \
             found {max_length}"
        );
        return Err(Error::grammar(reason));
    }
    Ok(())
}

/// The digits of a number as an integer: 25 of 0.25 or 2500, the largest there is if they are too many.
fn digits(number: &str) -> u64 {
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    // Zeros at the end of an integer are not dropped: they cost nothing less.
    let digits = if mantissa.contains('.') { digits.trim_end_matches('0') } else { &digits };
    if digits.is_empty() { 0 } else { digits.parse().unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_of_a_number_are_an_integer() {
        for (number, expected) in
            [("0", 0), ("0.0", 0), ("7", 7), ("100", 100), ("0.25", 25), ("1.50", 15), ("1e300", 1)]
        {
            assert_eq!(digits(number), expected, "{number}");
        }
        assert_eq!(digits(&"9".repeat(30)), u64::MAX);
    }
}
