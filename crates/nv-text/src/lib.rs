//! Text in and out of a Qwen3 checkpoint.
//!
//! [`Tokenizer`] turns text into token ids and back, as the files in a model's folder have it. [`ChatTemplate`] turns a
//! conversation, [`ChatMessage`]s as the OpenAI API has them, into the text that the model continues. What the model
//! generates goes the other way as it comes: [`TokenStream`] turns ids into text, [`StopStrings`] ends it,
//! [`ChatParser`] takes it apart into reasoning, content and tool calls.
//! [`GrammarCompiler`] says which tokens keep a text to a [`Grammar`], such as the JSON of a schema.
//! [`Fields`] reads messages, and all else of a request in JSON, so that errors name the field.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use nv_text::{
//!     ChatDelta, ChatMessage, ChatOptions, ChatParser, ChatTemplate, Reasoning, StopStrings, Tokenizer, ToolCalls,
//! };
//!
//! # fn generate(ids: &[u32]) -> impl Iterator<Item = u32> { ids.to_vec().into_iter() }
//! let dir = Path::new("Qwen3-0.6B");
//! let tokenizer = Tokenizer::from_dir(dir)?;
//! let template = ChatTemplate::from_dir(dir)?.expect("Qwen3 has a chat template");
//!
//! let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
//! let prompt = template.render(&[ChatMessage::new("user", "Hello!")], &options)?;
//! let ids = tokenizer.encode(&prompt, false)?;
//!
//! let mut stream = tokenizer.stream(true);
//! let reasoning = Reasoning::after_prompt(&prompt);
//! let mut stop = StopStrings::new(&["END"], false)?.after_reasoning(reasoning);
//! let mut parser = ChatParser::new(reasoning, ToolCalls::Off);
//! let mut content = String::new();
//! let mut show = |deltas: Vec<ChatDelta>| {
//!     for delta in deltas {
//!         if let ChatDelta::Content(text) = delta {
//!             content += &text;
//!         }
//!     }
//! };
//! for id in generate(&ids) {
//!     let check = stop.push(stream.push(id));
//!     show(parser.push(check.text));
//!     if check.stop_string.is_some() {
//!         break;
//!     }
//! }
//! // What was held back, from the first stage to the last.
//! show(parser.push(stop.push(&stream.finish()).text));
//! show(parser.push(stop.finish().text));
//! show(parser.finish());
//! # Ok::<(), nv_text::Error>(())
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod big_integer;
mod chat_delta;
mod chat_parser;
mod chat_template;
mod error;
mod fields;
mod grammar;
mod json;
mod literals;
mod message;
mod pre_tokenizer;
mod reasoning;
mod stop;
mod stream;
mod tokenizer;
mod tokenizer_config;
mod tool_call;
mod vocab_files;

pub use big_integer::{big_integer, json_from_str, rounded};
pub use chat_delta::{ChatAnswer, ChatDelta, GeneratedToolCall};
pub use chat_parser::{ChatParser, ToolCalls};
pub use chat_template::{ChatOptions, ChatTemplate};
pub use error::{Error, Result};
pub use fields::{Fields, FromField};
pub use grammar::{
    CompiledGrammar, FunctionSchema, Grammar, GrammarCompiler, GrammarMatcher, NextTokens,
};
pub use message::{ChatMessage, FunctionCall, ToolCall};
pub use reasoning::Reasoning;
pub use stop::{StopCheck, StopStrings};
pub use stream::TokenStream;
pub use tokenizer::Tokenizer;
