//! One tool call in the text of an answer: `{"name": …, "arguments": {…}}`, closed by a tag.
//!
//! It knows nothing of the text around the call.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::chat_delta::{ChatDelta, append};
use crate::literals::Literal;

/// The tag that opens a call.
pub(crate) const START_TAG: &str = "<tool_call>";

/// The tag that closes a call.
const END_TAG: &str = "</tool_call>";

/// Reads a call from behind its opening tag to the end of its closing tag.
///
/// The closing tag is the first one outside a string of the JSON. A string ends with a quote, or with a line: JSON
/// has no line ends in strings, and what follows is not taken for JSON any more.
#[derive(Debug, Clone)]
pub(crate) struct ToolCallParser {
    index: usize,
    streamed: bool,
    /// All text since the opening tag.
    body: String,
    stage: Stage,
    lexer: Lexer,
    /// Brackets that are open.
    depth: usize,
    end_tag: Literal,
    /// How many bytes of the closing tag the body ends with.
    num_closing: usize,
}

/// What a call of a function is, as Qwen writes it, before its arguments and behind them.
pub(crate) fn around_arguments(name: &str) -> (String, String) {
    let name = Value::from(name);
    let head = format!("{START_TAG}\n{{\"name\": {name}, \"arguments\": ");
    (head, format!("}}\n{END_TAG}"))
}

/// What has been read of the call, and what has been given out.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// Nothing but whitespace.
    Blank,
    /// The object has begun; its arguments have not.
    Head,
    /// The object has begun; nothing is given out before its end.
    Whole,
    /// The name was given out, and the arguments up to here in the body.
    Arguments { num_given: usize },
    /// The name was given out, and the arguments, which end here in the body.
    Tail { start: usize },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Lexer {
    Between,
    String,
    Escape,
    /// Not JSON from here on.
    Broken,
}

/// What the text since the opening tag was.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// A call, which is given out. It was malformed if there is text left over that belongs to no part of it.
    Call { leftover: String },
    /// No call: this is all of its text, tags included.
    Text(String),
}

/// A well-formed call.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call<'a> {
    name: String,
    #[serde(borrow)]
    arguments: &'a RawValue,
}

/// A call whose arguments are cut off.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    name: String,
    #[serde(rename = "arguments")]
    _arguments: (),
}

impl ToolCallParser {
    /// Call number `index` of an answer, given out as it comes (`streamed`) or when it has come whole.
    pub(crate) fn new(index: usize, streamed: bool) -> Self {
        Self {
            index,
            streamed,
            body: String::new(),
            stage: Stage::Blank,
            lexer: Lexer::Between,
            depth: 0,
            end_tag: Literal::new(END_TAG),
            num_closing: 0,
        }
    }

    /// Goes on by `text`. Where it ends in `text`, if it does: behind its closing tag, or before what can't begin a
    /// call.
    pub(crate) fn push(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) -> Option<usize> {
        let start = self.body.len();
        self.body.push_str(text);
        for position in start..self.body.len() {
            let byte = self.body.as_bytes()[position];
            if self.stage == Stage::Blank {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\r' => continue,
                    b'{' => self.stage = if self.streamed { Stage::Head } else { Stage::Whole },
                    _ => {
                        self.body.truncate(position);
                        return Some(position - start);
                    }
                }
            }
            self.read(byte, position, deltas);
            if self.is_closed() {
                self.body.truncate(position + 1);
                return Some(position + 1 - start);
            }
        }
        self.give_arguments(self.body.len() - self.num_closing, deltas);
        None
    }

    /// Says what has come, closed or not. Nothing may follow.
    pub(crate) fn finish(&mut self, deltas: &mut Vec<ChatDelta>) -> Outcome {
        let is_closed = self.is_closed();
        let json_len = self.body.len() - self.num_closing;
        // A part of a closing tag is a part of what it stands in, unless that is complete without.
        let len = if is_closed { json_len } else { self.body.len() };
        let leftover = match self.stage {
            Stage::Blank | Stage::Head | Stage::Whole => {
                match serde_json::from_str::<Call<'_>>(&self.body[..json_len]) {
                    Ok(Call { name, arguments }) if arguments.get().starts_with('{') => {
                        let (index, arguments) = (self.index, arguments.get().to_owned());
                        append(deltas, ChatDelta::ToolCallName { index, name });
                        append(deltas, ChatDelta::ToolCallArguments { index, arguments });
                    }
                    _ => return Outcome::Text(format!("{START_TAG}{}", self.body)),
                }
                ""
            }
            Stage::Arguments { .. } => {
                self.give_arguments(len, deltas);
                ""
            }
            Stage::Tail { start } => match self.body[start..json_len].trim() {
                "}" => "",
                "" if !is_closed => "",
                _ => &self.body[start..len],
            },
        };
        Outcome::Call { leftover: leftover.to_owned() }
    }

    fn is_closed(&self) -> bool {
        self.num_closing == self.end_tag.len()
    }

    fn read(&mut self, byte: u8, position: usize, deltas: &mut Vec<ChatDelta>) {
        if matches!(self.lexer, Lexer::Between | Lexer::Broken) {
            self.num_closing = self.end_tag.advance(self.num_closing, byte);
        }
        match (self.lexer, byte) {
            (Lexer::String | Lexer::Escape, 0..=0x1F) => self.lexer = Lexer::Broken,
            (Lexer::String, b'\\') => self.lexer = Lexer::Escape,
            (Lexer::String, b'"') => self.lexer = Lexer::Between,
            (Lexer::Escape, _) | (Lexer::Between, b'"') => self.lexer = Lexer::String,
            (Lexer::Between, b'{' | b'[') => {
                self.depth += 1;
                if self.depth == 2 && self.stage == Stage::Head {
                    self.open_arguments(position, deltas);
                }
            }
            (Lexer::Between, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 1 && matches!(self.stage, Stage::Arguments { .. }) {
                    self.give_arguments(position + 1, deltas);
                    self.stage = Stage::Tail { start: position + 1 };
                }
            }
            (Lexer::Between | Lexer::String | Lexer::Broken, _) => {}
        }
    }

    /// The arguments begin at `position`, if what is before them is as it should be.
    fn open_arguments(&mut self, position: usize, deltas: &mut Vec<ChatDelta>) {
        let is_object = self.body[position..].starts_with('{');
        let head = format!("{}null}}", &self.body[..position]);
        self.stage = match serde_json::from_str(&head) {
            Ok(Head { name, .. }) if is_object => {
                append(deltas, ChatDelta::ToolCallName { index: self.index, name });
                Stage::Arguments { num_given: position }
            }
            _ => Stage::Whole,
        };
    }

    /// Gives out the arguments up to `end` in the body.
    fn give_arguments(&mut self, end: usize, deltas: &mut Vec<ChatDelta>) {
        if let Stage::Arguments { num_given } = &mut self.stage {
            let arguments = self.body[*num_given..end].to_owned();
            *num_given = end;
            append(deltas, ChatDelta::ToolCallArguments { index: self.index, arguments });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of the text behind an opening tag, and what is not read of it: the same however it is cut.
    fn run(text: &str, streamed: bool) -> (Vec<ChatDelta>, Outcome, &str) {
        let run_in_pieces = |piece_ends: &[usize]| {
            let mut call = ToolCallParser::new(3, streamed);
            let mut deltas = Vec::new();
            let mut start = 0;
            let end = piece_ends.iter().find_map(|&end| {
                let piece = &text[std::mem::replace(&mut start, end)..end];
                call.push(piece, &mut deltas).map(|num_read| end - piece.len() + num_read)
            });
            let outcome = call.finish(&mut deltas);
            (deltas, outcome, &text[end.unwrap_or(text.len())..])
        };
        let whole = run_in_pieces(&[text.len()]);
        let char_ends: Vec<_> =
            text.char_indices().map(|(start, char)| start + char.len_utf8()).collect();
        assert_eq!(run_in_pieces(&char_ends), whole, "{text}");
        whole
    }

    fn deltas(name: &str, arguments: &str) -> Vec<ChatDelta> {
        vec![
            ChatDelta::ToolCallName { index: 3, name: name.to_owned() },
            ChatDelta::ToolCallArguments { index: 3, arguments: arguments.to_owned() },
        ]
    }

    #[test]
    fn well_formed_calls_come_out() {
        let check = |text: &str, name: &str, arguments: &str, rest: &str| {
            for streamed in [false, true] {
                let call = Outcome::Call { leftover: String::new() };
                assert_eq!(run(text, streamed), (deltas(name, arguments), call, rest), "{text}");
            }
        };
        check("\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n", "f", "{}", "\n");
        check(
            r#"{"name":"f","arguments":{"x":[{}]}}</tool_call></tool_call>"#,
            "f",
            r#"{"x":[{}]}"#,
            "</tool_call>",
        );
        check(
            " { \"name\" : \"f\" ,\n \"arguments\" :\t{ \"x\" : 1.50 }\r\n}",
            "f",
            r#"{ "x" : 1.50 }"#,
            "",
        );
        check(
            r#"{"name": "\u00e9\"{", "arguments": {"a": "\u00e9 } \" \\"}}</tool_call>x"#,
            "é\"{",
            r#"{"a": "\u00e9 } \" \\"}"#,
            "x",
        );
        // The other order, and a closing tag that is said, or not quite there.
        check(r#"{"arguments": {"x": {}}, "name": "f"}</tool_call>"#, "f", r#"{"x": {}}"#, "");
        check(
            r#"{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>"#,
            "f",
            r#"{"x": "</tool_call>"}"#,
            "",
        );
        check("{\"name\": \"f\", \"arguments\": {}}\n</tool_c", "f", "{}", "");
        // Arguments may be nested deeper than a parser dares to go.
        let deep = format!("{{\"x\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        check(&format!("{{\"name\": \"f\", \"arguments\": {deep}}}</tool_call>"), "f", &deep, "");
    }

    #[test]
    fn what_is_no_call_stays_text() {
        let check = |text: &str, rest: &str| {
            let read = &text[..text.len() - rest.len()];
            for streamed in [false, true] {
                let expected = Outcome::Text(format!("<tool_call>{read}"));
                assert_eq!(run(text, streamed), (Vec::new(), expected, rest), "{text}");
            }
        };
        check("", "");
        check("\n", "");
        check(" tags are <tool_call>", "tags are <tool_call>");
        check("\n</tool_call>é", "</tool_call>é");
        check("é", "é");
        check("{}</tool_call>", "");
        check("{</tool_call>.", ".");
        check("{]]}</tool_call>", "");
        check(r#"{"name": "f"}</tool_call>"#, "");
        check(r#"{"name": "f", "arguments": null}</tool_call>"#, "");
        check(r#"{"name": "f", "arguments": [{}]}</tool_call>"#, "");
        check(r#"{"name": "f", "arguments": "{}"}</tool_call>"#, "");
        check(r#"{"name": 1, "arguments": {}}</tool_call>"#, "");
        check(r#"{"name": "f", "name": "g", "arguments": {}}</tool_call>"#, "");
        check(r#"{"name": "f", "id": 7, "arguments": {}}</tool_call>"#, "");
        check(r#"{"name": "f", "id": {}, "arguments": {}}</tool_call>"#, "");
        check(r#"{name: "f", "arguments": {}}</tool_call>"#, "");
        check(r#"{"name": "\q", "arguments": {}}</tool_call>"#, "");
        check("{\"name\": \"f\n\", \"arguments\": {}}</tool_call>", "");
        // A string that is not closed ends with its line, so that the closing tag counts.
        check("{\"name\": \"f\n</tool_call> more", " more");
        check("{\"name\": \"f\\\n</tool_call> more", " more");
        check("{\"name\": \"f", "");
        check("{\"name\": \"f\", \"argu", "");
    }

    #[test]
    fn calls_that_break_off_or_turn_out_malformed_lose_nothing() {
        let check = |arguments: &str, tail: &str, leftover: &str| {
            let text = format!(r#"{{"name": "f", "arguments": {arguments}{tail}"#);
            let outcome = Outcome::Call { leftover: leftover.to_owned() };
            assert_eq!(run(&text, true), (deltas("f", arguments), outcome, ""), "{text}");
            let whole = Outcome::Text(format!("<tool_call>{text}"));
            assert_eq!(run(&text, false), (Vec::new(), whole, ""), "{text}");
        };
        check("{", "", "");
        check("{\"x\": \"é", "", "");
        check("{\"x\": \"</tool_call>", "", "");
        check("{\"x\": 1</tool_", "", "");
        check("{\"x\": 1", "</tool_call>", "");
        check("{\"x\": }", "}</tool_call>", "");
        check("{\"x\": \"line\nline\"}}\n", "</tool_call>", "");
        check("{}", "", "");
        check("{}", "</tool_call>", "");
        check("{}", "\n</tool_c", "");
        check("{}", "}}</tool_call>", "}}");
        check("{}", ", \"id\": 1}\n</tool_call>", ", \"id\": 1}\n");
        check("{}", ", </tool", ", </tool");
    }
}
