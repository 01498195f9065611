//! What a JSON string says, as it comes.

/// Takes the escapes out of a JSON string. What is no escape stays as it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Unescaper {
    /// The start of an escape, or of two that make one character.
    escape: String,
}

impl Unescaper {
    /// Goes on by `text`; appends what is certain to `said`.
    pub(super) fn push(&mut self, text: &str, said: &mut String) {
        for char in text.chars() {
            if self.escape.is_empty() && char != '\\' {
                said.push(char);
                continue;
            }
            self.escape.push(char);
            if let Ok(escaped) = serde_json::from_str::<String>(&format!("\"{}\"", self.escape)) {
                said.push_str(&escaped);
                self.escape.clear();
            } else if !is_start(&self.escape) {
                // No escape after all; with this character another may begin.
                self.escape.pop();
                said.push_str(&std::mem::take(&mut self.escape));
                if char == '\\' {
                    self.escape.push(char);
                } else {
                    said.push(char);
                }
            }
        }
    }

    /// Ends the string: what was held back.
    pub(super) fn finish(self) -> String {
        self.escape
    }
}

/// Whether `text` is the start of an escape, or of two for the halves of a UTF-16 surrogate pair.
fn is_start(text: &str) -> bool {
    let is_start_of_one = |text: &str| match text.strip_prefix("\\u") {
        Some(digits) => digits.len() <= 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
        None => text.is_empty() || text == "\\",
    };
    match text.split_at_checked(6) {
        None => is_start_of_one(text),
        Some((first, second)) => {
            let half = first.strip_prefix("\\u").and_then(|it| u16::from_str_radix(it, 16).ok());
            let is_high = half.is_some_and(|half| (0xD800..0xDC00).contains(&half));
            is_high && second.len() < 6 && is_start_of_one(second)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::literals::tests::{any_cuts, pieces};

    fn run(pieces: &[&str]) -> String {
        let mut unescaper = Unescaper::default();
        let mut said = String::new();
        for piece in pieces {
            unescaper.push(piece, &mut said);
        }
        said + &unescaper.finish()
    }

    #[test]
    fn what_is_no_escape_stays() {
        let check = |text: &str, expected: &str| assert_eq!(run(&[text]), expected);
        check(r#"{\"a\": \"\u00e9\n\\\"}"#, "{\"a\": \"é\n\\\"}");
        check(r"\ud83e\udd16\/", "🤖/");
        check(r"\q\u12g\", r"\q\u12g\");
        // Halves of a surrogate pair that have no other half.
        check(r"\ud83e\n\ud83ex\udd16", r"\ud83e\n\ud83ex\udd16");
        check(r"\ud83e\u0041\u00", r"\ud83e\u0041\u00");
    }

    proptest! {
        #[test]
        fn pieces_make_up_the_whole(text in r#"([a\\"ué🤖]|\\ud83e|\\udd16|\\n|00e9){0,20}"#, cuts in any_cuts()) {
            prop_assert_eq!(run(&pieces(&text, &cuts)), run(&[&text]));
        }

        #[test]
        fn it_reads_what_json_writes(text: String) {
            let json = serde_json::Value::from(&*text).to_string();
            prop_assert_eq!(run(&[&json[1..json.len() - 1]]), text);
        }
    }
}
