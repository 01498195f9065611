//! The text of an assistant's answer taken apart as it comes: reasoning, content, tool calls.
//!
//! It knows nothing of tokens, nor of where an answer ends.

use crate::chat_delta::{ChatAnswer, ChatDelta, append};
use crate::literals::Literals;
use crate::reasoning::{Reasoning, THINK_END, THINK_START};
use crate::tool_call::{END_TAG, Ended, START_TAG, ToolCallParser};

/// How tool calls in an answer are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ToolCalls {
    /// They are content: no tools were offered.
    #[default]
    Off,
    /// They come out as they are written: the name, then the arguments in pieces. Their tags are never content.
    On,
}

/// Takes an answer apart as its text comes: `<think>…</think>` at its beginning, then content, and in it tool calls in
/// Qwen's format, `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`.
///
/// How the text is cut into pieces makes no difference to the deltas put together, and the cost of a piece depends on
/// its own length alone. Nothing is lost but the tags, the JSON around a call's name and arguments, whitespace before
/// `<think>`, and line ends next to a tag, which the chat template puts back. Text that may still become a tag is held
/// back.
///
/// Malformed calls lose nothing either. If the name can be read it is a call, whose arguments hold what stands there as the
/// model wrote it, so that a client can tell the model what is wrong with them. Else all between the tags is content.
/// `<tool_call>` ends reasoning that is never closed: calls in reasoning are held back until it is closed, as parts of
/// it, or the answer ends.
///
/// ```
/// use nv_text::{ChatDelta, ChatParser, Reasoning, ToolCalls};
///
/// let mut parser = ChatParser::new(Reasoning::Optional, ToolCalls::On);
/// assert_eq!(parser.push("<think>\nHm"), [ChatDelta::Reasoning("Hm".to_owned())]);
/// assert_eq!(parser.push(".\n</think>\n\nHi"), [
///     ChatDelta::Reasoning(".".to_owned()),
///     ChatDelta::Content("Hi".to_owned()),
/// ]);
/// assert_eq!(parser.push("!\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x"), [
///     ChatDelta::Content("!".to_owned()),
///     ChatDelta::ToolCallName { index: 0, name: "f".to_owned() },
///     ChatDelta::ToolCallArguments { index: 0, arguments: "{\"x".to_owned() },
/// ]);
/// assert_eq!(parser.push("\": 1}}\n</tool_call>"), [
///     ChatDelta::ToolCallArguments { index: 0, arguments: "\": 1}".to_owned() },
/// ]);
/// assert_eq!(parser.finish(), []);
/// ```
#[derive(Debug, Clone)]
pub struct ChatParser {
    tool_calls: ToolCalls,
    num_tool_calls: usize,
    stage: Stage,
    /// The tags that end the stage, unless that is a tool call.
    tags: Literals,
    /// The whitespace that the answer begins with.
    blank: String,
    line_ends: LineEnds,
}

#[derive(Debug, Clone)]
enum Stage {
    /// Nothing but whitespace has come.
    Start,
    Reasoning,
    Draft(Draft),
    Content,
    ToolCall(ToolCallParser),
}

/// What may be a tool call in reasoning: a part of it if it is closed later, else its end.
#[derive(Debug, Clone)]
struct Draft {
    /// All that came behind the opening tag.
    text: String,
    /// Reads the call, until it is certain that it is one.
    call: Option<ToolCallParser>,
}

impl ChatParser {
    /// Takes apart an answer that has not begun.
    pub fn new(reasoning: Reasoning, tool_calls: ToolCalls) -> Self {
        let mut parser = Self {
            tool_calls,
            num_tool_calls: 0,
            stage: Stage::Start,
            tags: Literals::new([THINK_START]),
            blank: String::new(),
            line_ends: LineEnds::default(),
        };
        match reasoning {
            Reasoning::Off => parser.begin_content(),
            Reasoning::Optional => {}
            Reasoning::Opened => {
                parser.begin_reasoning();
                parser.line_ends = LineEnds::after_tag();
            }
        }
        parser
    }

    /// Takes apart a whole answer.
    pub fn parse(text: &str, reasoning: Reasoning, tool_calls: ToolCalls) -> ChatAnswer {
        let mut answer = ChatAnswer::default();
        let mut parser = Self::new(reasoning, tool_calls);
        answer.extend(parser.push(text));
        answer.extend(parser.finish());
        answer
    }

    /// The deltas that become certain with `text`.
    pub fn push(&mut self, text: &str) -> Vec<ChatDelta> {
        let mut deltas = Vec::new();
        self.read(text, &mut deltas);
        deltas
    }

    /// Whether the text is in a tool call that lacks something yet: not its closing tag, nor the bracket before it.
    pub fn is_in_tool_call(&self) -> bool {
        matches!(&self.stage, Stage::ToolCall(call) if !call.is_complete())
    }

    /// Ends the answer, as the model has: the deltas that were held back.
    pub fn finish(self) -> Vec<ChatDelta> {
        self.end(false)
    }

    /// Ends the answer where the model would have gone on, as one that is long enough. What was held back is left out: what may
    /// be the start of a tag, of an escape or of a call's name is no text yet.
    pub fn cut(self) -> Vec<ChatDelta> {
        self.end(true)
    }

    fn end(mut self, is_cut: bool) -> Vec<ChatDelta> {
        let mut deltas = Vec::new();
        if let Stage::Draft(draft) = &mut self.stage {
            let text = START_TAG.to_owned() + &draft.text + self.tags.held();
            self.end_reasoning();
            self.read(&text, &mut deltas);
        }
        if let Stage::ToolCall(call) = &mut self.stage {
            let ended = call.finish(is_cut, &mut deltas);
            self.end_tool_call(ended, &mut deltas);
        }
        if is_cut {
            return deltas;
        }
        let held = self.tags.take_held();
        match self.stage {
            Stage::Start => append(&mut deltas, ChatDelta::Content(self.blank + &held)),
            Stage::Reasoning => {
                let text = self.line_ends.push(&held) + &self.line_ends.finish();
                append(&mut deltas, ChatDelta::Reasoning(text));
            }
            Stage::Content | Stage::Draft(_) | Stage::ToolCall(_) => {
                self.give_content(&held, &mut deltas);
                append(&mut deltas, ChatDelta::Content(self.line_ends.finish()));
            }
        }
        deltas
    }

    fn begin_reasoning(&mut self) {
        self.stage = Stage::Reasoning;
        let start_tag = (self.tool_calls == ToolCalls::On).then_some(START_TAG);
        self.tags = Literals::new([THINK_END].into_iter().chain(start_tag));
    }

    fn begin_content(&mut self) {
        self.stage = Stage::Content;
        let tags: &[&str] = match self.tool_calls {
            ToolCalls::Off => &[],
            ToolCalls::On => &[START_TAG, END_TAG],
        };
        self.tags = Literals::new(tags.iter().copied());
    }

    fn read(&mut self, mut text: &str, deltas: &mut Vec<ChatDelta>) {
        while !text.is_empty() {
            let num_read = match &mut self.stage {
                Stage::Start => self.read_start(text, deltas),
                Stage::Reasoning => self.read_reasoning(text, deltas),
                Stage::Draft(_) => self.read_draft(text, deltas),
                Stage::Content => self.read_content(text, deltas),
                Stage::ToolCall(call) => match call.push(text, deltas) {
                    None => text.len(),
                    Some(end) => {
                        let ended = call.finish(false, deltas);
                        self.end_tool_call(ended, deltas);
                        end
                    }
                },
            };
            text = &text[num_read..];
        }
    }

    fn read_start(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) -> usize {
        let held = self.tags.held().to_owned();
        let mut released = String::new();
        let found = self.tags.scan(text, &mut released);
        if !released.trim_start().is_empty() {
            // It was content all along: that is read again, and what it begins with first.
            self.begin_content();
            let begin = std::mem::take(&mut self.blank) + &held;
            self.read(&begin, deltas);
            return 0;
        }
        self.blank += &released;
        let Some(found) = found else { return text.len() };
        self.begin_reasoning();
        self.line_ends = LineEnds::after_tag();
        found.end
    }

    fn read_reasoning(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) -> usize {
        let mut released = String::new();
        let found = self.tags.scan(text, &mut released);
        self.give_reasoning(&released, deltas);
        let Some(found) = found else { return text.len() };
        if &*found.literal == START_TAG {
            self.begin_draft();
        } else {
            self.end_reasoning();
        }
        found.end
    }

    fn end_reasoning(&mut self) {
        self.begin_content();
        self.line_ends = LineEnds::after_tag();
    }

    fn begin_draft(&mut self) {
        let call = Some(ToolCallParser::new(0));
        self.stage = Stage::Draft(Draft { text: String::new(), call });
        self.tags = Literals::new([THINK_END]);
    }

    fn read_draft(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) -> usize {
        let Stage::Draft(draft) = &mut self.stage else { return 0 };
        let mut end = None;
        if let Some(call) = &mut draft.call {
            end = call.push(text, &mut Vec::new());
            if call.has_name() {
                (draft.call, end) = (None, None);
            }
        }
        let mut released = String::new();
        let num_read = end.unwrap_or(text.len());
        let found = self.tags.scan(&text[..num_read], &mut released);
        draft.text += &released;
        if found.is_none() && end.is_none() {
            return num_read;
        }
        let said = START_TAG.to_owned() + &draft.text;
        if let Some(found) = found {
            self.give_reasoning(&said, deltas);
            self.end_reasoning();
            return found.end;
        }
        // It is no call. What may be the start of a tag may still be.
        let held = self.tags.take_held();
        if draft.text.ends_with(START_TAG) {
            self.give_reasoning(&said[..said.len() - START_TAG.len()], deltas);
            self.begin_draft();
        } else {
            self.give_reasoning(&said, deltas);
            self.begin_reasoning();
        }
        self.read(&held, deltas);
        num_read
    }

    fn read_content(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) -> usize {
        let mut released = String::new();
        let found = self.tags.scan(text, &mut released);
        self.give_content(&released, deltas);
        let Some(found) = found else { return text.len() };
        // One that closes nothing is left out.
        if &*found.literal == START_TAG {
            self.stage = Stage::ToolCall(ToolCallParser::new(self.num_tool_calls));
        }
        found.end
    }

    fn end_tool_call(&mut self, ended: Ended, deltas: &mut Vec<ChatDelta>) {
        if ended.is_call {
            self.num_tool_calls += 1;
            self.line_ends = LineEnds::after_tag();
        }
        self.give_content(&ended.text, deltas);
        self.stage = if ended.is_reopened {
            Stage::ToolCall(ToolCallParser::new(self.num_tool_calls))
        } else {
            Stage::Content
        };
    }

    fn give_reasoning(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) {
        append(deltas, ChatDelta::Reasoning(self.line_ends.push(text)));
    }

    fn give_content(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) {
        let mut said = self.line_ends.push(text);
        if self.tool_calls == ToolCalls::Off {
            // No tag follows.
            said += &self.line_ends.finish();
        }
        append(deltas, ChatDelta::Content(said));
    }
}

/// Leaves out the line ends between two tags and what is said between them.
#[derive(Debug, Clone, Default)]
struct LineEnds {
    /// Whether nothing else has come since a tag.
    is_after_tag: bool,
    /// Line ends that are left out if a tag follows.
    num_held: usize,
}

impl LineEnds {
    fn after_tag() -> Self {
        Self { is_after_tag: true, num_held: 0 }
    }

    /// Goes on by `text`: what of it, and of what was held back, is certain.
    fn push(&mut self, mut text: &str) -> String {
        if self.is_after_tag {
            text = text.trim_start_matches('\n');
            self.is_after_tag = text.is_empty();
        }
        let said = text.trim_end_matches('\n');
        let num_line_ends = text.len() - said.len();
        if said.is_empty() {
            self.num_held += num_line_ends;
            return String::new();
        }
        let held = std::mem::replace(&mut self.num_held, num_line_ends);
        "\n".repeat(held) + said
    }

    /// Ends the text without a tag: what was held back.
    fn finish(&mut self) -> String {
        "\n".repeat(std::mem::take(&mut self.num_held))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chat_delta::GeneratedToolCall;
    use crate::literals::tests::{any_cuts, pieces};

    /// The deltas of an answer that comes in pieces; those of one kind in a row are put together.
    fn run(mut parser: ChatParser, texts: &[&str]) -> Vec<ChatDelta> {
        let mut deltas = Vec::new();
        for text in texts {
            parser.push(text).into_iter().for_each(|delta| append(&mut deltas, delta));
        }
        parser.finish().into_iter().for_each(|delta| append(&mut deltas, delta));
        deltas
    }

    fn answer(reasoning_content: &str, content: &str, tool_calls: &[(&str, &str)]) -> ChatAnswer {
        let call = |&(name, arguments): &(&str, &str)| GeneratedToolCall {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        };
        ChatAnswer {
            reasoning_content: reasoning_content.to_owned(),
            content: content.to_owned(),
            tool_calls: tool_calls.iter().map(call).collect(),
        }
    }

    #[test]
    fn reasoning_is_told_from_content() {
        let check = |start: Reasoning, text: &str, reasoning: &str, content: &str| {
            let found = ChatParser::parse(text, start, ToolCalls::Off);
            assert_eq!(found, answer(reasoning, content, &[]), "{start:?} {text:?}");
        };
        let thought = "<think>\nHm.\n\nYes.\n</think>\n\nHello\n\nyou\n";
        check(Reasoning::Optional, thought, "Hm.\n\nYes.", "Hello\n\nyou\n");
        check(Reasoning::Off, thought, "", thought);
        check(Reasoning::Opened, &thought[7..], "Hm.\n\nYes.", "Hello\n\nyou\n");
        check(Reasoning::Opened, thought, "<think>\nHm.\n\nYes.", "Hello\n\nyou\n");
        check(Reasoning::Optional, " \n<think>a</think>b", "a", "b");
        check(Reasoning::Optional, "<think>\n\n</think>\n\nb", "", "b");
        check(Reasoning::Optional, "\n Hello <think>a</think>", "", "\n Hello <think>a</think>");
        check(Reasoning::Optional, "a</think>b", "", "a</think>b");
        check(Reasoning::Optional, "<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d");
        // Answers that are cut off.
        check(Reasoning::Optional, " \n<thi", "", " \n<thi");
        check(Reasoning::Optional, "<think>\nHm.\n</thi", "Hm.\n</thi", "");
        check(Reasoning::Opened, "Hm.\n", "Hm.\n", "");
        check(Reasoning::Opened, "a</think>\n", "a", "");
    }

    const F: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
    const G: &str = "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

    #[test]
    fn calls_are_told_from_content() {
        let check = |text: &str, content: &str, tool_calls: &[(&str, &str)]| {
            let found = ChatParser::parse(text, Reasoning::Optional, ToolCalls::On);
            assert_eq!(found, answer("", content, tool_calls), "{text}");
            let found = ChatParser::parse(text, Reasoning::Optional, ToolCalls::Off);
            assert_eq!(found, answer("", text, &[]), "{text}");
        };
        let (f, g) = (("f", "{\"x\": 1}"), ("g", "{}"));
        check(F, "", &[f]);
        check(&format!("Look:\n\n{F}\n"), "Look:", &[f]);
        check(&format!("Two.\n{F}\n{G}"), "Two.", &[f, g]);
        check(&format!("{F} and {G} done"), " and  done", &[f, g]);
        // Closing tags that are missing, or that close nothing.
        let unclosed = F.replace("</tool_call>", "");
        check(&format!("{unclosed}{G}"), "", &[f, g]);
        check(&format!("{unclosed}{G}{unclosed}Done.</tool_call>\n"), "Done.\n", &[f, g, f]);
        check(&format!("{F}\n</tool_call>\n"), "", &[f]);
        check(
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n{\"name\": \"g\"}</tool_call>",
            "",
            &[f, g],
        );
        // Tags are no content, whatever is between them.
        check("Say <tool_call>.\n", "Say .\n", &[]);
        check(&format!("<tool_call>\n{F}"), "", &[f]);
        check("a\n<tool_call>\nf(1)\n</tool_call>", "a\nf(1)\n", &[]);
        check(
            &format!("No\n<tool_call>\n{{\"name\": f}}\n</tool_call>\n{G}\n"),
            "No\n{\"name\": f}",
            &[g],
        );
        check("a\n\n<tool_call>\n{\"na", "a\n\n{\"na", &[]);
        // Their starts are, if the answer ends with them.
        check("a\n<tool_", "a\n<tool_", &[]);
        check("a <", "a <", &[]);
    }

    #[test]
    fn calls_follow_reasoning() {
        let text = format!("<think>\nI {F}\n</think>\n\nNow.\n{G}\n{F}");
        let parser = ChatParser::new(Reasoning::Optional, ToolCalls::On);
        assert_eq!(
            run(parser, &[&text]),
            [
                ChatDelta::Reasoning(format!("I {F}")),
                ChatDelta::Content("Now.".to_owned()),
                ChatDelta::ToolCallName { index: 0, name: "g".to_owned() },
                ChatDelta::ToolCallArguments { index: 0, arguments: "{}".to_owned() },
                ChatDelta::ToolCallName { index: 1, name: "f".to_owned() },
                ChatDelta::ToolCallArguments { index: 1, arguments: "{\"x\": 1}".to_owned() },
            ]
        );
    }

    #[test]
    fn a_call_ends_reasoning_that_is_never_closed() {
        let check = |text: &str, expected: ChatAnswer| {
            let found = ChatParser::parse(text, Reasoning::Opened, ToolCalls::On);
            assert_eq!(found, expected, "{text}");
        };
        let f = ("f", "{\"x\": 1}");
        check(&format!("Hm.\n{F}\n"), answer("Hm.", "", &[f]));
        check(&format!("Hm.\n{F}\n{F}\nSo </thin"), answer("Hm.", "So </thin", &[f, f]));
        check(&format!("Hm.\n<tool_call>{F}"), answer("Hm.\n<tool_call>", "", &[f]));
        // What is only said is no call.
        for said in
            ["a <tool_call> tag", "<tool_call>{...}</tool_call>.", "<tool_call>\n</tool_call>"]
        {
            check(said, answer(said, "", &[]));
            check(&format!("{said}</think>a"), answer(said, "a", &[]));
            check(&format!("{said}</th"), answer(&format!("{said}</th"), "", &[]));
            check(&format!("{said}\n{F}"), answer(said, "", &[f]));
        }
        check("Hm <tool_call></think>a", answer("Hm <tool_call>", "a", &[]));
        check("Hm <tool_call>{\"a</think>b", answer("Hm <tool_call>{\"a", "b", &[]));
        let found = ChatParser::parse(&format!("Hm.\n{F}"), Reasoning::Opened, ToolCalls::Off);
        assert_eq!(found, answer(&format!("Hm.\n{F}"), "", &[]));
    }

    #[test]
    fn what_is_cut_leaves_out_what_is_not_certain() {
        let check = |text: &str, reasoning: Reasoning, expected: ChatAnswer| {
            let mut parser = ChatParser::new(reasoning, ToolCalls::On);
            let mut found = ChatAnswer::default();
            found.extend(parser.push(text));
            found.extend(parser.cut());
            assert_eq!(found, expected, "{text}");
        };
        check("\n<thi", Reasoning::Optional, answer("", "", &[]));
        check("Hm.\n</th", Reasoning::Opened, answer("Hm.", "", &[]));
        check("a\n<tool_", Reasoning::Off, answer("", "a", &[]));
        check("a\n<tool_call>\n{\"name\": \"f", Reasoning::Off, answer("", "a", &[]));
        check("a\n<tool_call>\n{\"name\": \"f\"", Reasoning::Off, answer("", "a", &[("f", "")]));
        check("Hm.\n<tool_call>\n{\"na", Reasoning::Opened, answer("Hm.", "", &[]));
        check(&F[..F.len() - 18], Reasoning::Opened, answer("", "", &[("f", "{\"x\"")]));
    }

    #[test]
    fn deltas_come_as_soon_as_they_are_certain() {
        let mut parser = ChatParser::new(Reasoning::Opened, ToolCalls::On);
        let mut push = |text: &str| parser.push(text);
        let name = |name: &str| ChatDelta::ToolCallName { index: 0, name: name.to_owned() };
        let arguments =
            |text: &str| ChatDelta::ToolCallArguments { index: 0, arguments: text.to_owned() };
        assert_eq!(push("\nHm <"), [ChatDelta::Reasoning("Hm ".to_owned())]);
        assert_eq!(push("3\n"), [ChatDelta::Reasoning("<3".to_owned())]);
        assert_eq!(push("</think>"), []);
        assert_eq!(push("\n\nSo\n"), [ChatDelta::Content("So".to_owned())]);
        assert_eq!(push("<tool_call>"), []);
        assert_eq!(push("\n{\"name\": \"f\", \"arguments\":"), [name("f")]);
        assert_eq!(push(" {"), [arguments("{")]);
        assert_eq!(push("\"x\": \"</tool"), [arguments("\"x\": \"</tool")]);
        assert_eq!(push("\""), [arguments("\"")]);
        assert_eq!(push("}}"), [arguments("}")]);
        assert_eq!(push("\n</tool_call>"), []);
        assert_eq!(push("\n."), [ChatDelta::Content(".".to_owned())]);
        // Without tools no tag can follow what is said.
        let mut parser = ChatParser::new(Reasoning::Off, ToolCalls::Off);
        assert_eq!(parser.push("a\n<tool"), [ChatDelta::Content("a\n<tool".to_owned())]);
    }

    fn any_reasoning() -> impl Strategy<Value = Reasoning> {
        prop_oneof![Just(Reasoning::Off), Just(Reasoning::Optional), Just(Reasoning::Opened)]
    }

    fn any_tool_calls() -> impl Strategy<Value = ToolCalls> {
        prop_oneof![Just(ToolCalls::Off), Just(ToolCalls::On)]
    }

    /// Text made of what the parser looks for, whole and in parts. The digits are what must not be lost; members that no call
    /// has are.
    fn any_text(has_members: bool) -> impl Strategy<Value = String> {
        let members: &[&str] = if has_members { &[":", "\"1\": \"2\""] } else { &[] };
        let fragment = prop_oneof![
            prop::sample::select(
                [
                    members,
                    &[
                        "<think>",
                        "</think>",
                        "<tool_call>",
                        "</tool_call>",
                        "<tool",
                        "_call>",
                        "</",
                        "<",
                        ">",
                        "\n",
                        " ",
                        "{",
                        "}",
                        "[",
                        "]",
                        "\"",
                        "\\",
                        ",",
                        "{\"name\": \"",
                        "\", \"arguments\": {",
                        "}}",
                        "é🤖",
                        "null",
                        "<tool_call>\n{\"name\": \"",
                        "}}\n</tool_call>",
                        F,
                        G,
                    ]
                ]
                .concat()
            )
            .prop_map(str::to_owned),
            "[0-9]{1,3}",
        ];
        prop::collection::vec(fragment, 0..24).prop_map(|fragments| fragments.concat())
    }

    fn digits(text: &str) -> Vec<char> {
        let mut digits: Vec<_> = text.chars().filter(char::is_ascii_digit).collect();
        digits.sort_unstable();
        digits
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn pieces_make_up_the_whole(
            text in any_text(true),
            reasoning in any_reasoning(),
            tool_calls in any_tool_calls(),
            cuts in any_cuts(),
        ) {
            let parser = ChatParser::new(reasoning, tool_calls);
            let whole = run(parser.clone(), &[&text]);
            prop_assert_eq!(&run(parser.clone(), &pieces(&text, &cuts)), &whole);
            let chars: Vec<_> = text.chars().map(String::from).collect();
            let chars: Vec<_> = chars.iter().map(String::as_str).collect();
            prop_assert_eq!(run(parser, &chars), whole);
        }

        #[test]
        fn nothing_is_lost(
            text in any_text(false),
            reasoning in any_reasoning(),
            tool_calls in any_tool_calls(),
        ) {
            let found = ChatParser::parse(&text, reasoning, tool_calls);
            let mut all = found.reasoning_content + &found.content;
            if tool_calls == ToolCalls::Off {
                let rest = |text: &str| text.replace("<think>", "").replace("</think>", "").replace(['\n', ' '], "");
                prop_assert_eq!(rest(&all), rest(&text));
            }
            for call in found.tool_calls {
                all += &call.name;
                all += &call.arguments;
            }
            prop_assert_eq!(digits(&all), digits(&text));
        }

        #[test]
        fn calls_come_out_as_they_were_written(
            parts in prop::collection::vec(("[a-z <>é\n]{0,6}", prop::option::of(("[a-zé\"\\\\]{0,4}", "[a-z<>/_{}\"\\\\\n]{0,12}"))), 0..5),
            cuts in any_cuts(),
        ) {
            let (text, expected) = with_calls(&parts);
            let mut found = ChatAnswer::default();
            found.extend(run(ChatParser::new(Reasoning::Off, ToolCalls::On), &pieces(&text, &cuts)));
            prop_assert_eq!(&found.tool_calls, &expected);
            let said: String = parts.iter().map(|(content, _)| content.as_str()).collect();
            prop_assert_eq!(found.content.replace('\n', ""), said.replace('\n', ""));
        }

        #[test]
        fn a_cut_answer_is_the_start_of_the_whole_one(
            reasoning in prop::option::of("[a-z <>é\n]{0,9}"),
            parts in prop::collection::vec(("[a-z <>é\n]{0,6}", prop::option::of(("[a-zé\"\\\\]{0,4}", "[a-z<>/_{}\"\\\\\n]{0,12}"))), 0..4),
        ) {
            let (said, _) = with_calls(&parts);
            let thought = reasoning.map(|text| format!("<think>\n{text}\n</think>\n\n"));
            let text = thought.unwrap_or_default() + &said;
            let whole = ChatParser::parse(&text, Reasoning::Optional, ToolCalls::On);
            let mut parser = ChatParser::new(Reasoning::Optional, ToolCalls::On);
            let mut streamed = ChatAnswer::default();
            for (start, char) in text.char_indices() {
                let mut cut = streamed.clone();
                cut.extend(parser.clone().cut());
                let mut cut_whole = ChatAnswer::default();
                let mut own = ChatParser::new(Reasoning::Optional, ToolCalls::On);
                cut_whole.extend(own.push(&text[..start]));
                cut_whole.extend(own.cut());
                prop_assert_eq!(&cut_whole, &cut);
                prop_assert!(whole.content.starts_with(&cut.content), "{:?}", cut);
                prop_assert!(whole.reasoning_content.starts_with(&cut.reasoning_content), "{:?}", cut);
                prop_assert!(cut.tool_calls.len() <= whole.tool_calls.len());
                for (call, whole) in cut.tool_calls.iter().zip(&whole.tool_calls) {
                    prop_assert_eq!(&call.name, &whole.name);
                    prop_assert!(whole.arguments.starts_with(&call.arguments), "{:?}", cut);
                }
                streamed.extend(parser.push(char.encode_utf8(&mut [0; 4])));
            }
        }

        #[test]
        fn tags_of_calls_are_never_content(text in any_text(true), is_cut: bool) {
            let mut parser = ChatParser::new(Reasoning::Off, ToolCalls::On);
            let mut deltas = parser.push(&text);
            deltas.extend(if is_cut { parser.cut() } else { parser.finish() });
            // Two halves with a tag between them may make one.
            let halves = text.replace(START_TAG, "").replace(END_TAG, "").replace('\n', "");
            prop_assume!(!halves.contains(START_TAG) && !halves.contains(END_TAG));
            for delta in deltas {
                if let ChatDelta::Content(text) = delta {
                    prop_assert!(!text.contains(START_TAG) && !text.contains(END_TAG), "{}", text);
                }
            }
        }
    }

    /// A text of contents and calls, and the calls.
    fn with_calls(
        parts: &[(String, Option<(String, String)>)],
    ) -> (String, Vec<GeneratedToolCall>) {
        let mut text = String::new();
        let mut calls = Vec::new();
        for (content, call) in parts {
            text += content;
            if let Some((name, value)) = call {
                let arguments =
                    serde_json::json!({ "value": value, "tag": "</tool_call>" }).to_string();
                let name_json = serde_json::Value::from(name.as_str());
                let json = format!("{{\"name\": {name_json}, \"arguments\": {arguments}}}");
                text += &["\n<tool_call>\n", &json, "\n</tool_call>\n"].concat();
                calls.push(GeneratedToolCall { name: name.clone(), arguments });
            }
        }
        (text, calls)
    }
}
