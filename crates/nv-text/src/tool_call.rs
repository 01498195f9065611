//! One tool call in the text of an answer: `{"name": …, "arguments": {…}}`, closed by a tag.
//!
//! It knows nothing of the text around the call.

mod unescape;

use serde_json::Value;

use crate::chat_delta::{ChatDelta, append};
use crate::literals::Literal;
use unescape::Unescaper;

/// The tag that opens a call.
pub(crate) const START_TAG: &str = "<tool_call>";

/// The tag that closes a call.
pub(crate) const END_TAG: &str = "</tool_call>";

/// Reads a call from behind its opening tag to the end of its closing tag.
///
/// The name comes out when it is complete, the arguments as they come. A model need not write the JSON quite as it was
/// taught: the members may have any order, arguments may be a string that holds the object, be called `parameters`, be
/// null or missing; other members are left out, and closing brackets may be too few or too many.
///
/// A tag counts outside of strings, and in a string that holds a line end, which JSON has not: such a string was not
/// closed, most likely.
#[derive(Debug, Clone)]
pub(crate) struct ToolCallParser {
    index: usize,
    /// All text since the opening tag.
    body: String,
    /// The start of the body that is no part of a tag.
    num_read: usize,
    end_tag: Tag,
    start_tag: Tag,
    lexer: Lexer,
    /// Brackets that are open.
    depth: usize,
    place: Place,
    /// Where the member begins that is being read.
    member_start: usize,
    /// Where its value begins.
    value_start: usize,
    key: Key,
    has_name: bool,
    arguments: Arguments,
    /// Arguments that came before the name.
    waiting: String,
    /// Where the text begins that is no part of the call, behind the arguments.
    leftover: Option<usize>,
    /// Whether another call follows without a tag.
    is_followed: bool,
}

/// What a call of a function is, as Qwen writes it, before its arguments and behind them.
pub(crate) fn around_arguments(name: &str) -> (String, String) {
    let name = Value::from(name);
    let head = format!("{START_TAG}\n{{\"name\": {name}, \"arguments\": ");
    (head, format!("}}\n{END_TAG}"))
}

/// A tag that is looked for, and how many of its bytes the body ends with.
#[derive(Debug, Clone)]
struct Tag {
    literal: Literal,
    num_matched: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Lexer {
    Between,
    String,
    Escape,
    /// In a string that holds a line end.
    Broken,
    BrokenEscape,
}

/// Where in the call's object the text is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// Before the object.
    Blank,
    /// Before a key, or in it.
    Key,
    /// Behind a key.
    Colon,
    /// Before a value.
    Value,
    /// In a number or a word.
    Word,
    /// In a string, an object or a list.
    Nested,
    /// Behind a value.
    Comma,
    /// The object is closed.
    Done,
    /// In text that is no JSON of a call.
    Malformed,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// What of the arguments has come.
#[derive(Debug, Clone)]
enum Arguments {
    Missing,
    /// They go on as text, which was given out up to here.
    Raw {
        num_given: usize,
    },
    /// They are a number or a word, given out at its end.
    Word,
    /// They go on in a string, which was read up to here. What it says was given out but for what is held back, until it is
    /// certain that it begins an object.
    String {
        num_read: usize,
        unescaper: Unescaper,
        held: Option<String>,
    },
    Complete,
}

/// How a call ended, and what is left of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    /// Whether there was a call, which was given out.
    pub(crate) is_call: bool,
    /// Text that belongs to no call: all but the tags if there was none.
    pub(crate) text: String,
    /// Whether another call follows, with no text before it.
    pub(crate) is_reopened: bool,
}

impl ToolCallParser {
    /// Call number `index` of an answer.
    pub(crate) fn new(index: usize) -> Self {
        Self {
            index,
            body: String::new(),
            num_read: 0,
            end_tag: Tag::new(END_TAG),
            start_tag: Tag::new(START_TAG),
            lexer: Lexer::Between,
            depth: 0,
            place: Place::Blank,
            member_start: 0,
            value_start: 0,
            key: Key::Other,
            has_name: false,
            arguments: Arguments::Missing,
            waiting: String::new(),
            leftover: None,
            is_followed: false,
        }
    }

    /// Goes on by `text`. Where it ends in `text`, if it does: behind a tag, or before what can't begin a call nor belong to
    /// one.
    pub(crate) fn push(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) -> Option<usize> {
        let start = self.body.len();
        self.body.push_str(text);
        for position in start..self.body.len() {
            if matches!(self.lexer, Lexer::Between | Lexer::Broken) {
                let byte = self.body.as_bytes()[position];
                self.end_tag.advance(byte);
                self.start_tag.advance(byte);
                if self.is_tagged() {
                    self.body.truncate(position + 1);
                    return Some(position + 1 - start);
                }
            }
            // No bracket or quote is part of a tag, so that nothing of what is held back changes the lexer.
            let num_held = self.end_tag.num_matched.max(self.start_tag.num_matched);
            while self.num_read < position + 1 - num_held {
                if !self.read(self.num_read, deltas) {
                    // What was held back in vain comes before this piece.
                    let end = self.num_read.max(start);
                    self.leftover = Some(self.num_read);
                    self.body.truncate(end);
                    (self.end_tag.num_matched, self.start_tag.num_matched) = (0, 0);
                    return Some(end - start);
                }
                self.num_read += 1;
            }
        }
        self.give_arguments(self.num_read, deltas);
        None
    }

    /// Whether the name was given out.
    pub(crate) fn has_name(&self) -> bool {
        self.has_name
    }

    /// Whether all of the call has come that it needs.
    pub(crate) fn is_complete(&self) -> bool {
        self.has_name
            && (matches!(self.arguments, Arguments::Complete) || self.place == Place::Done)
    }

    /// Ends the call, where its text ends or where the text is cut: there, what is not certain yet is left out.
    pub(crate) fn finish(&mut self, is_cut: bool, deltas: &mut Vec<ChatDelta>) -> Ended {
        let is_reopened = self.start_tag.is_complete() || self.is_followed;
        let num_tag = self.end_tag.num_matched.max(self.start_tag.num_matched);
        let mut end = self.body.len() - num_tag;
        // The start of a tag is part of arguments that go on. Elsewhere it is that of a tag, most likely.
        if !self.is_tagged() && !is_cut && matches!(self.arguments, Arguments::Raw { .. }) {
            end = self.body.len();
        }
        if !self.has_name {
            let (read, held) = self.body[..end].split_at(self.num_read.min(end));
            let text = if is_cut { String::new() } else { without_tags(read.trim_matches('\n')) };
            return Ended {
                is_call: false,
                text: text + if is_cut { "" } else { held },
                is_reopened,
            };
        }
        if is_cut {
            self.give_arguments(end, deltas);
        } else {
            match self.place {
                Place::Word => self.end_value(end, deltas),
                Place::Nested if self.key == Key::Arguments => {}
                Place::Key if self.lexer == Lexer::Between => {}
                Place::Key | Place::Colon | Place::Value | Place::Nested => {
                    self.go_on_malformed(self.member_start);
                }
                _ => {}
            }
            self.give_arguments(end, deltas);
            self.complete_arguments(end, deltas);
        }
        let leftover = self.leftover.map_or("", |start| &self.body[start..end.max(start)]);
        let is_bracket = |char: char| matches!(char, '}' | ']') || char.is_whitespace();
        let text = without_tags(leftover.trim_end_matches(is_bracket));
        Ended { is_call: true, text, is_reopened }
    }

    fn is_tagged(&self) -> bool {
        self.end_tag.is_complete() || self.start_tag.is_complete()
    }

    /// Goes on by the byte at `position`. False if the call has ended before it.
    fn read(&mut self, position: usize, deltas: &mut Vec<ChatDelta>) -> bool {
        let byte = self.body.as_bytes()[position];
        match (self.lexer, byte) {
            (Lexer::String | Lexer::Escape, 0..=0x1F) | (Lexer::BrokenEscape, _) => {
                self.lexer = Lexer::Broken;
            }
            (Lexer::String, b'\\') => self.lexer = Lexer::Escape,
            (Lexer::Broken, b'\\') => self.lexer = Lexer::BrokenEscape,
            (Lexer::Escape, _) => self.lexer = Lexer::String,
            (Lexer::String | Lexer::Broken, b'"') => {
                self.lexer = Lexer::Between;
                if self.depth == 1 {
                    self.end_string(position, deltas);
                }
            }
            (Lexer::String | Lexer::Broken, _) => {}
            (Lexer::Between, _) => {
                if self.depth <= 1 && !self.read_member(byte, position, deltas) {
                    return false;
                }
                match byte {
                    b'"' => self.lexer = Lexer::String,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        if self.depth == 1 && self.place == Place::Nested {
                            self.end_value(position + 1, deltas);
                        }
                    }
                    _ => {}
                }
            }
        }
        true
    }

    /// Goes on by a byte of the call's object that is in none of its values, or begins one. False if the call has ended before
    /// it.
    fn read_member(&mut self, byte: u8, position: usize, deltas: &mut Vec<ChatDelta>) -> bool {
        let is_blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        let is_word = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
        if self.place == Place::Word && !is_word {
            self.end_value(position, deltas);
        }
        match (self.place, byte) {
            (Place::Malformed | Place::Word, _) | (Place::Done, b'}' | b']') => {}
            (Place::Blank, b'{') | (Place::Comma, b',') => self.place = Place::Key,
            (Place::Key, b'"') => self.member_start = position,
            (Place::Colon, b':') => self.place = Place::Value,
            (Place::Value, b'"' | b'{' | b'[') => {
                self.place = Place::Nested;
                self.begin_value(byte, position);
            }
            (Place::Value, _) if is_word => {
                self.place = Place::Word;
                self.begin_value(byte, position);
            }
            (Place::Key | Place::Comma, b'}') => {
                self.place = Place::Done;
                self.complete_arguments(position, deltas);
            }
            (_, _) if is_blank => {}
            (Place::Blank | Place::Done, _) => {
                self.is_followed = self.place == Place::Done && byte == b'{';
                return false;
            }
            (Place::Colon | Place::Value, _) => self.go_on_malformed(self.member_start),
            _ => self.go_on_malformed(position),
        }
        true
    }

    /// From `start` on the text is no JSON of a call. It is shown in place of the arguments, or behind them.
    fn go_on_malformed(&mut self, start: usize) {
        self.place = Place::Malformed;
        if matches!(self.arguments, Arguments::Missing) {
            self.arguments = Arguments::Raw { num_given: start };
        } else {
            self.leftover = Some(start);
        }
    }

    /// A string of the call's object ends at `position`.
    fn end_string(&mut self, position: usize, deltas: &mut Vec<ChatDelta>) {
        match self.place {
            Place::Key => {
                let key = serde_json::from_str::<String>(&self.body[self.member_start..=position]);
                self.key = match key.as_deref() {
                    Ok("name") if !self.has_name => Key::Name,
                    Ok("arguments" | "parameters")
                        if matches!(self.arguments, Arguments::Missing) =>
                    {
                        Key::Arguments
                    }
                    _ => Key::Other,
                };
                self.place = Place::Colon;
            }
            Place::Nested => self.end_value(position + 1, deltas),
            _ => {}
        }
    }

    fn begin_value(&mut self, byte: u8, position: usize) {
        self.value_start = position;
        if self.key == Key::Arguments {
            self.arguments = match byte {
                b'{' | b'[' => Arguments::Raw { num_given: position },
                b'"' => Arguments::String {
                    num_read: position + 1,
                    unescaper: Unescaper::default(),
                    held: Some(String::new()),
                },
                _ => Arguments::Word,
            };
        }
    }

    /// The value that is being read ends before `end`.
    fn end_value(&mut self, end: usize, deltas: &mut Vec<ChatDelta>) {
        self.place = Place::Comma;
        match self.key {
            Key::Name => {
                let name = serde_json::from_str::<String>(&self.body[self.value_start..end]);
                if let Ok(name) = name {
                    self.has_name = true;
                    append(deltas, ChatDelta::ToolCallName { index: self.index, name });
                    let waiting = std::mem::take(&mut self.waiting);
                    self.give(&waiting, deltas);
                }
            }
            Key::Arguments => {
                // The quote that closes a string is no part of what it says.
                let is_string = matches!(self.arguments, Arguments::String { .. });
                self.give_arguments(end - usize::from(is_string), deltas);
                self.complete_arguments(end, deltas);
            }
            Key::Other => {}
        }
    }

    /// Gives out the arguments up to `end` in the body, as far as they are certain.
    fn give_arguments(&mut self, end: usize, deltas: &mut Vec<ChatDelta>) {
        let mut said = String::new();
        match &mut self.arguments {
            Arguments::Raw { num_given } => {
                said.push_str(&self.body[*num_given..end]);
                *num_given = end;
            }
            Arguments::String { num_read, unescaper, held } => {
                unescaper.push(&self.body[*num_read..end], &mut said);
                *num_read = end;
                match (held.take(), said.trim_start().chars().next()) {
                    (None, _) => {}
                    (Some(blank), None) => *held = Some(blank + &std::mem::take(&mut said)),
                    (Some(blank), Some('{')) => said.insert_str(0, &blank),
                    (Some(_), Some(_)) => {
                        // It is a string that holds no object.
                        said = self.body[self.value_start..end].to_owned();
                        self.arguments = Arguments::Raw { num_given: end };
                    }
                }
            }
            Arguments::Missing | Arguments::Word | Arguments::Complete => {}
        }
        self.give(&said, deltas);
    }

    /// Ends the arguments, which end before `end` in the body.
    fn complete_arguments(&mut self, end: usize, deltas: &mut Vec<ChatDelta>) {
        let none = "{}";
        let rest = match std::mem::replace(&mut self.arguments, Arguments::Complete) {
            // Without a value, or with an empty one.
            Arguments::Missing if matches!(self.place, Place::Comma | Place::Key | Place::Done) => {
                none.to_owned()
            }
            Arguments::String { held: Some(_), .. } => none.to_owned(),
            Arguments::String { unescaper, .. } => unescaper.finish(),
            Arguments::Word => match &self.body[self.value_start..end] {
                "null" => none.to_owned(),
                word => word.to_owned(),
            },
            Arguments::Raw { num_given } => self.body[num_given..end.max(num_given)].to_owned(),
            Arguments::Missing | Arguments::Complete => return,
        };
        self.give(&rest, deltas);
    }

    /// Gives out a piece of the arguments, once the name was.
    fn give(&mut self, said: &str, deltas: &mut Vec<ChatDelta>) {
        if self.has_name {
            let (index, arguments) = (self.index, said.to_owned());
            append(deltas, ChatDelta::ToolCallArguments { index, arguments });
        } else {
            self.waiting.push_str(said);
        }
    }
}

/// Text without the tags in its strings, as it is no JSON after all.
fn without_tags(text: &str) -> String {
    text.replace(START_TAG, "").replace(END_TAG, "")
}

impl Tag {
    fn new(text: &str) -> Self {
        Self { literal: Literal::new(text), num_matched: 0 }
    }

    fn advance(&mut self, byte: u8) {
        self.num_matched = self.literal.advance(self.num_matched, byte);
    }

    fn is_complete(&self) -> bool {
        self.num_matched == self.literal.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of the text behind an opening tag, and what is not read of it: the same however it is cut.
    fn run(text: &str, is_cut: bool) -> (Vec<ChatDelta>, Ended, &str) {
        let run_in_pieces = |piece_ends: &[usize]| {
            let mut call = ToolCallParser::new(3);
            let mut deltas = Vec::new();
            let mut start = 0;
            let end = piece_ends.iter().find_map(|&end| {
                let piece = &text[std::mem::replace(&mut start, end)..end];
                call.push(piece, &mut deltas).map(|num_read| end - piece.len() + num_read)
            });
            let ended = call.finish(is_cut, &mut deltas);
            let rest = &text[end.unwrap_or(text.len())..];
            // Text that was held back in vain is handed on in one way or the other.
            (deltas, ended.text.clone() + rest, ended, rest)
        };
        let (deltas, unread, ended, rest) = run_in_pieces(&[text.len()]);
        let char_ends: Vec<_> =
            text.char_indices().map(|(start, char)| start + char.len_utf8()).collect();
        let (own_deltas, own_unread, own_ended, _) = run_in_pieces(&char_ends);
        assert_eq!((own_deltas, own_unread), (deltas.clone(), unread), "{text}");
        assert_eq!(own_ended.is_call, ended.is_call, "{text}");
        assert_eq!(own_ended.is_reopened, ended.is_reopened, "{text}");
        (deltas, ended, rest)
    }

    fn deltas(name: &str, arguments: &str) -> Vec<ChatDelta> {
        let mut deltas = vec![ChatDelta::ToolCallName { index: 3, name: name.to_owned() }];
        let arguments = arguments.to_owned();
        append(&mut deltas, ChatDelta::ToolCallArguments { index: 3, arguments });
        deltas
    }

    /// A call comes out of `text`, with `leftover` behind it.
    #[track_caller]
    fn check_call(text: &str, name: &str, arguments: &str, leftover: &str, rest: &str) {
        let text_left = leftover.to_owned();
        let ended = Ended { is_call: true, text: text_left, is_reopened: false };
        assert_eq!(run(text, false), (deltas(name, arguments), ended, rest), "{text}");
    }

    #[test]
    fn well_formed_calls_come_out() {
        let check = |text: &str, name: &str, arguments: &str, rest: &str| {
            check_call(text, name, arguments, "", rest);
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
            r#"{"name": "f", "arguments": {"x": "</tool_call><tool_call>{"}}</tool_call>"#,
            "f",
            r#"{"x": "</tool_call><tool_call>{"}"#,
            "",
        );
        check("{\"name\": \"f\", \"arguments\": {}}\n</tool_c", "f", "{}", "");
        // Arguments may be nested deeper than a parser dares to go.
        let deep = format!("{{\"x\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        check(&format!("{{\"name\": \"f\", \"arguments\": {deep}}}</tool_call>"), "f", &deep, "");
    }

    #[test]
    fn calls_need_not_be_quite_as_taught() {
        let check = |json: &str, arguments: &str| {
            check_call(&format!("\n{json}\n</tool_call>"), "f", arguments, "", "");
        };
        // Arguments in a string, which is read if it holds an object.
        check(r#"{"name": "f", "arguments": "{\"x\": \"\u00e9\\n\"}"}"#, "{\"x\": \"é\\n\"}");
        check(r#"{"name": "f", "arguments": " {}"}"#, " {}");
        check(r#"{"arguments": "{\"x\": 1}", "name": "f"}"#, r#"{"x": 1}"#);
        check(r#"{"name": "f", "arguments": "x\"y"}"#, r#""x\"y""#);
        check(r#"{"name": "f", "arguments": ""}"#, "{}");
        check(r#"{"name": "f", "arguments": "{\"x\": 1}""#, r#"{"x": 1}"#);
        // Other names, other values, other members.
        check(r#"{"name": "f", "parameters": {"x": 1}}"#, r#"{"x": 1}"#);
        check(r#"{"\u006eame": "f", "parameters": {"x": 1}, "arguments": {}}"#, r#"{"x": 1}"#);
        check(r#"{"name": "f", "arguments": null}"#, "{}");
        check(r#"{"name": "f", "arguments": null"#, "{}");
        check(r#"{"name": "f", "arguments": [1, {}]}"#, "[1, {}]");
        check(r#"{"name": "f", "arguments": -1.5e3, "id": 1}"#, "-1.5e3");
        check(r#"{"name": "f"}"#, "{}");
        check(r#"{"name": "f""#, "{}");
        check(r#"{"id": {"name": "g"}, "name": "f", "arguments": {}, "type": "x"}"#, "{}");
        check(r#"{"name": "f", "name": "g", "arguments": {}}"#, "{}");
        check(r#"{"name": "f", "arguments": {},}"#, "{}");
        // Brackets that are missing, or too many.
        check(r#"{"name": "f", "arguments": {"x": [1]}"#, r#"{"x": [1]}"#);
        check(r#"{"name": "f", "arguments": {}}}]"#, "{}");
        check(r#"{"name": "f", "arguments": {}]}"#, "{}");
        check(r#"{"name": "f", "arguments": {}, "id": 1"#, "{}");
    }

    #[test]
    fn another_call_may_follow_at_once() {
        let check = |text: &str, arguments: &str, rest: &str| {
            let ended = Ended { is_call: true, text: String::new(), is_reopened: true };
            assert_eq!(run(text, false), (deltas("f", arguments), ended, rest), "{text}");
        };
        check("{\"name\": \"f\", \"arguments\": {}}\n<tool_call>\n{", "{}", "\n{");
        check("{\"name\": \"f\", \"arguments\": {}<tool_call>", "{}", "");
        check("{\"name\": \"f\", \"arguments\": {\"x\": 1<tool_call>a", "{\"x\": 1", "a");
        check("{\"name\": \"f\", \"arguments\": {}}\n{\"name\": \"g\"}", "{}", "{\"name\": \"g\"}");
    }

    #[test]
    fn what_is_no_call_stays_text() {
        let check = |text: &str, expected: &str, rest: &str| {
            let ended = Ended { is_call: false, text: expected.to_owned(), is_reopened: false };
            assert_eq!(run(text, false), (Vec::new(), ended, rest), "{text}");
        };
        check("", "", "");
        check("\n", "", "");
        check(" tags are <tool_call>", " ", "tags are <tool_call>");
        check("\n</tool_call>é", "", "é");
        check("é", "", "é");
        check("<tools>", "", "<tools>");
        for (json, rest) in [
            ("{}", ""),
            ("{", "."),
            ("{]]}", ""),
            (r#"{"name": 1, "arguments": {}}"#, ""),
            (r#"{"arguments": {"name": "f"}}"#, ""),
            (r#"{name: "f", "arguments": {}}"#, ""),
            (r#"{"name": "\q", "arguments": {}}"#, ""),
            ("{\"name\": \"f\n\", \"arguments\": {}}", ""),
            // A string that is not closed ends with its line, so that the closing tag counts.
            ("{\"name\": \"f", " more"),
            ("{\"name\": \"f\\", " more"),
        ] {
            check(&format!("{json}\n</tool_call>{rest}"), json, rest);
        }
        check("{\"name\": \"f", "{\"name\": \"f", "");
        check("{\"nam\": \"f\"}", "{\"nam\": \"f\"}", "");
    }

    #[test]
    fn malformed_calls_lose_nothing() {
        let check = |rest: &str, arguments: &str, leftover: &str| {
            let text = format!(r#"{{"name": "f", {rest}"#);
            check_call(&text, "f", arguments, leftover, "");
        };
        let in_arguments = |arguments: &str, tail: &str, leftover: &str| {
            check(&format!("\"arguments\": {arguments}{tail}"), arguments, leftover);
        };
        in_arguments("{", "", "");
        in_arguments("{\"x\": \"é", "", "");
        in_arguments("{\"x\": \"</tool_call>", "", "");
        in_arguments("{\"x\": 1</tool_", "", "");
        in_arguments("{\"x\": 1", "</tool_call>", "");
        in_arguments("{\"x\": }", "}</tool_call>", "");
        in_arguments("{\"x\": \"line\nline\"}", "}\n</tool_call>", "");
        in_arguments("{\"x\": \"line\nline", "</tool_call>", "");
        in_arguments("{}", ", </tool", "");
        in_arguments("{}", ", x: 1}\n</tool_call>", "x: 1");
        in_arguments("{}", ", \"x\" 1}\n</tool_call>", "\"x\" 1");
        in_arguments("{}", " \"x\": {1", "\"x\": {1");
        in_arguments("{}", ", \"x\": \"1", "\"x\": \"1");
        // Before the arguments, they hold it.
        check("x: 1}</tool_call>", "x: 1}", "");
        check("\"x\" 1}</tool_call>", "\"x\" 1}", "");
        check("\"arguments\" {\"x\": 1}}</tool_call>", "\"arguments\" {\"x\": 1}}", "");
        check("\"argum", "\"argum", "");
        check("\"x\": [1", "\"x\": [1", "");
        check("\"arguments\": \"{\\\"x\\", "{\"x\\", "");
        // Text behind a call is not read.
        check_call("{\"name\": \"f\", \"arguments\": {}} So.", "f", "{}", "", "So.");
    }

    #[test]
    fn cut_calls_hold_what_is_certain() {
        let check = |text: &str, expected: &[ChatDelta]| {
            let (found, ended, rest) = run(text, true);
            assert_eq!((&*found, &*ended.text, rest), (expected, "", ""), "{text}");
        };
        for text in ["", "\n", "</tool_c", "{\"na", "{\"name\": \"f", "{\"arguments\": {\"x\": 1}"]
        {
            check(text, &[]);
        }
        check("{\"name\": \"f\", \"argum", &deltas("f", ""));
        check("{\"name\": \"f\", \"arguments\": nul", &deltas("f", ""));
        check("{\"name\": \"f\", \"arguments\": null}", &deltas("f", "{}"));
        check("{\"name\": \"f\", \"arguments\": {\"x\": ", &deltas("f", "{\"x\": "));
        check("{\"name\": \"f\", \"arguments\": {\"x\": </tool", &deltas("f", "{\"x\": "));
        check("{\"name\": \"f\", \"arguments\": \"{\\\"x\\u00", &deltas("f", "{\"x"));
        check("{\"name\": \"f\", \"arguments\": {}}\n</tool_", &deltas("f", "{}"));
    }
}
