//! Text from token ids as they come, never splitting a character.
//!
//! It knows nothing of when a text ends.

use crate::tokenizer::Tokenizer;

/// Turns a growing sequence of token ids into text.
///
/// The pieces, put together, are what [`Tokenizer::decode`] gives for the whole sequence. No piece ends inside a
/// character: bytes that may still become one are held back until the next token, or until
/// [`finish`](TokenStream::finish). The cost of a token depends on its own length alone.
///
/// ```
/// # fn example(tokenizer: &nv_text::Tokenizer, ids: impl Iterator<Item = u32>) {
/// let mut stream = tokenizer.stream(true);
/// let mut text = String::new();
/// for id in ids {
///     text += stream.push(id); // or print it
/// }
/// text += &stream.finish();
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TokenStream {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// The start of a character whose end has not come yet, at most three bytes between calls.
    pending: Vec<u8>,
    /// What the last `push` returned.
    text: String,
}

impl Tokenizer {
    /// Turns ids into text one by one, as a model generates them.
    pub fn stream(&self, skip_special_tokens: bool) -> TokenStream {
        TokenStream {
            tokenizer: self.clone(),
            skip_special_tokens,
            pending: Vec::new(),
            text: String::new(),
        }
    }
}

impl TokenStream {
    /// The text that becomes certain with token `id`: empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> &str {
        self.tokenizer.extend_bytes(id, self.skip_special_tokens, &mut self.pending);
        self.text.clear();
        let mut consumed = 0;
        for chunk in self.pending.utf8_chunks() {
            self.text.push_str(chunk.valid());
            consumed += chunk.valid().len();
            let invalid = chunk.invalid();
            let is_last = consumed + invalid.len() == self.pending.len();
            if invalid.is_empty() || (is_last && may_become_character(invalid)) {
                break;
            }
            self.text.push(char::REPLACEMENT_CHARACTER);
            consumed += invalid.len();
        }
        self.pending.drain(..consumed);
        &self.text
    }

    /// Ends the text: U+FFFD if it ends inside a character, else nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Whether `bytes`, which are no character, are the start of one.
fn may_become_character(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::tests::{END, SPACED, THINK, tokenizer};

    fn pieces(ids: &[u32], skip_special_tokens: bool) -> Vec<String> {
        let mut stream = tokenizer().stream(skip_special_tokens);
        let mut pieces: Vec<_> = ids.iter().map(|&id| stream.push(id).to_owned()).collect();
        pieces.push(stream.finish());
        pieces
    }

    #[test]
    fn characters_come_whole_and_at_once() {
        let check = |ids: &[u32], expected: &[&str]| assert_eq!(pieces(ids, true), expected);
        check(&[], &[""]);
        check(&[256, 0x65], &["th", "e", ""]);
        // 🤖 in four bytes, then one that the special token in its middle does not disturb.
        check(&[0xF0, 0x9F, 0xA4, 0x96], &["", "", "", "🤖", ""]);
        check(&[0xC3, END, 0xA9], &["", "", "é", ""]);
        // An end inside a character, a start that is not continued, bytes that can't start anything.
        check(&[0x61, 0xE2, 0x82], &["a", "", "", "\u{FFFD}"]);
        check(&[0xE2, 0x82, 0x61], &["", "", "\u{FFFD}a", ""]);
        check(&[0xF0, 0x9F, 0xF0, 0x9F], &["", "", "\u{FFFD}", "", "\u{FFFD}"]);
        check(&[0xFF, 0x80, 0xC0], &["\u{FFFD}", "\u{FFFD}", "\u{FFFD}", ""]);
        // Surrogates and overlong forms are not UTF-8.
        check(&[0xED, 0xA0, 0x80], &["", "\u{FFFD}\u{FFFD}", "\u{FFFD}", ""]);
        check(&[0xE2, SPACED], &["", "\u{FFFD}é x", ""]);
        check(&[0xE2, THINK, 9999], &["", "\u{FFFD}<think>", "", ""]);
    }

    #[test]
    fn special_tokens_show_on_request() {
        assert_eq!(pieces(&[0x61, END], false), ["a", "<end>", ""]);
        assert_eq!(pieces(&[0xC3, END, 0xA9], false), ["", "\u{FFFD}<end>", "\u{FFFD}", ""]);
    }

    fn any_id() -> impl Strategy<Value = u32> {
        // Bytes that are likely to make, and to break, longer characters; some tokens; some ids that are none.
        prop_oneof![0x80_u32..=0xFF, 0xE0_u32..=0xF4, 0x80_u32..=0xBF, 0_u32..270, Just(END)]
    }

    proptest! {
        #[test]
        fn pieces_make_up_the_whole(
            ids in prop::collection::vec(any_id(), 0..60),
            skip_special_tokens: bool,
        ) {
            let whole = tokenizer().decode(&ids, skip_special_tokens);
            prop_assert_eq!(pieces(&ids, skip_special_tokens).concat(), whole);
        }

        #[test]
        fn nothing_is_held_back_but_the_start_of_a_character(
            ids in prop::collection::vec(any_id(), 0..30),
        ) {
            let mut stream = tokenizer().stream(false);
            for id in ids {
                stream.push(id);
                prop_assert!(stream.pending.len() < 4);
                prop_assert!(stream.pending.is_empty() || may_become_character(&stream.pending));
            }
        }

        #[test]
        fn text_survives_the_round_trip(text in any::<String>()) {
            // NFC text without added tokens comes back as it was; other text does the second time.
            let tokenizer = tokenizer();
            let normal = tokenizer.decode(&tokenizer.encode(&text, false).unwrap(), false);
            let ids = tokenizer.encode(&normal, false).unwrap();
            prop_assert_eq!(pieces(&ids, false).concat(), normal);
        }
    }
}
