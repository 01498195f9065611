//! The text of an assistant's answer taken apart as it comes: reasoning, content, tool calls.
//!
//! It knows nothing of tokens, nor of where an answer ends.

use crate::chat_delta::{ChatAnswer, ChatDelta, append};
use crate::literals::Literals;
use crate::tool_call::{Outcome, START_TAG, ToolCallParser};

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

/// How tool calls in an answer are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ToolCalls {
    /// They are content: no tools were offered.
    #[default]
    Off,
    /// They come out when they are complete. A malformed one is content.
    Whole,
    /// They come out as they are written: the name, then the arguments in pieces. One that turns out to be malformed
    /// before its arguments begin is content. Later it stays a call: arguments that don't end hold all that comes before
    /// the closing tag, and what comes between their end and the tag is content.
    Streamed,
}

/// Takes an answer apart as its text comes: `<think>…</think>` at its beginning, then content, and in it tool calls in
/// Qwen's format, `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`.
///
/// How the text is cut into pieces makes no difference to the deltas put together, and the cost of a piece depends on
/// its own length alone. Nothing is lost but the tags, the JSON around a call's name and arguments, whitespace before
/// `<think>`, and line ends next to a tag, which the chat template puts back. Text that may still become a tag is held
/// back.
///
/// ```
/// use nv_text::{ChatDelta, ChatParser, Reasoning, ToolCalls};
///
/// let mut parser = ChatParser::new(Reasoning::Optional, ToolCalls::Streamed);
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
    /// The tag that ends the stage, unless that is a tool call.
    tag: Literals,
    /// The whitespace that the answer begins with.
    blank: String,
    line_ends: LineEnds,
}

#[derive(Debug, Clone)]
enum Stage {
    /// Nothing but whitespace has come.
    Start,
    Reasoning,
    Content,
    ToolCall(ToolCallParser),
}

impl ChatParser {
    /// Takes apart an answer that has not begun.
    pub fn new(reasoning: Reasoning, tool_calls: ToolCalls) -> Self {
        let (stage, tag) = match reasoning {
            Reasoning::Off => (Stage::Content, content_tag(tool_calls)),
            Reasoning::Optional => (Stage::Start, Literals::new([THINK_START])),
            Reasoning::Opened => (Stage::Reasoning, Literals::new([THINK_END])),
        };
        let is_after_tag = reasoning == Reasoning::Opened;
        let line_ends = LineEnds { is_after_tag, num_held: 0 };
        Self { tool_calls, num_tool_calls: 0, stage, tag, blank: String::new(), line_ends }
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

    /// Ends the answer: the deltas that were held back.
    pub fn finish(mut self) -> Vec<ChatDelta> {
        let mut deltas = Vec::new();
        let held = self.tag.held().to_owned();
        match &mut self.stage {
            Stage::Start => append(&mut deltas, ChatDelta::Content(self.blank + &held)),
            Stage::Reasoning => {
                let text = self.line_ends.push(&held) + &self.line_ends.finish();
                append(&mut deltas, ChatDelta::Reasoning(text));
            }
            Stage::Content => self.give_content(&held, &mut deltas),
            Stage::ToolCall(call) => {
                let outcome = call.finish(&mut deltas);
                self.end_tool_call(outcome, &mut deltas);
            }
        }
        append(&mut deltas, ChatDelta::Content(self.line_ends.finish()));
        deltas
    }

    fn read(&mut self, mut text: &str, deltas: &mut Vec<ChatDelta>) {
        while !text.is_empty() {
            let num_read = match &mut self.stage {
                Stage::Start => self.read_start(text, deltas),
                Stage::Reasoning => self.read_reasoning(text, deltas),
                Stage::Content => self.read_content(text, deltas),
                Stage::ToolCall(call) => match call.push(text, deltas) {
                    None => text.len(),
                    Some(end) => {
                        let outcome = call.finish(deltas);
                        self.end_tool_call(outcome, deltas);
                        end
                    }
                },
            };
            text = &text[num_read..];
        }
    }

    fn read_start(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) -> usize {
        let held = self.tag.held().to_owned();
        let mut released = String::new();
        let found = self.tag.scan(text, &mut released);
        if !released.trim_start().is_empty() {
            // It was content all along: that is read again, and what it begins with first.
            self.stage = Stage::Content;
            self.tag = content_tag(self.tool_calls);
            let begin = std::mem::take(&mut self.blank) + &held;
            self.read(&begin, deltas);
            return 0;
        }
        self.blank += &released;
        let Some(found) = found else { return text.len() };
        self.stage = Stage::Reasoning;
        self.tag = Literals::new([THINK_END]);
        self.line_ends = LineEnds::after_tag();
        found.end
    }

    fn read_reasoning(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) -> usize {
        let mut released = String::new();
        let found = self.tag.scan(text, &mut released);
        append(deltas, ChatDelta::Reasoning(self.line_ends.push(&released)));
        let Some(found) = found else { return text.len() };
        self.stage = Stage::Content;
        self.tag = content_tag(self.tool_calls);
        self.line_ends = LineEnds::after_tag();
        found.end
    }

    fn read_content(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) -> usize {
        let mut released = String::new();
        let found = self.tag.scan(text, &mut released);
        self.give_content(&released, deltas);
        let Some(found) = found else { return text.len() };
        let is_streamed = self.tool_calls == ToolCalls::Streamed;
        self.stage = Stage::ToolCall(ToolCallParser::new(self.num_tool_calls, is_streamed));
        found.end
    }

    fn end_tool_call(&mut self, outcome: Outcome, deltas: &mut Vec<ChatDelta>) {
        self.stage = Stage::Content;
        match outcome {
            Outcome::Call { leftover } => {
                self.num_tool_calls += 1;
                self.line_ends = LineEnds::after_tag();
                self.give_content(&leftover, deltas);
            }
            Outcome::Text(text) => self.give_content(&text, deltas),
        }
    }

    fn give_content(&mut self, text: &str, deltas: &mut Vec<ChatDelta>) {
        append(deltas, ChatDelta::Content(self.line_ends.push(text)));
    }
}

/// The tag that ends content: that of a tool call, if there may be any.
fn content_tag(tool_calls: ToolCalls) -> Literals {
    Literals::new((tool_calls != ToolCalls::Off).then_some(START_TAG))
}

/// Leaves out the line ends between two tags and what is said between them.
#[derive(Debug, Clone)]
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
            for mode in [ToolCalls::Whole, ToolCalls::Streamed] {
                let found = ChatParser::parse(text, Reasoning::Optional, mode);
                assert_eq!(found, answer("", content, tool_calls), "{mode:?} {text}");
            }
            let found = ChatParser::parse(text, Reasoning::Optional, ToolCalls::Off);
            assert_eq!(found, answer("", text, &[]), "{text}");
        };
        let (f, g) = (("f", "{\"x\": 1}"), ("g", "{}"));
        check(F, "", &[f]);
        check(&format!("Look:\n\n{F}\n"), "Look:", &[f]);
        check(&format!("Two.\n{F}\n{G}"), "Two.", &[f, g]);
        check(&format!("{F} and {G} done"), " and  done", &[f, g]);
        check("Say <tool_call>.\n", "Say <tool_call>.\n", &[]);
        check(&format!("<tool_call>\n{F}"), "<tool_call>", &[f]);
        check(
            &format!("No\n<tool_call>\n{{\"name\": f}}\n</tool_call>\n{G}\n"),
            "No\n<tool_call>\n{\"name\": f}\n</tool_call>",
            &[g],
        );
        check("a\n\n<tool_call>\n{\"na", "a\n\n<tool_call>\n{\"na", &[]);
        check("a\n<tool_", "a\n<tool_", &[]);
    }

    #[test]
    fn calls_follow_reasoning() {
        let text = format!("<think>\nI {F}\n</think>\n\nNow.\n{G}\n{F}");
        let parser = ChatParser::new(Reasoning::Optional, ToolCalls::Streamed);
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
    fn a_malformed_call_that_was_given_out_goes_on_as_it_began() {
        let text = format!(
            "<tool_call>{{\"name\": \"f\", \"arguments\": {{\"x\": }}}}}}</tool_call>\n{G}"
        );
        let found = ChatParser::parse(&text, Reasoning::Off, ToolCalls::Streamed);
        assert_eq!(found, answer("", "}}", &[("f", "{\"x\": }"), ("g", "{}")]));
        let found = ChatParser::parse(&text, Reasoning::Off, ToolCalls::Whole);
        assert_eq!(found, answer("", &text[..text.len() - G.len() - 1], &[("g", "{}")]));
    }

    #[test]
    fn deltas_come_as_soon_as_they_are_certain() {
        let mut parser = ChatParser::new(Reasoning::Opened, ToolCalls::Streamed);
        let mut push = |text: &str| parser.push(text);
        let name = |name: &str| ChatDelta::ToolCallName { index: 0, name: name.to_owned() };
        let arguments =
            |text: &str| ChatDelta::ToolCallArguments { index: 0, arguments: text.to_owned() };
        assert_eq!(push("\nHm <"), [ChatDelta::Reasoning("Hm ".to_owned())]);
        assert_eq!(push("3\n"), [ChatDelta::Reasoning("<3".to_owned())]);
        assert_eq!(push("</think>"), []);
        assert_eq!(push("\n\nSo\n"), [ChatDelta::Content("So".to_owned())]);
        assert_eq!(push("<tool_call>"), []);
        assert_eq!(push("\n{\"name\": \"f\", \"arguments\":"), []);
        assert_eq!(push(" {"), [name("f"), arguments("{")]);
        assert_eq!(push("\"x\": \"</tool"), [arguments("\"x\": \"</tool")]);
        assert_eq!(push("\""), [arguments("\"")]);
        assert_eq!(push("}}"), [arguments("}")]);
        assert_eq!(push("\n</tool_call>"), []);
        assert_eq!(push("\n."), [ChatDelta::Content(".".to_owned())]);
    }

    fn any_reasoning() -> impl Strategy<Value = Reasoning> {
        prop_oneof![Just(Reasoning::Off), Just(Reasoning::Optional), Just(Reasoning::Opened)]
    }

    fn any_tool_calls() -> impl Strategy<Value = ToolCalls> {
        prop_oneof![Just(ToolCalls::Off), Just(ToolCalls::Whole), Just(ToolCalls::Streamed)]
    }

    /// Text made of what the parser looks for, whole and in parts. The digits are what must not be lost.
    fn any_text() -> impl Strategy<Value = String> {
        let fragment = prop_oneof![
            prop::sample::select(vec![
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
                ":",
                ",",
                "{\"name\": \"",
                "\", \"arguments\": {",
                "}}",
                "é🤖",
                "null",
                "<tool_call>\n{\"name\": \"",
                "\"1\": \"2\"",
                "}}\n</tool_call>",
                F,
                G,
            ])
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
            text in any_text(),
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
            text in any_text(),
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
        fn calls_come_out_the_same_whole_and_streamed(
            parts in prop::collection::vec(("[a-z <>é\n]{0,6}", prop::option::of(("[a-zé\"\\\\]{0,4}", "[a-z<>/_{}\"\\\\\n]{0,12}"))), 0..5),
            cuts in any_cuts(),
        ) {
            let mut text = String::new();
            let mut expected = Vec::new();
            for (content, call) in &parts {
                text += content;
                if let Some((name, value)) = call {
                    let arguments = serde_json::json!({ "value": value, "tag": "</tool_call>" }).to_string();
                    let name_json = serde_json::Value::from(name.as_str());
                    let json = format!("{{\"name\": {name_json}, \"arguments\": {arguments}}}");
                    text += &["\n<tool_call>\n", &json, "\n</tool_call>\n"].concat();
                    expected.push(GeneratedToolCall { name: name.clone(), arguments });
                }
            }
            for tool_calls in [ToolCalls::Whole, ToolCalls::Streamed] {
                let mut found = ChatAnswer::default();
                found.extend(run(ChatParser::new(Reasoning::Off, tool_calls), &pieces(&text, &cuts)));
                prop_assert_eq!(&found.tool_calls, &expected);
                let said: String = parts.iter().map(|(content, _)| content.as_str()).collect();
                prop_assert_eq!(found.content.replace('\n', ""), said.replace('\n', ""));
            }
        }
    }
}
