//! What is too much to ask for: found before anything is compiled.

use llguidance::api::ParserLimits;
use serde_json::Value;

use super::keywords;
use super::number::Decimal;
use crate::error::{Error, Result};

/// Bytes of a schema, an expression or a grammar at most. Compilers go down as deep as these can nest, or point on.
const MAX_BYTES: usize = 128 << 10;

/// Brackets of a grammar that may be open.
const MAX_DEPTH: usize = 256;

/// An automaton that counts modulo a number has as many states.
const MAX_MULTIPLES: u64 = 10_000;

/// What two numbers are a multiple of is found by multiplying them, in 32 bits.
const MAX_COMMON_MULTIPLE: u64 = 65_535;

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
    let (mut multiples, mut max_length, mut has_pattern) = (Vec::new(), 0, false);
    let mut rest = vec![schema];
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(items) => rest.extend(items),
            Value::Object(fields) => {
                for (key, value) in fields {
                    match (&**key, value) {
                        ("multipleOf", Value::Number(_)) => multiples.extend(Decimal::of(value)),
                        ("minLength" | "maxLength", Value::Number(_)) => {
                            let length =
                                keywords::count(value).filter(|&it| it < keywords::LONGEST);
                            max_length = max_length.max(length.unwrap_or(0));
                        }
                        ("pattern", Value::String(_)) => has_pattern = true,
                        ("format", Value::String(name)) => {
                            has_pattern |= keywords::FORMATS.contains(&&**name);
                        }
                        _ => rest.push(value),
                    }
                }
            }
            _ => {}
        }
    }
    check_multiples(&multiples)?;
    if has_pattern && max_length > MAX_LENGTH_OF_PATTERN {
        let reason = format!(
            "`minLength`, `maxLength`: expected at most {MAX_LENGTH_OF_PATTERN} in a schema with `pattern` or `format`, \
             found {max_length}"
        );
        return Err(Error::grammar(reason));
    }
    Ok(())
}

fn check_multiples(multiples: &[Decimal]) -> Result<()> {
    let sum = multiples.iter().fold(0, |sum: u64, it| sum.saturating_add(it.digits()));
    if sum > MAX_MULTIPLES {
        let reason = format!(
            "`multipleOf`: expected numbers whose digits, as integers, make at most {MAX_MULTIPLES} together, found {sum}"
        );
        return Err(Error::grammar(reason));
    }
    let scale = multiples.iter().map(Decimal::num_decimals).max().unwrap_or(0);
    let common = multiples.iter().try_fold(1, |common: u64, number| {
        let factor = 10u64.checked_pow((scale - number.num_decimals()).try_into().ok()?)?;
        let number = number.digits().checked_mul(factor).filter(|&number| number > 0)?;
        let (mut divisor, mut rest) = (common, number);
        while rest > 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        (common / divisor).checked_mul(number)
    });
    let is_one = multiples.windows(2).all(|pair| pair[0] == pair[1]);
    if !is_one && common.is_none_or(|common| common > MAX_COMMON_MULTIPLE) {
        let reason = format!(
            "`multipleOf`: expected numbers with a common multiple of at most {MAX_COMMON_MULTIPLE} times the last \
             decimal place of them all"
        );
        return Err(Error::grammar(reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn multiples_are_few_and_have_one_in_common() {
        let check = |multiples: &[f64], is_right: bool| {
            let multiples: Vec<Value> =
                multiples.iter().map(|it| json!({"multipleOf": it})).collect();
            let result = check_schema(&json!({"allOf": multiples}));
            assert_eq!(result.is_ok(), is_right, "{multiples:?} {result:?}");
        };
        check(&[0.01, 5.0, 100.0], true);
        check(&[0.07], true);
        check(&[1e-9], true);
        check(&[9999.0], true);
        check(&[10_001.0], false);
        check(&[6000.0, 6000.0], false);
        check(&[2000.0, 2000.0], true);
        check(&[0.001, 1000.0], false);
        check(&[1e-9, 5.0], false);
        check(&[1e300], false);
        check(&[997.0, 991.0], false);
    }
}
