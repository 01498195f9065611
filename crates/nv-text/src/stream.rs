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

impl TokenStream {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, pending: Vec::new(), text: String::new() }
    }

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
