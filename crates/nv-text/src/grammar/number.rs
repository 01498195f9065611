//! Numbers of schemas, digit by digit: which texts lie within bounds, whatever 64 bits can tell apart.

use std::cmp::Ordering;

use llguidance::derivre::{RegexAst, RegexBuilder};
use serde_json::{Map, Value};

use crate::big_integer::big_integer;
use crate::error::{Error, Result};

/// Digits of a bound at most: an expression has as many parts.
const MAX_DIGITS: usize = 100;

/// Integers up to here, and no further, are floats of 64 bits.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_992.0;

/// What it may cost to find that no number fits.
const EMPTINESS_FUEL: u64 = 10_000;

/// A number as its decimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decimal {
    is_negative: bool,
    /// Without leading zeros, but for that of 0.
    integer: String,
    /// Without trailing zeros.
    fraction: String,
}

/// What a schema says of numbers.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// The bounds from below, and whether they are numbers that fit.
    lower: Vec<(Decimal, bool)>,
    /// Those from above.
    upper: Vec<(Decimal, bool)>,
    multiple_of: Option<Decimal>,
}

impl Decimal {
    /// The number that a JSON value is; `None` if it is none. Of a float beyond 2^53 it is the integer that it stands for.
    pub(super) fn of(value: &Value) -> Option<Self> {
        let text = match (big_integer(value), value) {
            (Some(digits), _) => digits.to_owned(),
            (None, Value::Number(number)) => match number.as_f64() {
                Some(float) if !number.is_i64() && !number.is_u64() => {
                    if float.abs() > MAX_SAFE_INTEGER {
                        format!("{float:.0}")
                    } else {
                        float.to_string()
                    }
                }
                _ => number.to_string(),
            },
            _ => return None,
        };
        let (is_negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, &*text),
        };
        let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let fraction = fraction.trim_end_matches('0').to_owned();
        let is_zero = integer == "0" && fraction.is_empty();
        Some(Self { is_negative: is_negative && !is_zero, integer: integer.to_owned(), fraction })
    }

    pub(super) fn is_integer(&self) -> bool {
        self.fraction.is_empty()
    }

    /// How many of its digits are behind the point.
    pub(super) fn num_decimals(&self) -> usize {
        self.fraction.len()
    }

    /// Its digits as an integer: 25 of 0.25 or 25, the largest there is if they are too many.
    pub(super) fn digits(&self) -> u64 {
        format!("{}{}", self.integer, self.fraction).parse().unwrap_or(u64::MAX)
    }

    pub(super) fn text(&self) -> String {
        let sign = if self.is_negative { "-" } else { "" };
        let point = if self.is_integer() { "" } else { "." };
        format!("{sign}{}{point}{}", self.integer, self.fraction)
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let magnitude = |number: &Self| (number.integer.len(), number.integer.clone());
        match (self.is_negative, other.is_negative) {
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (true, true) => Self::cmp(&other.magnitude(), &self.magnitude()),
            (false, false) => {
                magnitude(self).cmp(&magnitude(other)).then(self.fraction.cmp(&other.fraction))
            }
        }
    }

    fn magnitude(&self) -> Self {
        Self { is_negative: false, ..self.clone() }
    }

    /// Texts of positive numbers above this one, which is none below 0; and of itself, if so.
    fn texts_above(&self, is_included: bool) -> RegexAst {
        let Self { integer, fraction, .. } = self;
        let num_digits = integer.len();
        let mut texts = vec![format!(r"[1-9][0-9]{{{num_digits},}}(\.[0-9]+)?")];
        for (index, digit) in integer.bytes().enumerate().filter(|&(_, digit)| digit < b'9') {
            let (same, more) = (&integer[..index], char::from(digit + 1));
            let num_free = num_digits - 1 - index;
            texts.push(format!(r"{same}[{more}-9][0-9]{{{num_free}}}(\.[0-9]+)?"));
        }
        for (index, digit) in fraction.bytes().enumerate().filter(|&(_, digit)| digit < b'9') {
            let (same, more) = (&fraction[..index], char::from(digit + 1));
            texts.push(format!(r"{integer}\.{same}[{more}-9][0-9]*"));
        }
        texts.push(format!(r"{integer}\.{fraction}[0-9]*[1-9][0-9]*"));
        if is_included {
            texts.push(match &**fraction {
                "" => format!(r"{integer}(\.0+)?"),
                fraction => format!(r"{integer}\.{fraction}0*"),
            });
        }
        RegexAst::Or(texts.into_iter().map(RegexAst::Regex).collect())
    }

    /// Texts of numbers above this one, and of itself, if so: and others that are no numbers.
    fn above(&self, is_included: bool) -> RegexAst {
        if self.is_negative {
            let below = self.magnitude().texts_above(!is_included);
            return not(RegexAst::Concat(vec![RegexAst::Literal("-".to_owned()), below]));
        }
        self.texts_above(is_included)
    }
}

impl Bounds {
    /// The keywords of a schema that are such.
    pub(super) const KEYWORDS: [&str; 5] =
        ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"];

    /// # Errors
    /// [`Error::Grammar`] if one of the keywords is no number, or one with too many digits.
    pub(super) fn of(schema: &Map<String, Value>) -> Result<Self> {
        let number = |keyword: &str| match schema.get(keyword) {
            None | Some(Value::Bool(_)) => Ok(None),
            Some(value) => {
                let number = Decimal::of(value).ok_or_else(|| {
                    Error::grammar(format!("`{keyword}`: expected a number, found {value}"))
                })?;
                let num_digits = number.integer.len() + number.fraction.len();
                if num_digits > MAX_DIGITS {
                    let reason = format!(
                        "`{keyword}`: expected at most {MAX_DIGITS} digits, found {num_digits}"
                    );
                    return Err(Error::grammar(reason));
                }
                Ok(Some(number))
            }
        };
        // Of old, the exclusive ones were flags of the others.
        let bounds = |keyword: &str, exclusive: &str| -> Result<Vec<(Decimal, bool)>> {
            let is_included = schema.get(exclusive) != Some(&Value::Bool(true));
            let bound = number(keyword)?.map(|bound| (bound, is_included));
            let other = number(exclusive)?.map(|bound| (bound, false));
            Ok(bound.into_iter().chain(other).collect())
        };
        Ok(Self {
            lower: bounds("minimum", "exclusiveMinimum")?,
            upper: bounds("maximum", "exclusiveMaximum")?,
            multiple_of: number("multipleOf")?,
        })
    }

    /// Whether a number lies within them.
    pub(super) fn contain(&self, number: &Decimal) -> Result<bool> {
        let is_within = |bounds: &[(Decimal, bool)], outside: Ordering| {
            bounds.iter().all(|(bound, is_included)| match number.cmp(bound) {
                Ordering::Equal => *is_included,
                order => order != outside,
            })
        };
        if !is_within(&self.lower, Ordering::Less) || !is_within(&self.upper, Ordering::Greater) {
            return Ok(false);
        }
        if self.multiple_of.is_none() {
            return Ok(true);
        }
        let mut builder = RegexBuilder::new();
        let fits = builder
            .mk(&self.texts(false)?)
            .and_then(|texts| builder.to_regex_limited(texts, EMPTINESS_FUEL))
            .map(|mut texts| texts.is_match(&number.text()));
        fits.map_err(|error| Error::grammar(format!("`multipleOf`: {error}")))
    }

    /// The texts of all numbers, or integers, within them.
    ///
    /// # Errors
    /// [`Error::Grammar`] if there is none.
    pub(super) fn expression(&self, is_integer: bool) -> Result<RegexAst> {
        let texts = self.texts(is_integer)?;
        let mut builder = RegexBuilder::new();
        let is_empty = builder
            .mk(&texts)
            .and_then(|texts| builder.to_regex_limited(texts, EMPTINESS_FUEL))
            .map(|mut texts| texts.always_empty());
        match is_empty {
            Ok(false) => Ok(texts),
            Ok(true) => {
                let kind = if is_integer { "integer" } else { "number" };
                let reason = format!("no {kind} is within {}", self.described());
                Err(Error::grammar(reason))
            }
            Err(error) => Err(Error::grammar(format!("{}: {error}", self.described()))),
        }
    }

    fn texts(&self, is_integer: bool) -> Result<RegexAst> {
        let syntax = if is_integer {
            RegexAst::Regex("0|-?[1-9][0-9]*".to_owned())
        } else {
            let numbers = RegexAst::Regex(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?".to_owned());
            RegexAst::And(vec![numbers, not(RegexAst::Regex(r"-0(\.0+)?".to_owned()))])
        };
        let mut all = vec![syntax];
        all.extend(self.lower.iter().map(|(bound, is_included)| bound.above(*is_included)));
        all.extend(self.upper.iter().map(|(bound, is_included)| not(bound.above(!is_included))));
        if let Some(multiple_of) = &self.multiple_of {
            let digits = u32::try_from(multiple_of.digits()).ok().filter(|&digits| digits > 0);
            let (Some(digits), false) = (digits, multiple_of.is_negative) else {
                let found = multiple_of.text();
                let reason =
                    format!("`multipleOf`: expected a number of a few digits, found {found}");
                return Err(Error::grammar(reason));
            };
            let num_decimals = u32::try_from(multiple_of.num_decimals()).unwrap_or(u32::MAX);
            all.push(RegexAst::Concat(vec![
                RegexAst::Regex("-?".to_owned()),
                RegexAst::MultipleOf(digits, num_decimals),
            ]));
        }
        Ok(RegexAst::And(all))
    }

    /// The bounds, for errors and to tell them apart.
    pub(super) fn described(&self) -> String {
        let bound = |inclusive: &str, exclusive: &str, (bound, is_included): &(Decimal, bool)| {
            let keyword = if *is_included { inclusive } else { exclusive };
            format!("`{keyword}` {}", bound.text())
        };
        let lower = self.lower.iter().map(|it| bound("minimum", "exclusiveMinimum", it));
        let upper = self.upper.iter().map(|it| bound("maximum", "exclusiveMaximum", it));
        let multiple_of = self.multiple_of.iter().map(|it| format!("`multipleOf` {}", it.text()));
        lower.chain(upper).chain(multiple_of).collect::<Vec<_>>().join(", ")
    }

    /// Whether llguidance reads these keywords otherwise than they are: it rounds integers beyond 2^53, takes the bound
    /// itself for a number between one that is excluded and another with the same integer part, and multiplies what
    /// numbers are multiples of by ten until that is a whole float.
    pub(super) fn are_misread(schema: &Map<String, Value>, is_integer: bool) -> bool {
        let has_number = |keyword: &str| schema.get(keyword).is_some_and(|it| !it.is_boolean());
        let is_exclusive = has_number("exclusiveMinimum")
            || has_number("exclusiveMaximum")
            || schema.get("exclusiveMinimum") == Some(&Value::Bool(true))
            || schema.get("exclusiveMaximum") == Some(&Value::Bool(true));
        let is_closed = (has_number("minimum") || has_number("exclusiveMinimum"))
            && (has_number("maximum") || has_number("exclusiveMaximum"));
        let is_inexact = schema.get("multipleOf").is_some_and(|value| {
            let Some(number) = Decimal::of(value) else { return false };
            let mut float = value.as_f64().unwrap_or_default().abs();
            let mut num_decimals = 0;
            while float.fract() != 0.0 {
                float *= 10.0;
                num_decimals += 1;
            }
            num_decimals != number.fraction.len()
        });
        (is_exclusive && is_closed && !is_integer)
            || is_inexact
            || Self::KEYWORDS.iter().filter_map(|keyword| schema.get(*keyword)).any(is_big)
    }
}

/// Whether a value is a number that 64 bits don't tell from its neighbours.
pub(super) fn is_big(value: &Value) -> bool {
    big_integer(value).is_some() || value.as_f64().is_some_and(|it| it.abs() >= MAX_SAFE_INTEGER)
}

/// The texts of these numbers alone.
pub(super) fn one_of(numbers: &[Decimal]) -> RegexAst {
    RegexAst::Or(numbers.iter().map(|number| RegexAst::Literal(number.text())).collect())
}

/// What [`one_of`] says, to tell it apart.
pub(super) fn described(numbers: &[Decimal]) -> String {
    numbers.iter().map(Decimal::text).collect::<Vec<_>>().join(" ")
}

fn not(expression: RegexAst) -> RegexAst {
    RegexAst::Not(Box::new(expression))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::of(&crate::json_from_str(text).unwrap()).unwrap()
    }

    fn matches(expression: &RegexAst, text: &str) -> bool {
        let mut builder = RegexBuilder::new();
        let expression = builder.mk(expression).unwrap();
        builder.to_regex_limited(expression, 1_000_000).unwrap().is_match(text)
    }

    #[test]
    fn numbers_are_their_digits() {
        for (text, expected) in [
            ("0", "0"),
            ("-0.0", "0"),
            ("1.50", "1.5"),
            ("-7.0", "-7"),
            ("1e-7", "0.0000001"),
            ("1e22", "10000000000000000000000"),
            ("1e23", "99999999999999991611392"),
            ("9007199254740993", "9007199254740993"),
            ("-123456789012345678901", "-123456789012345678901"),
        ] {
            assert_eq!(decimal(text).text(), expected, "{text}");
        }
        let ascending = ["-123456789012345678901", "-12", "-9.5", "-9", "0", "0.05", "0.5", "10"];
        for (index, low) in ascending.iter().enumerate() {
            for (other, high) in ascending.iter().enumerate() {
                assert_eq!(decimal(low).cmp(&decimal(high)), index.cmp(&other), "{low} {high}");
            }
        }
    }

    #[test]
    fn bounds_that_nothing_fits_are_refused() {
        let check = |schema: Value, is_integer, expected: &str| {
            let bounds = Bounds::of(schema.as_object().unwrap());
            let error = bounds.and_then(|it| it.expression(is_integer).map(drop)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(
            json!({"minimum": 5, "maximum": 4.5}),
            false,
            "no number is within `minimum` 5, `maximum` 4.5",
        );
        check(json!({"minimum": 4.1, "exclusiveMaximum": 5}), true, "no integer is within");
        check(json!({"minimum": 8, "maximum": 13, "multipleOf": 7}), true, "no integer");
        check(json!({"minimum": "a"}), true, "`minimum`: expected a number, found \"a\"");
        check(json!({"minimum": 1e200}), true, "`minimum`: expected at most 100 digits");
        check(json!({"multipleOf": 0}), true, "`multipleOf`: expected a number");
    }

    fn number() -> impl Strategy<Value = String> {
        let integer = prop_oneof![
            (-30i128..30).prop_map(|it| it.to_string()),
            any::<i64>().prop_map(|it| it.to_string()),
            (-3i128..3).prop_map(|it| ((1i128 << 63) + it).to_string()),
            any::<i128>().prop_map(|it| it.to_string()),
        ];
        let fraction = prop_oneof![Just(""), Just(".5"), Just(".05"), Just(".99"), Just(".125")];
        // Floats are exact up to here.
        (integer, fraction).prop_map(
            |(integer, fraction)| {
                if integer.len() < 5 { integer + fraction } else { integer }
            },
        )
    }

    proptest! {
        #[test]
        fn texts_are_those_of_numbers_within_the_bounds(
            bounds in proptest::collection::vec((0..4usize, number()), 0..3),
            others in proptest::collection::vec(number(), 1..8),
            offset in -2i128..3,
            zeros in 0..3usize,
            is_integer: bool,
        ) {
            let schema: Map<String, Value> = bounds
                .iter()
                .map(|(keyword, number)| {
                    let keyword = Bounds::KEYWORDS[*keyword].to_owned();
                    (keyword, crate::json_from_str(number).unwrap())
                })
                .collect();
            let near = bounds.iter().filter_map(|(_, number)| {
                Some((number.split('.').next()?.parse::<i128>().ok()?.checked_add(offset)?).to_string())
            });
            let all = others.iter().cloned().chain(bounds.iter().map(|it| it.1.clone())).chain(near);
            let bounds = Bounds::of(&schema).unwrap();
            let expression = bounds.texts(is_integer).unwrap();
            for text in all {
                let number = decimal(&text);
                let expected = bounds.contain(&number).unwrap();
                let is_text_of_zero = text == "-0";
                prop_assert_eq!(
                    matches(&expression, &number.text()),
                    expected && (!is_integer || number.is_integer()),
                    "{} {:?}", text, schema
                );
                let point = if number.is_integer() { "." } else { "" };
                let longer = format!("{}{point}0{}", number.text(), "0".repeat(zeros));
                prop_assert_eq!(
                    matches(&expression, &longer),
                    expected && !is_integer && !is_text_of_zero,
                    "{} {:?}", longer, schema
                );
            }
        }
    }
}
