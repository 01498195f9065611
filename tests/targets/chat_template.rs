//! Chat templates: as `tokenizer_config.json` holds them, or as `chat_template.jinja`.

use nv_text::{ChatMessage, ChatOptions, ChatTemplate};
use serde_json::json;

use super::scratch;

/// Bytes that begin with `{"` are a `tokenizer_config.json`, others a template. A template that compiles renders to a text
/// or an error.
pub fn chat_template(data: &[u8]) {
    const CONFIG: &str = "tokenizer_config.json";
    const TEMPLATE: &str = "chat_template.jinja";
    let (name, other) =
        if data.starts_with(b"{\"") { (CONFIG, TEMPLATE) } else { (TEMPLATE, CONFIG) };
    let path = scratch::write(name, data);
    let _ = std::fs::remove_file(scratch::dir().join(other));
    let template = match ChatTemplate::from_dir(scratch::dir()) {
        Ok(Some(template)) => template,
        Ok(None) => return,
        Err(error) => return scratch::assert_names(&error, &path),
    };
    let mut messages =
        vec![ChatMessage::new("system", "Be brief."), ChatMessage::new("user", "Hi <é> {{ 1 }}")];
    let tools = vec![
        json!({"type": "function", "function": {"name": "f", "parameters": {"x": [1, null]}}}),
    ];
    let plain = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let with_tools = ChatOptions { enable_thinking: Some(false), tools, ..ChatOptions::default() };
    // Only that it ends, and what with, if not with a text.
    let ends = |messages: &[ChatMessage], options: &ChatOptions| {
        if let Err(error) = template.render(messages, options) {
            assert!(!error.to_string().is_empty());
        }
    };
    ends(&messages, &plain);
    messages.push(ChatMessage {
        reasoning_content: Some("Hm.".to_owned()),
        ..ChatMessage::new("assistant", "<think>\nHm.\n</think>\n\nHello!")
    });
    messages.push(ChatMessage::new("tool", "{\"x\": 1}"));
    ends(&messages, &with_tools);
}
