//! Long texts of clients, cut to what an error or a line of the log can show.

use std::borrow::Cow;

/// Characters of a single value, such as a model's name, at most.
pub(crate) const VALUE: usize = 200;

/// Characters of a message, whatever values stand in it, at most.
pub(crate) const MESSAGE: usize = 1000;

/// The text, or its beginning and its end if it has more than `max_chars` characters, and how many there are.
pub(crate) fn shortened(text: &str, max_chars: usize) -> Cow<'_, str> {
    let num_chars = text.chars().count();
    if num_chars <= max_chars {
        return Cow::Borrowed(text);
    }
    // What was expected stands at the end of a message.
    let num_last = max_chars / 3;
    let at = |index| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    let (first, last) = (&text[..at(max_chars - num_last)], &text[at(num_chars - num_last)..]);
    Cow::Owned(format!("{first}… ({num_chars} characters) …{last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_keep_both_ends_and_say_how_long_they_are() {
        let check = |text: &str, expected: &str| assert_eq!(shortened(text, 6), expected);
        check("", "");
        check("äöüäöü", "äöüäöü");
        check("äöüäöüß", "äöüä… (7 characters) …üß");
        check("🦀🦀🦀🦀🦀🦀🦀🦀🦀", "🦀🦀🦀🦀… (9 characters) …🦀🦀");
    }
}
