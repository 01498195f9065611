//! A tokenizer whose tokens are bytes, so that the tokens of a text can be told without it.

use serde_json::{Map, Value, json};

/// A token that is no byte.
#[derive(Debug, Clone, Copy)]
pub struct AddedToken {
    /// Its id, which is 256 or more.
    pub id: u32,
    /// How a text spells it.
    pub content: &'static str,
    /// Whether it structures a conversation and is no part of what is said.
    pub special: bool,
}

/// A `tokenizer.json` of byte-level BPE without a merge: byte b has id b, and then there are `added`.
pub fn byte_tokenizer_json(added: &[AddedToken]) -> Value {
    // The inverse of GPT-2's `bytes_to_unicode`.
    let mut others = 0x100..;
    let vocab: Map<String, Value> = (0..=u8::MAX)
        .map(|byte| {
            let code = match byte {
                0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
                _ => others.next().unwrap(),
            };
            (char::from_u32(code).unwrap().to_string(), byte.into())
        })
        .collect();
    let added = added.iter().map(|&AddedToken { id, content, special }| {
        json!({
            "id": id, "content": content, "special": special,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Value>(),
        "normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [],
        },
    })
}
