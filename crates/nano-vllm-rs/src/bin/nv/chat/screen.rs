//! An answer as it comes: reasoning dimmed, then what is said.

use std::env;
use std::io::{self, IsTerminal, Write};

use nano_vllm_rs::text::ChatDelta;

/// Where answers are shown.
///
/// A terminal gets reasoning dimmed, and never control characters of the model; all else gets what the model wrote, reasoning
/// between its tags.
pub(super) struct Screen {
    is_terminal: bool,
    has_styles: bool,
}

/// An answer that is being shown.
pub(super) struct Shown<'a, W> {
    screen: &'a Screen,
    out: W,
    is_reasoning: bool,
    /// Whether the last line is not ended.
    is_mid_line: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let is_terminal = io::stdout().is_terminal();
        let is_plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_terminal, has_styles: is_terminal && !is_plain }
    }

    /// Begins to show an answer on stdout.
    pub(super) fn begin(&self) -> Shown<'_, impl Write> {
        self.begin_on(io::stdout().lock())
    }

    fn begin_on<W: Write>(&self, out: W) -> Shown<'_, W> {
        Shown { screen: self, out, is_reasoning: false, is_mid_line: false }
    }
}

impl<W: Write> Shown<'_, W> {
    pub(super) fn show(&mut self, deltas: &[ChatDelta]) -> io::Result<()> {
        for delta in deltas {
            match delta {
                ChatDelta::Reasoning(text) => {
                    if !self.is_reasoning {
                        self.is_reasoning = true;
                        self.style("\x1b[2m", "<think>\n")?;
                    }
                    self.write(text)?;
                }
                ChatDelta::Content(text) => {
                    self.end_reasoning("\n")?;
                    self.write(text)?;
                }
                // Tools are not offered, and what looks like a call is content.
                ChatDelta::ToolCallName { .. } | ChatDelta::ToolCallArguments { .. } => {}
            }
        }
        self.out.flush()
    }

    /// Ends the last line, and whatever the terminal was told.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.end_reasoning("")?;
        if self.is_mid_line {
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    fn end_reasoning(&mut self, gap: &str) -> io::Result<()> {
        if self.is_reasoning {
            self.is_reasoning = false;
            if self.is_mid_line {
                self.write("\n")?;
            }
            self.style("\x1b[0m", "</think>\n")?;
            self.out.write_all(gap.as_bytes())?;
        }
        Ok(())
    }

    fn style(&mut self, code: &str, tag: &str) -> io::Result<()> {
        self.out.write_all(if self.screen.has_styles { code } else { tag }.as_bytes())
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.is_mid_line = !text.ends_with('\n');
        if !self.screen.is_terminal {
            return self.out.write_all(text.as_bytes());
        }
        // A terminal must not obey the model.
        for character in text.chars() {
            if character.is_control() && !matches!(character, '\n' | '\t') {
                write!(self.out, "{}", character.escape_default())?;
            } else {
                write!(self.out, "{character}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: Screen = Screen { is_terminal: false, has_styles: false };
    const PLAIN: Screen = Screen { is_terminal: true, has_styles: false };
    const TERMINAL: Screen = Screen { is_terminal: true, has_styles: true };

    #[track_caller]
    fn check(screen: &Screen, deltas: &[ChatDelta], expected: &str) {
        let mut out = Vec::new();
        let mut shown = screen.begin_on(&mut out);
        for delta in deltas {
            shown.show(std::slice::from_ref(delta)).unwrap();
        }
        shown.finish().unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    fn reasoning(text: &str) -> ChatDelta {
        ChatDelta::Reasoning(text.to_owned())
    }

    fn content(text: &str) -> ChatDelta {
        ChatDelta::Content(text.to_owned())
    }

    #[test]
    fn answers_end_in_one_line_end() {
        check(&PIPE, &[], "");
        check(&PIPE, &[content("a"), content("b")], "ab\n");
        check(&PIPE, &[content("a\n")], "a\n");
        check(&PIPE, &[content("a\n\nb\n"), content("")], "a\n\nb\n");
    }

    #[test]
    fn reasoning_is_told_from_content() {
        let thought = [reasoning("H"), reasoning("m"), content("a")];
        check(&PIPE, &thought, "<think>\nHm\n</think>\n\na\n");
        check(&PLAIN, &thought, "<think>\nHm\n</think>\n\na\n");
        check(&TERMINAL, &thought, "\x1b[2mHm\n\x1b[0m\na\n");
        // Stopped while it thinks: the terminal is not left dimmed.
        check(&TERMINAL, &[reasoning("H")], "\x1b[2mH\n\x1b[0m");
        check(&PIPE, &[reasoning("H\n")], "<think>\nH\n</think>\n");
    }

    #[test]
    fn a_terminal_does_not_obey_the_model() {
        let bell = [content("a\tb\x1b[2J\x07\u{9b}\r🤖\n")];
        check(&TERMINAL, &bell, "a\tb\\u{1b}[2J\\u{7}\\u{9b}\\r🤖\n");
        check(&PIPE, &bell, "a\tb\x1b[2J\x07\u{9b}\r🤖\n");
    }
}
