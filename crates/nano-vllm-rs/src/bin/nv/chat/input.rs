//! Messages as a user writes them: edited in a terminal, or the lines of a pipe.

use std::io::{self, BufRead};

use anyhow::{Context, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};

/// What encloses text of many lines.
const FENCE: &str = r#"""""#;

/// Where messages come from.
pub(super) enum Input {
    Terminal(Box<Editor<MultiLine, MemHistory>>),
    Lines,
}

/// What was read.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// A message or a command.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// There is no more.
    End,
}

impl Input {
    pub(super) fn new(is_terminal: bool) -> Result<Self> {
        if !is_terminal {
            return Ok(Self::Lines);
        }
        let config = Config::builder().auto_add_history(true).build();
        let mut editor = Editor::with_history(config, MemHistory::new())
            .context("cannot read from the terminal")?;
        editor.set_helper(Some(MultiLine));
        Ok(Self::Terminal(Box::new(editor)))
    }

    pub(super) fn read(&mut self) -> Result<Line> {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(text) => Ok(Line::Text(meant(&text))),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Self::Lines => read_lines(&mut io::stdin().lock()).context("cannot read from stdin"),
        }
    }
}

/// Reads lines until they make up a message. The end of the input ends a message too.
fn read_lines(input: &mut impl BufRead) -> io::Result<Line> {
    let mut text = String::new();
    loop {
        if input.read_line(&mut text)? == 0 {
            return Ok(if text.is_empty() { Line::End } else { Line::Text(meant(&text)) });
        }
        if text.ends_with("\r\n") {
            text.replace_range(text.len() - 2.., "\n");
        }
        let line = text.strip_suffix('\n').unwrap_or(&text);
        if !is_incomplete(line) {
            return Ok(Line::Text(meant(line)));
        }
    }
}

/// Whether more lines belong to `text`.
fn is_incomplete(text: &str) -> bool {
    match text.trim().strip_prefix(FENCE) {
        Some(rest) => !rest.ends_with(FENCE),
        None => text.ends_with('\\'),
    }
}

/// The message in `text`: without its fence, or without the backslashes at the ends of lines.
fn meant(text: &str) -> String {
    let Some(fenced) = text.trim().strip_prefix(FENCE) else {
        let text = text.replace("\\\n", "\n");
        return text.strip_suffix('\\').unwrap_or(&text).to_owned();
    };
    let fenced = fenced.strip_suffix(FENCE).unwrap_or(fenced);
    let fenced = fenced.strip_prefix('\n').unwrap_or(fenced);
    fenced.strip_suffix('\n').unwrap_or(fenced).to_owned()
}

/// Has the editor take more lines as long as a message is not complete.
pub(super) struct MultiLine;

impl Validator for MultiLine {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_incomplete(context.input()) {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Completer for MultiLine {
    type Candidate = String;
}

impl Hinter for MultiLine {
    type Hint = String;
}

impl Highlighter for MultiLine {}

impl Helper for MultiLine {}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expected: &[&str]) {
        let mut lines = input.as_bytes();
        for &text in expected {
            let found = read_lines(&mut lines).unwrap();
            assert_eq!(found, Line::Text(text.to_owned()), "{input:?}");
        }
        assert_eq!(read_lines(&mut lines).unwrap(), Line::End, "{input:?}");
    }

    #[test]
    fn lines_are_messages() {
        check("", &[]);
        check("a", &["a"]);
        check("a\n\n b \r\nc\r\n", &["a", "", " b ", "c"]);
    }

    #[test]
    fn a_backslash_goes_on_in_the_next_line() {
        check("a\\\nb\\\r\nc\nd\n", &["a\nb\nc", "d"]);
        check("a \\ b\n", &["a \\ b"]);
        check("a\\", &["a"]);
        check("a\\\n", &["a\n"]);
    }

    #[test]
    fn a_fence_holds_many_lines() {
        check("\"\"\"\na\\\n\n  b\n\"\"\"\nc\n", &["a\\\n\n  b", "c"]);
        check("\"\"\"a\nb\"\"\"  \n", &["a\nb"]);
        check("\"\"\"a\"\"\"\nb\n", &["a", "b"]);
        check("\"\"\"\"\"\"\nb\n", &["", "b"]);
        check("\"\"\"\na\nb\n", &["a\nb"]);
        check("a \"\"\"\nb\n", &["a \"\"\"", "b"]);
    }

    #[test]
    fn text_that_is_not_utf8_is_an_error() {
        assert!(read_lines(&mut &b"a\xFF\n"[..]).is_err());
    }
}
