//! What can go wrong between a conversation, its text, and token ids.

use std::io;
use std::path::PathBuf;

use serde_json::Value;

use crate::big_integer::big_integer;

/// What the reason says at most, in characters, why a grammar can't be used.
const MAX_REASON: usize = 600;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a file was refused, or a text could not be processed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file was read, but what is in it was refused.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was refused: one of the variants below.
        source: Box<Error>,
    },
    /// A folder has no tokenizer.
    #[error("{} has neither tokenizer.json nor vocab.json with merges.txt, and text needs one of them", dir.display())]
    NoTokenizer {
        /// The folder.
        dir: PathBuf,
    },
    /// A line of `merges.txt` is no merge of tokens.
    #[error("line {line}: expected two tokens of vocab.json that make a third, found {found:?}")]
    Merge {
        /// Counted from 1.
        line: usize,
        /// What is there.
        found: String,
    },
    /// The bytes are not a `tokenizer.json`.
    #[error("not a tokenizer; download it again if it came from a hub")]
    Tokenizer {
        /// Where the content ends to make sense.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tokenizer turns tokens into text in a way that this crate does not follow.
    #[error("field `decoder`: {found} is not supported, only ByteLevel")]
    Decoder {
        /// The decoder's type.
        found: String,
    },
    /// The tokenizer failed on a text.
    #[error("cannot split the text into tokens")]
    Encode {
        /// What the tokenizer said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is not a JSON object.
    #[error("not a JSON object; download it again if it came from a hub")]
    Json {
        /// Where the JSON ends to make sense.
        source: serde_json::Error,
    },
    /// A field, of a file or a request, holds something else than it should.
    #[error("field `{field}`: expected {expected}, found {found}")]
    Field {
        /// Which one, with the path to it: `tool_calls[0].function.name`.
        field: String,
        /// What would have been right.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A chat template is not valid Jinja.
    #[error("the chat template does not compile")]
    Compile {
        /// What is wrong with it, and in which line.
        source: minijinja::Error,
    },
    /// The chat template refuses a conversation, in its own words.
    #[error("the chat template refuses the conversation: {message}")]
    Refused {
        /// What the template said.
        message: String,
    },
    /// The chat template failed on a conversation.
    #[error("the chat template fails on the conversation")]
    Render {
        /// What failed, and in which line of the template.
        source: minijinja::Error,
    },
    /// What a text is to be held to can't be compiled, or is too complex to follow.
    #[error("the grammar can't be used: {reason}")]
    Grammar {
        /// What is wrong with it.
        reason: String,
    },
    /// Others take all the time that there is to compile grammars.
    #[error("too many other grammars are being compiled: try again later")]
    Busy,
    /// The tokens of a tokenizer can't be searched for those that a grammar allows.
    #[error("the tokens can't be held to a grammar: {reason}")]
    Vocabulary {
        /// What is wrong with them.
        reason: String,
    },
    /// The system refuses the threads that grammars are compiled on.
    #[error("the system does not start the threads that compile grammars")]
    Spawn {
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    /// A field that holds something else than it should. What it holds is told without repeating long texts, which may be
    /// private.
    pub fn unexpected(field: impl Into<String>, expected: &'static str, found: &Value) -> Self {
        const LONGEST: usize = 32;
        let found = match found {
            _ if big_integer(found).is_some() => "an integer beyond 64 bits".to_owned(),
            Value::Null => "nothing".to_owned(),
            Value::Bool(is_on) => is_on.to_string(),
            Value::Number(number) => match number.to_string() {
                long if long.len() > LONGEST => "a longer number".to_owned(),
                short => short,
            },
            Value::String(text) if text.len() > LONGEST => "a longer string".to_owned(),
            Value::String(_) => found.to_string(),
            Value::Array(items) if items.is_empty() => "an empty list".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
        };
        Self::Field { field: field.into(), expected, found }
    }

    /// What a reason repeats of what was asked is cut in the middle.
    pub(crate) fn grammar(reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        let num_chars = reason.chars().count();
        if num_chars > MAX_REASON {
            let half = MAX_REASON / 2;
            let head: String = reason.chars().take(half).collect();
            let tail: String = reason.chars().skip(num_chars - half).collect();
            reason = format!("{head} … {tail}");
        }
        Self::Grammar { reason }
    }

    /// Puts the path of the file it is about into an error.
    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Self::File { path: path.into(), source: Box::new(self) }
    }
}
