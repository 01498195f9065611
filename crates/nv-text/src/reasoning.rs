//! Where in the text of an answer its reasoning is.
//!
//! It knows nothing of tokens, nor of what comes after the reasoning.

use std::borrow::Cow;

use crate::literals::Literal;

/// Opens reasoning.
pub(crate) const THINK_START: &str = "<think>";
/// Closes reasoning.
pub(crate) const THINK_END: &str = "</think>";

/// Where an answer may hold reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reasoning {
    /// Nowhere: all of it is content.
    Off,
    /// At its beginning, if it begins with `<think>`.
    #[default]
    Optional,
    /// At its beginning, as the prompt has opened the block.
    Opened,
}

impl Reasoning {
    /// What a prompt leaves to its answer: some templates open the block themselves, and where thinking is not wanted
    /// Qwen3's template puts an empty block.
    ///
    /// ```
    /// use nv_text::Reasoning;
    ///
    /// assert_eq!(Reasoning::after_prompt("<|im_start|>assistant\n"), Reasoning::Optional);
    /// assert_eq!(Reasoning::after_prompt("<|im_start|>assistant\n<think>\n"), Reasoning::Opened);
    /// assert_eq!(Reasoning::after_prompt("<|im_start|>assistant\n<think>\n\n</think>\n\n"), Reasoning::Off);
    /// ```
    pub fn after_prompt(prompt: &str) -> Self {
        match prompt.trim_end() {
            prompt if prompt.ends_with(THINK_START) => Self::Opened,
            prompt if prompt.ends_with(THINK_END) => Self::Off,
            _ => Self::Optional,
        }
    }
}

/// Separates the reasoning that a text begins with from what follows, as the text comes.
///
/// The line ends behind `</think>` count as reasoning.
#[derive(Debug, Clone)]
pub(crate) enum ReasoningSplitter {
    /// Only whitespace and the start of `<think>` have come, which are held back.
    Start { held: String, num_matched: usize },
    /// The block is open.
    Reasoning { tag: Literal, num_matched: usize },
    /// The block was closed, and nothing but line ends has come since.
    LineEnds,
    /// There is no reasoning from here on.
    Content,
}

impl ReasoningSplitter {
    pub(crate) fn new(reasoning: Reasoning) -> Self {
        match reasoning {
            Reasoning::Off => Self::Content,
            Reasoning::Optional => Self::Start { held: String::new(), num_matched: 0 },
            Reasoning::Opened => Self::open(),
        }
    }

    fn open() -> Self {
        Self::Reasoning { tag: Literal::new(THINK_END), num_matched: 0 }
    }

    /// Goes on by `text`. Appends reasoning to `reasoning` and returns what follows it: the end of `text`, behind what was
    /// held back if that turned out to be no reasoning.
    pub(crate) fn push<'a>(&mut self, text: &'a str, reasoning: &mut String) -> Cow<'a, str> {
        let mut rest = text;
        while !rest.is_empty() {
            match self {
                Self::Content => break,
                Self::LineEnds => {
                    let said = rest.trim_start_matches('\n');
                    reasoning.push_str(&rest[..rest.len() - said.len()]);
                    if !said.is_empty() {
                        *self = Self::Content;
                    }
                    rest = said;
                }
                Self::Reasoning { tag, num_matched } => {
                    let end = rest.bytes().position(|byte| {
                        *num_matched = tag.advance(*num_matched, byte);
                        *num_matched == tag.len()
                    });
                    let (read, unread) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
                    reasoning.push_str(read);
                    rest = unread;
                    if end.is_some() {
                        *self = Self::LineEnds;
                    }
                }
                Self::Start { held, num_matched } => {
                    let said = if *num_matched == 0 { rest.trim_start() } else { rest };
                    let tag = &THINK_START[*num_matched..];
                    if let Some(unread) = said.strip_prefix(tag) {
                        reasoning.push_str(held);
                        reasoning.push_str(&rest[..rest.len() - unread.len()]);
                        rest = unread;
                        *self = Self::open();
                    } else if tag.starts_with(said) {
                        held.push_str(rest);
                        *num_matched += said.len();
                        return "".into();
                    } else {
                        let all = std::mem::take(held) + rest;
                        *self = Self::Content;
                        return all.into();
                    }
                }
            }
        }
        rest.into()
    }

    /// The text that is held back, which is no reasoning if nothing follows.
    pub(crate) fn finish(&mut self) -> String {
        match std::mem::replace(self, Self::Content) {
            Self::Start { held, .. } => held,
            _ => String::new(),
        }
    }
}
