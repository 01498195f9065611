//! What an assistant's answer is made of, in pieces and as a whole.
//!
//! It knows nothing of the text that the answer came in.

/// A piece of an assistant's answer; pieces of one kind follow on from each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatDelta {
    /// What the assistant thinks before it speaks.
    Reasoning(String),
    /// What it says.
    Content(String),
    /// It calls a tool: the name, which comes whole and before the arguments.
    ToolCallName {
        /// Which call of the answer, from 0.
        index: usize,
        /// The tool.
        name: String,
    },
    /// The arguments of a call, which are one JSON object.
    ToolCallArguments {
        /// Which call of the answer, from 0.
        index: usize,
        /// A piece of the JSON, as the model wrote it.
        arguments: String,
    },
}

/// A tool call in an assistant's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GeneratedToolCall {
    /// The tool.
    pub name: String,
    /// A JSON object, as the model wrote it.
    pub arguments: String,
}

/// An assistant's answer: deltas put together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatAnswer {
    /// What the assistant thought before it spoke.
    pub reasoning_content: String,
    /// What it says.
    pub content: String,
    /// The tools that it calls.
    pub tool_calls: Vec<GeneratedToolCall>,
}

impl Extend<ChatDelta> for ChatAnswer {
    fn extend<I: IntoIterator<Item = ChatDelta>>(&mut self, deltas: I) {
        for delta in deltas {
            match delta {
                ChatDelta::Reasoning(text) => self.reasoning_content += &text,
                ChatDelta::Content(text) => self.content += &text,
                ChatDelta::ToolCallName { name, .. } => {
                    self.tool_calls.push(GeneratedToolCall { name, arguments: String::new() });
                }
                ChatDelta::ToolCallArguments { arguments, .. } => {
                    // A call's name comes before its arguments, and no call begins before the last one ends.
                    if let Some(call) = self.tool_calls.last_mut() {
                        call.arguments += &arguments;
                    }
                }
            }
        }
    }
}

/// Appends a delta: to the last one if it goes on with it, and not at all if it is empty.
pub(crate) fn append(deltas: &mut Vec<ChatDelta>, delta: ChatDelta) {
    let (text, last) = match (&delta, deltas.last_mut()) {
        (ChatDelta::ToolCallName { .. }, _) => return deltas.push(delta),
        (ChatDelta::Reasoning(text), Some(ChatDelta::Reasoning(last)))
        | (ChatDelta::Content(text), Some(ChatDelta::Content(last)))
        | (
            ChatDelta::ToolCallArguments { arguments: text, .. },
            Some(ChatDelta::ToolCallArguments { arguments: last, .. }),
        ) => (text, Some(last)),
        (
            ChatDelta::Reasoning(text)
            | ChatDelta::Content(text)
            | ChatDelta::ToolCallArguments { arguments: text, .. },
            _,
        ) => (text, None),
    };
    match last {
        Some(last) => last.push_str(text),
        None if text.is_empty() => {}
        None => deltas.push(delta),
    }
}
