//! What a model's folder says of its tokens beside `tokenizer.json`: `tokenizer_config.json`, and the older
//! `special_tokens_map.json` and `added_tokens.json`. They are put together as transformers does.
//!
//! Source: transformers `tokenization_utils_base.py`, `_from_pretrained`; `tokenization_utils_tokenizers.py`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::{Error, Result};

/// The special tokens that every tokenizer may name, in the order in which they get their ids.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What those of Qwen's tokenizers are where nothing is said.
const QWEN_DEFAULTS: [&str; 3] = ["eos_token", "unk_token", "pad_token"];
const QWEN_DEFAULT: &str = "<|endoftext|>";

/// The side files of a folder, whichever of them it has.
#[derive(Debug)]
pub(crate) struct TokenizerConfig {
    path: PathBuf,
    fields: Map<String, Value>,
    /// Whether the tokenizer is Qwen's by its class, as transformers takes that of a Qwen3 model to be unless told otherwise.
    is_qwen: bool,
    /// By the name of their field, in the order in which they get their ids.
    special_tokens: Vec<(String, AddedToken)>,
    extra_special_tokens: Vec<AddedToken>,
    /// All that the files list, in the order of their ids there.
    listed: Vec<AddedToken>,
}

/// The special tokens that one file names.
#[derive(Default)]
struct Named {
    /// `None` for one that the file says there is not.
    tokens: Vec<(String, Option<AddedToken>)>,
    extra: Vec<AddedToken>,
}

impl TokenizerConfig {
    /// Reads the side files in the folder `dir`. Where `tokenizer_config.json` lists tokens in `added_tokens_decoder`, the older
    /// files count for nothing.
    ///
    /// # Errors
    /// [`Error::Read`] if a file is there and can't be read; [`Error::File`] around [`Error::Json`] or [`Error::Field`].
    pub(crate) fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let fields = read_object(&path)?.unwrap_or_default();
        let mut named = Named::read(&fields).map_err(|error| error.in_file(&path))?;
        let listed = if let Some(decoder) = fields.get("added_tokens_decoder") {
            listed(decoder).map_err(|error| error.in_file(&path))?
        } else {
            let path = dir.join("special_tokens_map.json");
            let map = read_object(&path)?.unwrap_or_default();
            named.overlay(Named::read(&map).map_err(|error| error.in_file(&path))?);
            let path = dir.join("added_tokens.json");
            let tokens = read_object(&path)?.unwrap_or_default();
            listed_by_name(&tokens, &named).map_err(|error| error.in_file(&path))?
        };
        let is_qwen = match fields.get("tokenizer_class").and_then(Value::as_str) {
            None => true,
            Some(class) => class.strip_suffix("Fast").unwrap_or(class) == "Qwen2Tokenizer",
        };
        let (special_tokens, extra_special_tokens) = named.into_tokens(is_qwen);
        Ok(Self { path, fields, is_qwen, special_tokens, extra_special_tokens, listed })
    }

    /// Where `tokenizer_config.json` is, or would be.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A field of `tokenizer_config.json`; null is none.
    pub(crate) fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Whether `tokenizer_config.json` says so.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.field(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The content of the special token that is called so, such as `eos_token`.
    pub(crate) fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens().find(|(found, _)| *found == name).map(|(_, content)| content)
    }

    /// Names and contents of the special tokens that have a name.
    pub(crate) fn special_tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        self.special_tokens.iter().map(|(name, token)| (name.as_str(), token.content.as_str()))
    }

    /// What is to be added to a tokenizer that has the tokens `present` besides its vocabulary, in the order in which new ones
    /// get their ids. One that it has already gets the flags that it has here.
    pub(crate) fn to_add(&self, present: &[AddedToken]) -> Vec<AddedToken> {
        let special_tokens = || self.special_tokens.iter().map(|(_, token)| token);
        let is_special = |content: &str| special_tokens().any(|token| token.content == content);
        let mut to_add: Vec<AddedToken> =
            self.listed.iter().filter(|token| !present.contains(token)).cloned().collect();
        for token in &mut to_add {
            token.special |= is_special(&token.content);
        }
        for token in special_tokens().chain(&self.extra_special_tokens) {
            let mut known = present.iter().chain(&self.listed).chain(&to_add);
            if !known.any(|known| known.content == token.content) {
                to_add.push(token.clone());
            }
        }
        if self.is_qwen {
            let special = special_tokens().chain(&self.extra_special_tokens);
            to_add.extend(special.map(|token| AddedToken::from(token.content.clone(), true)));
        }
        to_add
    }
}

impl Named {
    fn read(fields: &Map<String, Value>) -> Result<Self> {
        let mut named = Self::default();
        for (name, value) in fields {
            if SPECIAL_TOKENS.contains(&name.as_str()) {
                let token = (!value.is_null()).then(|| token(name, value)).transpose()?;
                named.set(name, token);
            } else if let (true, Value::String(content)) = (name.ends_with("_token"), value) {
                named.set(name, Some(AddedToken::from(content.as_str(), true)));
            }
        }
        let extra = ["extra_special_tokens", "additional_special_tokens"];
        let is_empty = |value: &Value| {
            value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty)
                || value.is_null()
        };
        let extra = extra.map(|name| Some((name, fields.get(name)?)));
        match extra.into_iter().flatten().find(|(_, value)| !is_empty(value)) {
            None => {}
            Some((name, Value::Array(items))) => {
                for (index, item) in items.iter().enumerate() {
                    named.extra.push(token(&format!("{name}[{index}]"), item)?);
                }
            }
            Some((field, Value::Object(tokens))) => {
                for (name, value) in tokens {
                    named.set(name, Some(token(&format!("{field}.{name}"), value)?));
                }
            }
            Some((name, other)) => return Err(unexpected(name, "a list of tokens", other)),
        }
        Ok(named)
    }

    /// What `later` names counts.
    fn overlay(&mut self, later: Self) {
        for (name, token) in later.tokens {
            self.set(&name, token);
        }
        for token in later.extra {
            if !self.extra.iter().any(|known| known.content == token.content) {
                self.extra.push(token);
            }
        }
    }

    fn set(&mut self, name: &str, token: Option<AddedToken>) {
        // Whatever has a name structures a conversation.
        let token = token.map(|token| token.special(true));
        match self.tokens.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = token,
            None => self.tokens.push((name.to_owned(), token)),
        }
    }

    /// The tokens that have a name, in order, and the others.
    fn into_tokens(mut self, is_qwen: bool) -> (Vec<(String, AddedToken)>, Vec<AddedToken>) {
        for name in QWEN_DEFAULTS {
            if is_qwen && !self.tokens.iter().any(|(known, _)| known == name) {
                self.set(name, Some(AddedToken::from(QWEN_DEFAULT, true)));
            }
        }
        let place = |name: &str| SPECIAL_TOKENS.iter().position(|known| *known == name);
        self.tokens.sort_by_key(|(name, _)| place(name).unwrap_or(SPECIAL_TOKENS.len()));
        let tokens = self.tokens.into_iter();
        (tokens.filter_map(|(name, token)| Some((name, token?))).collect(), self.extra)
    }
}

/// A token as the files write it: its content, or an object that has its flags too.
fn token(field: &str, value: &Value) -> Result<AddedToken> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    #[expect(clippy::struct_excessive_bools, reason = "the files have as many")]
    struct Flags {
        content: Option<String>,
        single_word: bool,
        lstrip: bool,
        rstrip: bool,
        normalized: Option<bool>,
        special: bool,
    }
    match value {
        Value::String(content) => Some(AddedToken::from(content.as_str(), true)),
        Value::Object(_) => Flags::deserialize(value).ok().and_then(|flags| {
            Some(AddedToken {
                content: flags.content?,
                single_word: flags.single_word,
                lstrip: flags.lstrip,
                rstrip: flags.rstrip,
                normalized: flags.normalized.unwrap_or(!flags.special),
                special: flags.special,
            })
        }),
        _ => None,
    }
    .ok_or_else(|| unexpected(field, "a token: a string or {\"content\", …}", value))
}

/// Of `added_tokens_decoder`, which has tokens by their ids.
fn listed(decoder: &Value) -> Result<Vec<AddedToken>> {
    const FIELD: &str = "added_tokens_decoder";
    let Value::Object(decoder) = decoder else {
        return Err(unexpected(FIELD, "an object of tokens by their ids", decoder));
    };
    let mut tokens = BTreeMap::new();
    for (id, value) in decoder {
        let field = format!("{FIELD}.{id}");
        let id: u32 =
            id.parse().map_err(|_| unexpected(&field, "a token id as its name", value))?;
        tokens.insert(id, token(&field, value)?);
    }
    Ok(tokens.into_values().collect())
}

/// Of `added_tokens.json`, which has ids by the tokens.
fn listed_by_name(tokens: &Map<String, Value>, named: &Named) -> Result<Vec<AddedToken>> {
    let special: Vec<&AddedToken> =
        named.tokens.iter().filter_map(|(_, token)| token.as_ref()).chain(&named.extra).collect();
    let mut by_id = BTreeMap::new();
    for (content, id) in tokens {
        let id = id.as_u64().ok_or_else(|| unexpected(content, "a token id", id))?;
        let is_special = special.iter().any(|token| token.content == *content);
        by_id.insert(id, AddedToken::from(content.as_str(), is_special));
    }
    Ok(by_id.into_values().collect())
}

fn unexpected(field: &str, expected: &'static str, found: &Value) -> Error {
    Error::Field { field: field.to_owned(), expected, found: found.to_string() }
}

/// The JSON object in a file; `None` if there is no file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_if_there(path)? else { return Ok(None) };
    let object = serde_json::from_str(&text);
    object.map(Some).map_err(|source| Error::Json { source }.in_file(path))
}

/// The text in a file; `None` if there is no file.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.into(), source }),
    }
}
