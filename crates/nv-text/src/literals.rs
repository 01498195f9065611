//! Fixed strings found in text that comes in pieces.
//!
//! It knows nothing of what the strings mean.

use std::sync::Arc;

/// Several strings looked for at once. Text that may still become one of them is held back.
///
/// A string costs time in proportion to its length once, and constant amortised time for each byte of text. Clones share the
/// strings: each has a number for each of them.
#[derive(Debug, Clone)]
pub(crate) struct Literals {
    literals: Arc<[Literal]>,
    /// How many bytes of each string the text ends with.
    matched: Vec<usize>,
}

/// One of [`Literals`] that was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// The string.
    pub(crate) literal: Arc<str>,
    /// Where it ends in the piece that was scanned last.
    pub(crate) end: usize,
}

impl Literals {
    /// Looks for `texts`, none of which is empty.
    pub(crate) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let literals: Arc<[Literal]> = texts.into_iter().map(Literal::new).collect();
        Self { matched: vec![0; literals.len()], literals }
    }

    /// Goes on to the end of `text`, or to the end of the first string found; of several that end there it is the
    /// longest. Appends to `released` the text, held back or new, that is part of none.
    pub(crate) fn scan(&mut self, text: &str, released: &mut String) -> Option<Found> {
        self.scan_behind(0, text, released)
    }

    /// As [`scan`](Self::scan), but a string that ends in the first `num_passed` bytes of `text` is none.
    pub(crate) fn scan_behind(
        &mut self,
        num_passed: usize,
        text: &str,
        released: &mut String,
    ) -> Option<Found> {
        // What is held back is the start of a string, so that it is not stored, nor moved with each piece.
        let literals = Arc::clone(&self.literals);
        let held = held(&literals, &self.matched);
        for (position, byte) in text.bytes().enumerate() {
            for (literal, matched) in literals.iter().zip(&mut self.matched) {
                *matched = literal.advance(*matched, byte);
                if *matched == literal.len() && position < num_passed {
                    // Its end may be the start of another.
                    *matched = literal.borders[*matched - 1];
                }
            }
            let found = literals.iter().zip(&self.matched);
            let found = found.filter(|&(literal, &matched)| matched == literal.text.len());
            if let Some((literal, &len)) = found.max_by_key(|&(_, &len)| len) {
                let end = position + 1;
                release(held, &text[..end], len, released);
                self.matched.fill(0);
                return Some(Found { literal: Arc::clone(&literal.text), end });
            }
        }
        release(held, text, self.held().len(), released);
        None
    }

    /// Whether no string is looked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.literals.is_empty()
    }

    /// The text that is held back, which has become no string.
    pub(crate) fn take_held(&mut self) -> String {
        let held = self.held().to_owned();
        self.matched.fill(0);
        held
    }

    /// The text that is held back.
    pub(crate) fn held(&self) -> &str {
        held(&self.literals, &self.matched)
    }
}

/// The longest start of a string that the text ends with.
fn held<'a>(literals: &'a [Literal], matched: &[usize]) -> &'a str {
    let longest = literals.iter().zip(matched).max_by_key(|&(_, &matched)| matched);
    longest.map_or("", |(literal, &matched)| &literal.text[..matched])
}

/// Appends `held` and `text` but for the last `num_kept` bytes of both.
///
/// Those are a string or the start of one, and begin where a character does.
fn release(held: &str, text: &str, num_kept: usize, released: &mut String) {
    let num_released = held.len() + text.len() - num_kept;
    released.push_str(&held[..num_released.min(held.len())]);
    released.push_str(&text[..num_released.saturating_sub(held.len())]);
}

/// One string looked for byte by byte.
///
/// Source: Knuth, Morris and Pratt, "Fast pattern matching in strings", 1977.
#[derive(Debug, Clone)]
pub(crate) struct Literal {
    text: Arc<str>,
    /// For each start of the string, given by its last byte: the longest shorter start that it ends with.
    borders: Box<[usize]>,
}

impl Literal {
    pub(crate) fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut borders = vec![0; bytes.len()];
        let mut border = 0;
        for last in 1..bytes.len() {
            while border > 0 && bytes[border] != bytes[last] {
                border = borders[border - 1];
            }
            border += usize::from(bytes[border] == bytes[last]);
            borders[last] = border;
        }
        Self { text: text.into(), borders: borders.into() }
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// How many bytes of the string a text ends with once `byte` is added to it, if it ended with `matched` of them.
    pub(crate) fn advance(&self, mut matched: usize, byte: u8) -> usize {
        let bytes = self.text.as_bytes();
        while matched > 0 && bytes.get(matched) != Some(&byte) {
            matched = self.borders[matched - 1];
        }
        matched + usize::from(bytes[matched] == byte)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `text` in pieces, cut at the characters that `cuts` point to.
    pub(crate) fn pieces<'a>(text: &'a str, cuts: &[prop::sample::Index]) -> Vec<&'a str> {
        let mut ends: Vec<_> = text.char_indices().map(|(start, _)| start).collect();
        ends.push(text.len());
        let mut cuts: Vec<_> = cuts.iter().map(|cut| *cut.get(&ends)).collect();
        cuts.push(text.len());
        cuts.sort_unstable();
        let starts = std::iter::once(0).chain(cuts.iter().copied()).collect::<Vec<_>>();
        starts.iter().zip(&cuts).map(|(&start, &end)| &text[start..end]).collect()
    }

    pub(crate) fn any_cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
        prop::collection::vec(any::<prop::sample::Index>(), 0..12)
    }

    proptest! {
        #[test]
        fn the_first_string_is_found_as_in_the_whole(
            strings in prop::collection::vec("[ab€]{1,5}", 0..4),
            text in "[ab€]{0,30}",
            cuts in any_cuts(),
        ) {
            // The naive specification: each end of each prefix of the text.
            let expected = text.char_indices().map(|(at, char)| at + char.len_utf8()).find_map(|end| {
                let ending = strings.iter().filter(|string| text[..end].ends_with(&***string));
                ending.max_by_key(|string| string.len()).map(|string| (end, string.as_str()))
            });
            let mut literals = Literals::new(strings.iter().map(String::as_str));
            let mut released = String::new();
            let mut scanned = 0;
            let mut found = None;
            for piece in pieces(&text, &cuts) {
                if let Some(Found { literal, end }) = literals.scan(piece, &mut released) {
                    found = Some((scanned + end, literal));
                    break;
                }
                scanned += piece.len();
                prop_assert_eq!(&(released.clone() + literals.held()), &text[..scanned]);
                let longest = (0..=released.len() + literals.held().len())
                    .filter(|&from| text.is_char_boundary(from))
                    .find(|&from| strings.iter().any(|string| string.starts_with(&text[from..scanned])))
                    .unwrap_or(scanned);
                prop_assert_eq!(released.len(), longest);
            }
            let found = found.as_ref().map(|(end, literal)| (*end, &**literal));
            prop_assert_eq!(found, expected);
            if let Some((end, string)) = expected {
                prop_assert_eq!(&released, &text[..end - string.len()]);
            }
        }
    }
}
