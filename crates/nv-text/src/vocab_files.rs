//! Qwen's tokenizer from `vocab.json` and `merges.txt`, as it was published before there was a `tokenizer.json`.
//!
//! Source: transformers `tokenization_qwen2.py`.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::PostProcessorWrapper;

use crate::error::{Error, Result};
use crate::tokenizer_config::{TokenizerConfig, read_if_there};

/// Where Qwen's tokenizer splits a text.
pub(crate) const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The `tokenizer.json` that would be in the folder `dir`, but for added tokens; `None` if one of the two files is missing.
pub(crate) fn read(dir: &Path, config: &TokenizerConfig) -> Result<Option<String>> {
    let (vocab_path, merges_path) = (dir.join("vocab.json"), dir.join("merges.txt"));
    let (Some(vocab), Some(merges)) = (read_if_there(&vocab_path)?, read_if_there(&merges_path)?)
    else {
        return Ok(None);
    };
    let vocab: Map<String, Value> = serde_json::from_str(&vocab)
        .map_err(|source| Error::Json { source }.in_file(&vocab_path))?;
    let merges = parse_merges(&merges, &vocab).map_err(|error| error.in_file(&merges_path))?;
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": config.is_set("add_prefix_space"),
        "trim_offsets": false, "use_regex": false,
    });
    let split = json!({
        "type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false,
    });
    let file = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    Ok(Some(file.to_string()))
}

/// What stands around every text, if `config` wants anything there; `token_to_id` knows the tokens.
pub(crate) fn post_processor(
    config: &TokenizerConfig,
    token_to_id: impl Fn(&str) -> Option<u32>,
) -> Option<PostProcessorWrapper> {
    let mut special_tokens = Map::new();
    let mut special = |flag, name| {
        let content = config.special_token(name).filter(|_| config.is_set(flag))?;
        let id = token_to_id(content)?;
        let entry = json!({"id": content, "ids": [id], "tokens": [content]});
        special_tokens.insert(content.to_owned(), entry);
        Some(json!({"SpecialToken": {"id": content, "type_id": 0}}))
    };
    let (bos, eos) = (special("add_bos_token", "bos_token"), special("add_eos_token", "eos_token"));
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> = bos.into_iter().chain([text]).chain(eos).collect();
    if special_tokens.is_empty() {
        return None;
    }
    let template = json!({
        "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special_tokens,
    });
    Some(serde_json::from_value(template).expect("it is a template"))
}

/// The two tokens of each line, in which a first one that says `#version` and those without anything don't count.
fn parse_merges<'a>(merges: &'a str, vocab: &Map<String, Value>) -> Result<Vec<[&'a str; 2]>> {
    let mut pairs = Vec::new();
    for (index, line) in merges.lines().enumerate() {
        if line.is_empty() || (index == 0 && line.starts_with("#version")) {
            continue;
        }
        let is_token = |token: &str| vocab.contains_key(token);
        match line.split_once(' ') {
            Some((left, right))
                if is_token(left) && is_token(right) && is_token(&format!("{left}{right}")) =>
            {
                pairs.push([left, right]);
            }
            _ => return Err(Error::Merge { line: index + 1, found: line.to_owned() }),
        }
    }
    Ok(pairs)
}
