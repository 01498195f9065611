//! How a text falls into the parts whose bytes a tokenizer merges, in time that grows with the text alone.
//!
//! The tokenizers crate splits by a regex engine that backtracks, has a limit of steps, and takes that limit for the end of
//! what matches: a long run of white space was not split as everywhere else. It knows nothing of tokens.

use regex_automata::util::iter::Searcher;
use regex_automata::{Input, Match, PatternID, meta};
use serde::Deserialize;
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{Offsets, PreTokenizedString, PreTokenizerWrapper, SplitDelimiterBehavior};

/// The pattern of the byte-level pre-tokenizer where it splits by itself. Source: GPT-2's `encoder.py`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// How the patterns of GPT-2, Qwen and most others end: white space, but for the last of it if a word follows.
const SPACES: &str = r"|\s+(?!\S)|\s+";

/// A pre-tokenizer as a `tokenizer.json` has it.
#[derive(Clone, Deserialize)]
#[serde(try_from = "PreTokenizerWrapper")]
pub(crate) enum PreTokenizer {
    Sequence(Vec<PreTokenizer>),
    Split {
        splitter: Splitter,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// The byte-level one that splits. Its bytes become characters by the one that doesn't.
    ByteLevel {
        splitter: Splitter,
        add_prefix_space: bool,
        bytes: ByteLevel,
    },
    /// One that has no pattern.
    Other(PreTokenizerWrapper),
}

impl TryFrom<PreTokenizerWrapper> for PreTokenizer {
    type Error = Box<fancy_regex::Error>;

    fn try_from(wrapper: PreTokenizerWrapper) -> Result<Self, Self::Error> {
        Ok(match wrapper {
            PreTokenizerWrapper::Sequence(sequence) => {
                Self::Sequence(sequence.into_iter().map(Self::try_from).collect::<Result<_, _>>()?)
            }
            PreTokenizerWrapper::Split(split) => Self::Split {
                splitter: match split.pattern {
                    SplitPattern::String(text) => Splitter::new(&fancy_regex::escape(&text))?,
                    SplitPattern::Regex(pattern) => Splitter::new(&pattern)?,
                },
                behavior: split.behavior,
                invert: split.invert,
            },
            PreTokenizerWrapper::ByteLevel(byte_level) if byte_level.use_regex => Self::ByteLevel {
                splitter: Splitter::new(GPT2)?,
                add_prefix_space: byte_level.add_prefix_space,
                bytes: byte_level.use_regex(false).add_prefix_space(false),
            },
            other => Self::Other(other),
        })
    }
}

impl tokenizers::PreTokenizer for PreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            Self::Split { splitter, behavior, invert: false } => {
                text.split(|_, part| part.split(splitter, *behavior))
            }
            Self::Split { splitter, behavior, invert: true } => {
                text.split(|_, part| part.split(Invert(splitter), *behavior))
            }
            Self::ByteLevel { splitter, add_prefix_space, bytes } => {
                text.split(|_, mut part| {
                    if *add_prefix_space && !part.get().starts_with(' ') {
                        part.prepend(" ");
                    }
                    part.split(splitter, SplitDelimiterBehavior::Isolated)
                })?;
                bytes.pre_tokenize(text)
            }
            Self::Other(other) => other.pre_tokenize(text),
        }
    }
}

/// A pattern that finds parts of a text.
#[derive(Debug, Clone)]
pub(crate) enum Splitter {
    /// By automata: the pattern, or if it ends in [`SPACES`], what stands before that and then `\s+`.
    Linear { regex: meta::Regex, has_spaces: bool },
    /// By backtracking: a pattern that looks around elsewhere.
    Backtracking(fancy_regex::Regex),
}

impl Splitter {
    fn new(pattern: &str) -> Result<Self, Box<fancy_regex::Error>> {
        let linear = match pattern.strip_suffix(SPACES) {
            Some(rest) => meta::Regex::new_many(&[rest, r"\s+"]),
            None => meta::Regex::new(pattern),
        };
        Ok(match linear {
            Ok(regex) => Self::Linear { has_spaces: regex.pattern_len() > 1, regex },
            Err(_) => Self::Backtracking(fancy_regex::Regex::new(pattern)?),
        })
    }
}

impl Pattern for &Splitter {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        let (regex, has_spaces) = match self {
            Splitter::Linear { regex, has_spaces } => (regex, *has_spaces),
            // Fails at the engine's limits.
            Splitter::Backtracking(regex) => return regex.find_matches(inside),
        };
        let mut parts = Vec::new();
        let mut end_of_last = 0;
        let mut searcher = Searcher::new(Input::new(inside));
        let find = |input: &Input<'_>| {
            let found = regex.search(input)?;
            let is_spaces = has_spaces && found.pattern() == PatternID::must(1);
            Some(if is_spaces { before_a_word(found, inside) } else { found })
        };
        while let Some(found) = searcher.advance(|input| Ok(find(input))) {
            if found.start() > end_of_last {
                parts.push(((end_of_last, found.start()), false));
            }
            parts.push(((found.start(), found.end()), true));
            end_of_last = found.end();
        }
        if end_of_last < inside.len() || inside.is_empty() {
            parts.push(((end_of_last, inside.len()), false));
        }
        Ok(parts)
    }
}

/// What of `spaces`, all the white space in its place, `\s+(?!\S)|\s+` would find: not the last of it if a word follows,
/// unless that is all.
fn before_a_word(spaces: Match, text: &str) -> Match {
    let last = text[spaces.range()].chars().next_back().map_or(0, char::len_utf8);
    let end = spaces.end() - last;
    if spaces.end() < text.len() && spaces.start() < end {
        Match::new(spaces.pattern(), spaces.start()..end)
    } else {
        spaces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::split::Split;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizer as _};

    use super::*;
    use crate::vocab_files::PATTERN;

    /// What a run of characters is long enough for, to be beyond the limits of engines that backtrack.
    const LONG: usize = 1_000_000;

    fn parts(pattern: &str, text: &str) -> Vec<String> {
        let splitter = Splitter::new(pattern).unwrap();
        assert!(matches!(splitter, Splitter::Linear { .. }));
        let parts = (&splitter).find_matches(text).unwrap();
        parts.into_iter().map(|((start, end), _)| text[start..end].to_owned()).collect()
    }

    #[test]
    fn long_runs_are_split_as_short_ones() {
        let check = |text: &str, lens: &[usize]| {
            let found: Vec<usize> = parts(PATTERN, text).iter().map(String::len).collect();
            assert_eq!(found, lens, "{:?}…", &text[..8]);
        };
        let run = |char: &str, end: &str| char.repeat(LONG) + end;
        check(&run(" ", ""), &[LONG]);
        check(&run(" ", "a"), &[LONG - 1, 2]);
        check(&run(" ", "!"), &[LONG - 1, 2]);
        check(&run(" ", "1"), &[LONG - 1, 1, 1]);
        check(&run(" ", "\na"), &[LONG + 1, 1]);
        check(&run("\t", "a"), &[LONG - 1, 2]);
        check(&run("\t", "1"), &[LONG - 1, 1, 1]);
        check(&run("\u{a0}", "!"), &[2 * (LONG - 1), 2, 1]);
        check(&run("\n", "a"), &[LONG, 1]);
        check(&run(" \n", " a"), &[2 * LONG, 2]);
        check(&run("a", " b"), &[LONG, 2]);
        check(&run("!", "\n\na"), &[LONG + 2, 1]);
        check(&run("\u{301}", "a"), &[2 * LONG, 1]);
        assert_eq!(parts(PATTERN, &run("1", "")).len(), LONG);
        assert_eq!(parts(PATTERN, &run("a!", "")).len(), LONG + 1);
        assert_eq!(parts(PATTERN, &run(" a", "")).len(), LONG);
    }

    #[test]
    fn patterns_that_look_around_elsewhere_are_an_error_at_their_limit() {
        let splitter = Splitter::new(r"\s+(?!\S)|\s+|\S+").unwrap();
        assert!(matches!(splitter, Splitter::Backtracking(_)));
        let check = |text: &str| (&splitter).find_matches(text).map(|parts| parts.len());
        assert_eq!(check("a  b ").unwrap(), 5);
        check(&" ".repeat(4 * LONG)).unwrap_err();
    }

    #[test]
    fn byte_level_splits_behind_the_space_before_a_text() {
        let check = |add_prefix_space, text: &str, expected: &[&str]| {
            let wrapper =
                PreTokenizerWrapper::ByteLevel(ByteLevel::new(add_prefix_space, true, true));
            let mut text = PreTokenizedString::from(text);
            PreTokenizer::try_from(wrapper).unwrap().pre_tokenize(&mut text).unwrap();
            let parts = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
            assert_eq!(parts.iter().map(|part| part.0).collect::<Vec<_>>(), expected);
        };
        check(false, "a  b", &["a", "Ġ", "Ġb"]);
        check(true, "a  b", &["Ġa", "Ġ", "Ġb"]);
        check(true, " a", &["Ġa"]);
    }

    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[ \t\r\n\u{a0}\u{3000}]{0,4}",
            "[a'sSſtTlLreRE1½!_é你🤖\u{301}]{0,4}",
            any::<String>(),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn patterns_find_what_an_engine_that_backtracks_finds(
            text in any_text(),
            pattern in prop_oneof![Just(PATTERN), Just(GPT2), Just(r"\s*"), Just(r"a|\s+(?!\S)|\s+")],
            invert: bool,
        ) {
            for behavior in [SplitDelimiterBehavior::Isolated, SplitDelimiterBehavior::Removed] {
                let theirs = Split::new(SplitPattern::Regex(pattern.to_owned()), behavior, invert).unwrap();
                let ours = PreTokenizer::try_from(PreTokenizerWrapper::Split(theirs.clone())).unwrap();
                let (mut expected, mut found) =
                    (PreTokenizedString::from(text.as_str()), PreTokenizedString::from(text.as_str()));
                theirs.pre_tokenize(&mut expected).unwrap();
                ours.pre_tokenize(&mut found).unwrap();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
