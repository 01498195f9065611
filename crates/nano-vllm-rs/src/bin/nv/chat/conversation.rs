//! What was said, and how the model reads it.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use nano_vllm_rs::text::{ChatAnswer, ChatMessage, ChatOptions, ChatTemplate};
use tempfile::NamedTempFile;

/// What the model is to go on with.
#[derive(Debug, PartialEq)]
pub(super) struct Prompt {
    pub(super) text: String,
    /// Whether the tokenizer adds its own beginning, which templates write themselves.
    pub(super) add_special_tokens: bool,
}

pub(super) struct Conversation {
    template: Option<ChatTemplate>,
    system: Option<String>,
    /// Without the system prompt.
    turns: Vec<ChatMessage>,
}

impl Conversation {
    pub(super) fn new(template: Option<ChatTemplate>, system: Option<String>) -> Self {
        Self { template, system: system.filter(|text| !text.is_empty()), turns: Vec::new() }
    }

    /// Forgets what was said, but not the system prompt.
    pub(super) fn reset(&mut self) {
        self.turns.clear();
    }

    /// Says how the model is to behave from now on; returns whether anything says so.
    pub(super) fn set_system(&mut self, text: Option<String>) -> bool {
        self.system = text;
        self.system.is_some()
    }

    pub(super) fn ask(&mut self, text: &str) {
        self.turns.push(ChatMessage::new("user", text));
    }

    /// Forgets the last message.
    pub(super) fn take_back(&mut self) {
        self.turns.pop();
    }

    /// Takes the answer to the last message. If there is none, the message is forgotten too.
    pub(super) fn take_answer(&mut self, answer: ChatAnswer) {
        let ChatAnswer { reasoning_content, content, .. } = answer;
        if reasoning_content.is_empty() && content.is_empty() {
            return self.take_back();
        }
        let reasoning_content = Some(reasoning_content).filter(|text| !text.is_empty());
        let message = ChatMessage::new("assistant", content);
        self.turns.push(ChatMessage { reasoning_content, ..message });
    }

    fn messages(&self) -> Vec<ChatMessage> {
        let system = self.system.iter().map(|text| ChatMessage::new("system", text));
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// The text that the model is to go on with: by the model's chat template or, without one, what was said, each message
    /// in a line of its own that the answer goes on with.
    pub(super) fn prompt(&self, enable_thinking: Option<bool>) -> Result<Prompt> {
        let messages = self.messages();
        let Some(template) = &self.template else {
            let mut text = String::new();
            for ChatMessage { role, content, .. } in messages {
                // An answer goes on with the message itself, and was computed so.
                if !text.is_empty() && role != "assistant" {
                    text.push('\n');
                }
                text.push_str(&content);
            }
            return Ok(Prompt { text, add_special_tokens: true });
        };
        let options =
            ChatOptions { add_generation_prompt: true, enable_thinking, ..ChatOptions::default() };
        let text = template.render(&messages, &options)?;
        Ok(Prompt { text, add_special_tokens: false })
    }

    /// Writes all messages to a new file, as the OpenAI API has them: the whole file or none.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let dir = match path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        let context = || format!("cannot write {}", path.display());
        let mut file = NamedTempFile::new_in(dir).with_context(context)?;
        serde_json::to_writer_pretty(&mut file, &self.messages()).with_context(context)?;
        writeln!(file).with_context(context)?;
        file.persist_noclobber(path).map_err(|error| error.error).with_context(context)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn answer(reasoning_content: &str, content: &str) -> ChatAnswer {
        ChatAnswer {
            reasoning_content: reasoning_content.to_owned(),
            content: content.to_owned(),
            tool_calls: Vec::new(),
        }
    }

    #[test]
    fn what_was_said_is_kept_until_it_is_taken_back() {
        let mut conversation = Conversation::new(None, Some("Be brief.".to_owned()));
        let check = |conversation: &Conversation, expected| {
            let expected = Prompt { text: String::from(expected), add_special_tokens: true };
            assert_eq!(conversation.prompt(None).unwrap(), expected);
        };
        conversation.ask("a");
        check(&conversation, "Be brief.\na");
        conversation.take_answer(answer("Hm", "b"));
        conversation.ask("c");
        check(&conversation, "Be brief.\nab\nc");
        conversation.take_answer(answer("", ""));
        check(&conversation, "Be brief.\nab");
        conversation.ask("d");
        conversation.take_back();
        check(&conversation, "Be brief.\nab");
        assert!(!conversation.set_system(None));
        check(&conversation, "ab");
        assert!(conversation.set_system(Some("Be kind.".to_owned())));
        conversation.reset();
        check(&conversation, "Be kind.");
    }

    #[test]
    fn the_template_sees_reasoning_and_whether_to_think() {
        let source = "{% for message in messages %}{{ message.role }}:{{ message.reasoning_content }}:\
                      {{ message.content }}|{% endfor %}{{ add_generation_prompt }} {{ enable_thinking }}";
        let mut conversation = Conversation::new(Some(ChatTemplate::new(source).unwrap()), None);
        conversation.ask("a");
        conversation.take_answer(answer("Hm", "b"));
        let prompt = conversation.prompt(Some(false)).unwrap();
        let text = "user::a|assistant:Hm:b|True False".to_owned();
        assert_eq!(prompt, Prompt { text, add_special_tokens: false });
    }

    #[test]
    fn a_saved_conversation_is_that_of_the_openai_api() {
        let mut conversation = Conversation::new(None, Some("Be brief.".to_owned()));
        conversation.ask("a\n\"b\"");
        conversation.take_answer(answer("Hm", "c"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("said.json");
        conversation.save(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let messages: Vec<ChatMessage> = serde_json::from_str(&text).unwrap();
        assert_eq!(messages, conversation.messages());

        // Nothing is written over, and nothing is left behind.
        conversation.reset();
        let error = conversation.save(&path).unwrap_err();
        assert!(error.to_string().ends_with("said.json"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(conversation.save(&dir.path().join("no/such/said.json")).is_err());
    }
}
