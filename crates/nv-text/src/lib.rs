//! Text in and out of a Qwen3 checkpoint.
//!
//! [`Tokenizer`] turns text into token ids and back, as `tokenizer.json` has it. [`ChatTemplate`] turns a
//! conversation into the text that the model continues. [`TokenStream`] turns the ids that a model generates into
//! text as they come.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use nv_text::{ChatMessage, ChatOptions, ChatTemplate, Tokenizer};
//!
//! let dir = Path::new("Qwen3-0.6B");
//! let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json"))?;
//! let template = ChatTemplate::load(Some(&dir.join("tokenizer_config.json")), None)?
//!     .expect("Qwen3 has a chat template");
//!
//! let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
//! let prompt = template.render(&[ChatMessage::new("user", "Hello!")], &options)?;
//! let ids = tokenizer.encode(&prompt, false)?;
//! assert_eq!(tokenizer.decode(&ids, false), prompt);
//! # Ok::<(), nv_text::Error>(())
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod chat_template;
mod error;
mod json;
mod stream;
mod tokenizer;

pub use chat_template::{ChatMessage, ChatOptions, ChatTemplate};
pub use error::{Error, Result};
pub use stream::TokenStream;
pub use tokenizer::Tokenizer;
