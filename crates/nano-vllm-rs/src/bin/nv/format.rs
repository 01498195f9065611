//! Numbers as people read them.

use std::time::Duration;

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in the largest unit of which there is at least one, to a tenth.
pub(crate) fn bytes(num_bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if num_bytes < 1024 {
        return format!("{num_bytes} B");
    }
    let (mut size, mut unit) = (num_bytes as f64 / 1024.0, 0);
    // What rounds to 1024.0 is 1.0 of the next.
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// A time in the unit that leaves one to three digits before the point, to three or four digits.
pub(crate) fn seconds(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 0.9995 => (s, "s"),
        s if s >= 0.9995e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// A share of one, to a tenth of a hundredth.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// `1 token`, `2,000 tokens`.
pub(crate) fn plural(number: usize, one: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {one}{s}", grouped(number as u64))
}

/// `, 12.3 tok/s`, if there is anything to tell.
pub(crate) fn speed(num_tokens: usize, time: Duration) -> String {
    if num_tokens == 0 || time.is_zero() {
        return String::new();
    }
    format!(", {:.1} tok/s", num_tokens as f64 / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        let check = |number, expected| assert_eq!(grouped(number), expected);
        check(0, "0");
        check(999, "999");
        check(1000, "1,000");
        check(596_049_920, "596,049,920");
    }

    #[test]
    fn sizes_have_the_fitting_unit() {
        let check = |num_bytes, expected| assert_eq!(bytes(num_bytes), expected);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(1024 * 1024 - 1, "1.0 MiB");
        check(1_192_099_840, "1.1 GiB");
        check(u64::MAX, "16384.0 PiB");
    }

    #[test]
    fn times_have_the_fitting_unit_and_digits() {
        let check = |time, expected| assert_eq!(seconds(time), expected);
        check(35.24, "35.2 s");
        check(1.0, "1.00 s");
        check(0.9996, "1.00 s");
        check(0.033_14, "33.1 ms");
        check(0.123_4, "123 ms");
        check(0.000_999_9, "1.00 ms");
        check(0.000_04, "40.0 µs");
    }

    #[test]
    fn one_is_not_many() {
        let check = |number, expected| assert_eq!(plural(number, "token"), expected);
        check(0, "0 tokens");
        check(1, "1 token");
        check(1200, "1,200 tokens");
    }
}
