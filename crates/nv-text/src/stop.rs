//! Strings that end a text, found as the text comes.
//!
//! It knows nothing of tokens, nor of what the text is.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::literals::Literals;
use crate::reasoning::{Reasoning, ReasoningSplitter};

/// Ends a text at the first of several strings.
///
/// Text that may still become one of them is held back, so that no part of a stop string is ever given out. Where
/// several end at the same place the longest counts. How the text is cut into pieces makes no difference to what
/// comes out in all, and the cost of a piece depends on its own length alone.
///
/// ```
/// use nv_text::StopStrings;
///
/// let mut stop = StopStrings::new(&["\n\n", "END"], false)?;
/// assert_eq!(stop.push("The E").text, "The ");
/// assert_eq!(stop.push("agle. EN").text, "Eagle. ");
/// let last = stop.push("D of it");
/// assert_eq!((last.text, last.stop_string), ("", Some("END")));
/// # Ok::<(), nv_text::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct StopStrings {
    literals: Literals,
    include_stop_str_in_output: bool,
    reasoning: ReasoningSplitter,
    /// Bytes that have come.
    num_bytes: usize,
    /// Bytes at the beginning in which no string ends.
    num_passed: usize,
    /// The string that ended the text.
    stop_string: Option<Arc<str>>,
    /// What the last call returned.
    text: String,
}

/// What [`StopStrings::push`] lets through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StopCheck<'a> {
    /// The text that is certain now.
    pub text: &'a str,
    /// The string that has ended the text.
    pub stop_string: Option<&'a str>,
}

impl StopStrings {
    /// Stops at any of `stop`; at none if it is empty. The string found is left out of the text unless
    /// `include_stop_str_in_output`.
    ///
    /// # Errors
    /// [`Error::Field`] if one of `stop` is empty.
    pub fn new<S: AsRef<str>>(stop: &[S], include_stop_str_in_output: bool) -> Result<Self> {
        if let Some(index) = stop.iter().position(|string| string.as_ref().is_empty()) {
            return Err(Error::Field {
                field: format!("stop[{index}]"),
                expected: "a string of at least one character",
                found: r#""""#.to_owned(),
            });
        }
        Ok(Self {
            literals: Literals::new(stop.iter().map(AsRef::as_ref)),
            include_stop_str_in_output,
            reasoning: ReasoningSplitter::new(Reasoning::Off),
            num_bytes: 0,
            num_passed: 0,
            stop_string: None,
            text: String::new(),
        })
    }

    /// Looks for the strings behind the reasoning alone, which the text begins with as `reasoning` says: neither in it, nor
    /// in its tags, nor in the line ends that follow it.
    ///
    /// ```
    /// use nv_text::{Reasoning, StopStrings};
    ///
    /// let mut stop = StopStrings::new(&["\n\n"], false)?.after_reasoning(Reasoning::Optional);
    /// let check = stop.push("<think>\nOne.\n\nTwo.\n</think>\n\nThree.\n\nFour.");
    /// assert_eq!(check.text, "<think>\nOne.\n\nTwo.\n</think>\n\nThree.");
    /// assert_eq!(check.stop_string, Some("\n\n"));
    /// # Ok::<(), nv_text::Error>(())
    /// ```
    #[must_use]
    pub fn after_reasoning(mut self, reasoning: Reasoning) -> Self {
        // Without strings nothing need be held back.
        if !self.literals.is_empty() {
            self.reasoning = ReasoningSplitter::new(reasoning);
        }
        self
    }

    /// Goes on by `text`. What comes after a stop string is dropped.
    pub fn push(&mut self, text: &str) -> StopCheck<'_> {
        self.push_if(true, text)
    }

    /// Goes on by `text`, in which a string ends only if it `may_end`; if not, one may still begin in it and end later. No text
    /// before it may end then.
    ///
    /// ```
    /// use nv_text::StopStrings;
    ///
    /// let mut stop = StopStrings::new(&["END"], false)?;
    /// assert_eq!(stop.push_if(false, "The END E").text, "The END ");
    /// assert_eq!(stop.push_if(true, "ND").stop_string, Some("END"));
    /// # Ok::<(), nv_text::Error>(())
    /// ```
    pub fn push_if(&mut self, may_end: bool, text: &str) -> StopCheck<'_> {
        self.num_bytes += text.len();
        if !may_end {
            self.num_passed = self.num_bytes;
        }
        self.text.clear();
        if self.stop_string.is_none() {
            let said = self.reasoning.push(text, &mut self.text);
            self.scan(&said);
        }
        self.check()
    }

    /// Ends the text: what was held back, as nothing follows.
    pub fn finish(&mut self) -> StopCheck<'_> {
        self.text.clear();
        if self.stop_string.is_none() {
            let said = self.reasoning.finish();
            self.scan(&said);
        }
        if self.stop_string.is_none() {
            self.text.push_str(&self.literals.take_held());
        }
        self.check()
    }

    /// Looks for the strings in the last bytes that have come, which are no reasoning.
    fn scan(&mut self, said: &str) {
        let num_before = self.num_bytes - said.len();
        let num_passed = self.num_passed.saturating_sub(num_before);
        if let Some(found) = self.literals.scan_behind(num_passed, said, &mut self.text) {
            if self.include_stop_str_in_output {
                self.text.push_str(&found.literal);
            }
            self.stop_string = Some(found.literal);
        }
    }

    fn check(&self) -> StopCheck<'_> {
        StopCheck { text: &self.text, stop_string: self.stop_string.as_deref() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;
    use crate::literals::tests::{any_cuts, pieces};

    /// The pieces that come out, the last of them at the end, and the string found.
    fn run(mut stop: StopStrings, deltas: &[&str]) -> (Vec<String>, Option<String>) {
        let mut out: Vec<_> = deltas.iter().map(|delta| stop.push(delta).text.to_owned()).collect();
        let last = stop.finish();
        out.push(last.text.to_owned());
        (out, last.stop_string.map(str::to_owned))
    }

    #[test]
    fn no_part_of_a_stop_string_comes_out() {
        let check = |stop: &[&str], deltas: &[&str], expected: &[&str], found: Option<&str>| {
            let (out, stop_string) = run(StopStrings::new(stop, false).unwrap(), deltas);
            assert_eq!(out, expected, "{stop:?} {deltas:?}");
            assert_eq!(stop_string.as_deref(), found, "{stop:?} {deltas:?}");
        };
        check(&[], &["a", "b"], &["a", "b", ""], None);
        check(&["END"], &["anEND", "more"], &["an", "", ""], Some("END"));
        check(&["END"], &["E", "N", "D", "x"], &["", "", "", "", ""], Some("END"));
        check(&["END"], &["E", "NE", "ND"], &["", "EN", "", ""], Some("END"));
        // The end of the text decides what was held back.
        check(&["END"], &["the EN"], &["the ", "EN"], None);
        check(&["aab"], &["aaa", "ab"], &["a", "a", ""], Some("aab"));
        // The first to end counts, then the longest.
        check(&["abcd", "bc"], &["abc", "d"], &["a", "", ""], Some("bc"));
        check(&["bc", "abc"], &["xab", "c"], &["x", "", ""], Some("abc"));
        check(&["abcd", "b"], &["a", "b"], &["", "a", ""], Some("b"));
        check(&["€🤖"], &["€", "€🤖"], &["", "€", ""], Some("€🤖"));
    }

    #[test]
    fn a_stop_string_is_shown_on_request() {
        let (out, stop_string) =
            run(StopStrings::new(&["END"], true).unwrap(), &["an E", "ND", "x"]);
        assert_eq!(out, ["an ", "END", "", ""]);
        assert_eq!(stop_string.as_deref(), Some("END"));
    }

    #[test]
    fn a_string_may_begin_where_none_may_end() {
        let check = |string: &str, passed: &str, text: &str, expected: &str| {
            let mut stop = StopStrings::new(&[string], false).unwrap();
            let mut out = stop.push_if(false, passed).text.to_owned();
            out += stop.push(text).text;
            let last = stop.finish();
            assert_eq!(out + last.text, expected, "{string} {passed} {text}");
            let is_found = expected.len() < passed.len() + text.len();
            assert_eq!(last.stop_string, is_found.then_some(string));
        };
        check("two", "one, t", "wo", "one, ");
        check("two", "one, two", "two", "one, two");
        check("two", "one, two", "", "one, two");
        check("aa", "aa", "", "aa");
        check("aa", "aa", "a", "a");
        check("aba", "aba", "ba", "ab");
    }

    #[test]
    fn no_string_is_found_in_reasoning() {
        let check = |reasoning: Reasoning, text: &str, expected: &str| {
            let stop = StopStrings::new(&["\n\n", "x", "</think>", ">\n", "</"], false).unwrap();
            let stop = stop.after_reasoning(reasoning);
            let chars: Vec<_> = text.chars().map(String::from).collect();
            let chars: Vec<_> = chars.iter().map(String::as_str).collect();
            for pieces in [&[text][..], &chars] {
                let (out, found) = run(stop.clone(), pieces);
                assert_eq!(out.concat(), expected, "{reasoning:?} {text:?}");
                assert_eq!(found.is_some(), expected != text, "{reasoning:?} {text:?}");
            }
        };
        let thought = "\n\n<think>\nx\n\ny\n</think>\n\n\nz\n\nz";
        check(Reasoning::Optional, thought, "\n\n<think>\nx\n\ny\n</think>\n\n\nz");
        check(Reasoning::Opened, &thought[9..], "\nx\n\ny\n</think>\n\n\nz");
        check(Reasoning::Off, thought, "");
        check(Reasoning::Opened, "x\n\n", "x\n\n");
        check(Reasoning::Optional, "<think>x</thin", "<think>x</thin");
        check(Reasoning::Optional, "a\n\n<think>", "a");
        // Whether it is reasoning is not certain before the end.
        check(Reasoning::Optional, "\n\n", "");
        check(Reasoning::Optional, "\n<thi", "\n<thi");
        check(Reasoning::Optional, "<think x", "<think ");
        check(Reasoning::Optional, "<think>x</think></", "<think>x</think>");
    }

    #[test]
    fn empty_strings_are_refused() {
        let error = StopStrings::new(&["x", ""], false).unwrap_err();
        let expected = "field `stop[1]`: expected a string of at least one character, found \"\"";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn long_stop_strings_cost_no_more_a_byte() {
        // Each byte of the text all but completes the string: a scan from each start would take 10^10 steps.
        let string = "a".repeat(100_000) + "b";
        let mut stop = StopStrings::new(&[string], false).unwrap();
        let start = Instant::now();
        let num_bytes: usize = (0..200_000).map(|_| stop.push("a").text.len()).sum();
        assert_eq!(num_bytes, 100_000);
        assert_eq!(stop.push("b").text, "");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    proptest! {
        #[test]
        fn pieces_make_up_the_whole(
            stop in prop::collection::vec("[ab€]{1,4}", 0..4),
            text in "(\n{0,2}<think>[ab€]{0,9}(</think>\n{0,2})?)?[ab€]{0,30}",
            include_stop_str_in_output: bool,
            cuts in any_cuts(),
        ) {
            let stop = StopStrings::new(&stop, include_stop_str_in_output).unwrap();
            let stop = stop.after_reasoning(Reasoning::Optional);
            let (whole, found) = run(stop.clone(), &[&text]);
            let (parts, found_in_parts) = run(stop, &pieces(&text, &cuts));
            prop_assert_eq!(parts.concat(), whole.concat());
            prop_assert_eq!(found_in_parts, found);
        }
    }
}
