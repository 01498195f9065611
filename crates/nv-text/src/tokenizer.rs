//! Text to token ids and back, as a checkpoint's files have it.
//!
//! It knows nothing of conversations, nor of what a model does with ids.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::panic;
use std::path::Path;
use std::sync::Arc;

use tokenizers::models::bpe::BPE;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerImpl};

use crate::error::{Error, Result};
use crate::pre_tokenizer::PreTokenizer;
use crate::tokenizer_config::TokenizerConfig;
use crate::vocab_files;

/// A byte-level BPE tokenizer, as all Qwen models have. Clones share one vocabulary.
///
/// Byte-level means that a token stands for a sequence of bytes, whatever comes before and after it: the text of a
/// sequence of tokens is the UTF-8 of their bytes in a row. A token may be a part of a character.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

/// The crate's `Tokenizer` is one of any model, and goes twice through trees of JSON to find out of which one; this is
/// parsed as it is read, in half the time.
type BytePairTokenizer =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizer, PostProcessorWrapper, DecoderWrapper>;

struct Inner {
    tokenizer: BytePairTokenizer,
    special_ids: HashSet<u32>,
    eos_token_id: Option<u32>,
}

impl Tokenizer {
    /// Reads the tokenizer of the model in the folder `dir`, as transformers does.
    ///
    /// That is `tokenizer.json`, or Qwen's tokenizer with the vocabulary of `vocab.json` and `merges.txt`; and the tokens that
    /// `tokenizer_config.json` lists or names besides, or if it lists none, `special_tokens_map.json` and `added_tokens.json`.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] if there are none of these files; [`Error::Read`] if one can't be read; [`Error::File`] around
    /// the errors of [`Tokenizer::from_bytes`], or around [`Error::Json`], [`Error::Field`] or [`Error::Merge`], if its
    /// content is not usable.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = TokenizerConfig::from_dir(dir)?;
        let path = dir.join("tokenizer.json");
        let in_config = |source| Error::Tokenizer { source }.in_file(config.path());
        let has_file = path.is_file();
        let mut tokenizer = if has_file {
            parse(&read(&path)?).map_err(|error| error.in_file(path))?
        } else {
            let file = vocab_files::read(dir, &config)?;
            let file = file.ok_or_else(|| Error::NoTokenizer { dir: dir.into() })?;
            let path = dir.join("vocab.json");
            parse(file.as_bytes()).map_err(|error| error.in_file(path))?
        };
        let present: Vec<_> = tokenizer.get_added_tokens_decoder().into_values().collect();
        tokenizer.add_tokens(config.to_add(&present)).map_err(in_config)?;
        if !has_file {
            let around = vocab_files::post_processor(&config, |token| tokenizer.token_to_id(token));
            tokenizer.with_post_processor(around);
        }
        let eos_token = config.special_token("eos_token");
        let eos_token_id = eos_token.and_then(|token| tokenizer.token_to_id(token));
        Ok(Self::new(tokenizer, eos_token_id))
    }

    /// Reads a `tokenizer.json` alone.
    ///
    /// # Errors
    /// [`Error::Read`] if the file can't be read; [`Error::File`] around the errors of [`Tokenizer::from_bytes`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(&read(path)?).map_err(|error| error.in_file(path))
    }

    /// Reads the content of a `tokenizer.json`.
    ///
    /// Truncation and padding that the file may ask for are left out: [`encode`](Self::encode) gives all tokens of
    /// a text and no others.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if `bytes` are something else, a tokenizer of another kind than BPE included;
    /// [`Error::Decoder`] if the tokenizer isn't byte-level.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Ok(Self::new(parse(bytes)?, None))
    }

    fn new(tokenizer: BytePairTokenizer, eos_token_id: Option<u32>) -> Self {
        let special_ids = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
        Self { inner: Arc::new(Inner { tokenizer, special_ids, eos_token_id }) }
    }

    /// The token ids of `text`.
    ///
    /// A special token that is spelled out in `text` becomes that token. `add_special_tokens` adds those that the
    /// file wants around every text (Qwen's adds none); a rendered chat template brings its own.
    ///
    /// # Errors
    /// [`Error::Encode`] if a part of `text` has no token, which can't be with a complete byte-level vocabulary.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .tokenizer
            .encode_fast(text, add_special_tokens)
            .map_err(|source| Error::Encode { source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`encode`](Self::encode), and how many characters of `text` come before each token.
    ///
    /// They never fall. A token that is a part of a character begins where that does, and one that stands around every text
    /// where it stands. If `text` is not in the file's normal form, they are those of `text` as it is.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<(Vec<u32>, Vec<usize>)> {
        let encoding = self.inner.tokenizer.encode_char_offsets(text, add_special_tokens);
        let encoding = encoding.map_err(|source| Error::Encode { source })?;
        let (mut start, mut end) = (0, 0);
        let is_around = encoding.get_special_tokens_mask().iter().map(|&mask| mask != 0);
        let offsets = encoding.get_offsets().iter().zip(is_around).map(|(&offsets, is_around)| {
            if is_around {
                start = end;
            } else {
                start = start.max(offsets.0);
                end = end.max(offsets.1);
            }
            start
        });
        let offsets = offsets.collect();
        Ok((encoding.get_ids().to_vec(), offsets))
    }

    /// The text of `ids`; bytes that are not UTF-8 show as U+FFFD, ids that are no token as nothing.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            self.extend_bytes(id, skip_special_tokens, &mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The id of a token, spelled as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The token of an id, spelled as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// The bytes that a token stands for, which need be no whole characters; none if `id` is no token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.extend_bytes(id, false, &mut bytes);
        bytes
    }

    /// Whether `id` is a special token: one that structures a conversation and is no part of what was said.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special_ids.contains(&id)
    }

    /// The token that ends a text, as the files in the model's folder name it: `eos_token`.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.inner.eos_token_id
    }

    /// Tokens in the vocabulary, special ones included. A model's `vocab_size` may be larger.
    pub fn vocab_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }

    /// One more than the highest id. There need not be a token for each below.
    pub(crate) fn num_ids(&self) -> u32 {
        let vocab = self.inner.tokenizer.get_vocab(true);
        vocab.into_values().max().map_or(0, |id| id.saturating_add(1))
    }

    /// Appends the bytes that `id` stands for.
    pub(crate) fn extend_bytes(&self, id: u32, skip_special_tokens: bool, bytes: &mut Vec<u8>) {
        if skip_special_tokens && self.is_special(id) {
            return;
        }
        let Some(token) = self.id_to_token(id) else { return };
        let before = bytes.len();
        for char in token.chars() {
            let Some(byte) = byte_of(char) else {
                // Not in the byte alphabet: an added token, which stands for itself.
                bytes.truncate(before);
                bytes.extend_from_slice(token.as_bytes());
                return;
            };
            bytes.push(byte);
        }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

/// The byte that `char` stands for in a byte-level vocabulary.
///
/// Printable Latin-1 characters stand for their own byte, the other bytes have the characters from U+0100 on, in
/// order. Source: GPT-2's `encoder.py`, `bytes_to_unicode`.
fn byte_of(char: char) -> Option<u8> {
    let byte = match u32::from(char) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::Read { path: path.into(), source })
}

/// Takes over a `tokenizer.json`, without truncation and padding.
fn parse(json: &[u8]) -> Result<BytePairTokenizer> {
    // The crate's parser panics on some malformed files, such as those with a `continuing_subword_prefix`.
    let mut tokenizer = panic::catch_unwind(|| BytePairTokenizer::from_bytes(json))
        .unwrap_or_else(|_| Err("its parser panicked".into()))
        .map_err(|source| Error::Tokenizer { source })?;
    if !matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
        return Err(Error::Decoder { found: decoder_name(&tokenizer) });
    }
    tokenizer.with_truncation(None).map_err(|source| Error::Tokenizer { source })?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// The type of a tokenizer's decoder, as the file calls it.
fn decoder_name(tokenizer: &BytePairTokenizer) -> String {
    let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
    decoder.get("type").and_then(|name| name.as_str()).unwrap_or("none").to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::error::Error as _;

    use nv_testing::{AddedToken, byte_tokenizer_json};
    use serde::Deserialize;
    use serde_json::{Map, Value, json};
    use tempfile::TempDir;

    use super::*;

    /// Ids of the tokens that [`file`] adds to the 256 bytes and one merge.
    pub(crate) const END: u32 = 257;
    pub(crate) const THINK: u32 = 258;
    pub(crate) const SPACED: u32 = 259;

    /// A `tokenizer.json` whose tokens are all bytes (byte b has id b), the merge "th", and three added tokens.
    fn file() -> Value {
        let added = |id, content, special| AddedToken { id, content, special };
        let mut file = byte_tokenizer_json(&[
            added(END, "<end>", true),
            added(THINK, "<think>", false),
            added(SPACED, "é x", false),
        ]);
        file["model"]["vocab"]["th"] = 256.into();
        file["model"]["merges"] = json!(["t h"]);
        file["truncation"] =
            json!({"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        file["padding"] = json!({
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
        });
        file["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<end>", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {"<end>": {"id": "<end>", "ids": [END], "tokens": ["<end>"]}},
        });
        file
    }

    pub(crate) fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(file().to_string().as_bytes()).unwrap()
    }

    #[test]
    fn text_becomes_the_tokens_of_the_file() {
        let tokenizer = tokenizer();
        let check = |text: &str, ids: &[u32]| {
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text}");
            assert_eq!(tokenizer.encode(text, true).unwrap(), [ids, &[END]].concat(), "{text}");
        };
        check("", &[]);
        check("the", &[256, u32::from(b'e')]);
        // No truncation to 4, no padding to 64.
        check("1 2 3 4", &b"1 2 3 4".map(u32::from));
        check("e\u{301}", &[0xC3, 0xA9]); // NFC
        check("<think>th<end>", &[THINK, 256, END]);
        check("é x é", &[SPACED, 0x20, 0xC3, 0xA9]);
    }

    #[derive(Deserialize)]
    struct Fixture {
        vocab: Value,
        merges: Value,
        texts: Vec<String>,
        cases: Vec<Case>,
        long: Vec<Long>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        files: Map<String, Value>,
        eos_token_id: Option<u32>,
        ids: Vec<Vec<u32>>,
        shown: Vec<String>,
    }

    #[derive(Deserialize)]
    struct Long {
        unit: String,
        end: String,
        num_ids: usize,
        fnv1a: String,
    }

    impl Fixture {
        fn load() -> Self {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tokenizer/cases.json");
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        }

        fn folder(&self, case: &Case) -> TempDir {
            let dir = tempfile::tempdir().unwrap();
            for (file, content) in &case.files {
                let content = match content {
                    Value::Bool(true) => self.vocab.to_string(),
                    Value::String(text) => text.clone(),
                    other => {
                        let mut other = other.clone();
                        if other["model"] == Value::Bool(true) {
                            let (vocab, merges) = (&self.vocab, &self.merges);
                            other["model"] =
                                json!({"type": "BPE", "vocab": vocab, "merges": merges});
                        }
                        other.to_string()
                    }
                };
                fs::write(dir.path().join(file), content).unwrap();
            }
            dir
        }
    }

    #[test]
    fn folders_are_read_as_in_transformers() {
        let fixture = Fixture::load();
        assert!(!fixture.cases.is_empty());
        for case in &fixture.cases {
            let Case { name, eos_token_id, ids, shown, .. } = case;
            let tokenizer = Tokenizer::from_dir(fixture.folder(case)).unwrap();
            assert_eq!(tokenizer.eos_token_id(), *eos_token_id, "{name}");
            for ((text, ids), shown) in fixture.texts.iter().zip(ids).zip(shown) {
                let found = tokenizer.encode(text, true).unwrap();
                assert_eq!(found, *ids, "{name}: {text:?}");
                assert_eq!(tokenizer.decode(ids, true), *shown, "{name}: {text:?}");
                let (found, offsets) = tokenizer.encode_with_offsets(text, true).unwrap();
                assert_eq!(found, *ids, "{name}: {text:?}");
                assert!(offsets.is_sorted() && offsets.len() == ids.len(), "{name}: {offsets:?}");
            }
        }
    }

    #[test]
    fn long_texts_have_the_ids_that_they_have_in_python() {
        let fixture = Fixture::load();
        let case = fixture.cases.iter().find(|case| case.name == "vocab.json and merges.txt");
        let tokenizer = Tokenizer::from_dir(fixture.folder(case.unwrap())).unwrap();
        assert!(!fixture.long.is_empty());
        for Long { unit, end, num_ids, fnv1a } in &fixture.long {
            let ids = tokenizer.encode(&(unit.repeat(1_000_000) + end), false).unwrap();
            let digest = ids.iter().fold(0xCBF2_9CE4_8422_2325_u64, |digest, &id| {
                (digest ^ u64::from(id)).wrapping_mul(0x0100_0000_01B3)
            });
            assert_eq!(
                (ids.len(), format!("{digest:016x}")),
                (*num_ids, fnv1a.clone()),
                "{unit:?}"
            );
        }
    }

    #[test]
    fn blank_lines_of_merges_do_not_count() {
        let fixture = Fixture::load();
        let mut cases = fixture.cases.iter();
        let case = cases.find(|case| case.name == "vocab.json and merges.txt").unwrap();
        let dir = fixture.folder(case);
        let path = dir.path().join("merges.txt");
        let merges = fs::read_to_string(&path).unwrap();
        fs::write(&path, merges.replace('\n', "\n\n")).unwrap();
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        for (text, ids) in fixture.texts.iter().zip(&case.ids) {
            assert_eq!(tokenizer.encode(text, true).unwrap(), *ids, "{text:?}");
        }
    }

    #[test]
    fn offsets_point_at_the_text_as_it_is() {
        let tokenizer = tokenizer();
        let check = |text: &str, expected: &[usize]| {
            let (ids, offsets) = tokenizer.encode_with_offsets(text, true).unwrap();
            assert_eq!(ids, tokenizer.encode(text, true).unwrap());
            // The last token stands behind every text.
            assert_eq!(offsets, [expected, &[text.chars().count()]].concat(), "{text:?}");
        };
        check("", &[]);
        check("the 1", &[0, 2, 3, 4]);
        check("<end>a<think>b", &[0, 5, 6, 13]);
        // Each byte of a character begins with it, and so do those of what two are put together to.
        check("é🤖x", &[0, 0, 1, 1, 1, 1, 2]);
        check("e\u{301}xe\u{301}x", &[0, 0, 2, 3, 3, 5]);
    }

    #[test]
    fn decoding_agrees_with_the_tokenizers_crate() {
        let tokenizer = tokenizer();
        let check = |ids: &[u32], skip_special_tokens: bool| {
            let expected = tokenizer.inner.tokenizer.decode(ids, skip_special_tokens).unwrap();
            assert_eq!(tokenizer.decode(ids, skip_special_tokens), expected, "{ids:?}");
        };
        for skip_special_tokens in [false, true] {
            for id in 0..300 {
                check(&[id], skip_special_tokens);
            }
            check(
                &[0xF0, 0x9F, END, 0xA4, 0x96, THINK, SPACED, 0xFF, 256, 9999],
                skip_special_tokens,
            );
        }
        assert_eq!(tokenizer.decode(&[256, END, THINK, SPACED, 9999], false), "th<end><think>é x");
        assert_eq!(tokenizer.decode(&[256, END, THINK, SPACED, 9999], true), "th<think>é x");
        assert_eq!(tokenizer.decode(&[0xE2, 0x82, 0xAC, 0xE2, 0x82], true), "€\u{FFFD}");
    }

    #[test]
    fn tokens_are_found_by_name_and_by_id() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.vocab_size(), 260);
        let check = |token: &str, id: u32, special: bool| {
            assert_eq!(tokenizer.token_to_id(token), Some(id));
            assert_eq!(tokenizer.id_to_token(id).as_deref(), Some(token));
            assert_eq!(tokenizer.is_special(id), special, "{token}");
        };
        check("<end>", END, true);
        check("<think>", THINK, false);
        check("th", 256, false);
        check("Ġ", 0x20, false);
        assert_eq!(tokenizer.token_to_id("nothing"), None);
        assert_eq!(tokenizer.token_bytes(256), b"th");
        assert_eq!(tokenizer.token_bytes(0xE2), [0xE2]);
        assert_eq!(tokenizer.token_bytes(260), b"");
        assert_eq!(tokenizer.id_to_token(260), None);
        assert!(!tokenizer.is_special(260));
    }

    #[test]
    fn unusable_folders_are_named() {
        let check = |files: &[(&str, &str)], name: &str, cause: &str| {
            let dir = tempfile::tempdir().unwrap();
            for (name, content) in files {
                fs::write(dir.path().join(name), content).unwrap();
            }
            let error = Tokenizer::from_dir(&dir).unwrap_err();
            let path = dir.path().join(name);
            assert_eq!(error.to_string(), format!("cannot use {}", path.display()));
            assert_eq!(error.source().unwrap().to_string(), cause);
        };
        let tokenizer_json = file().to_string();
        let with = |name, content, cause: &str| {
            check(&[("tokenizer.json", &tokenizer_json), (name, content)], name, cause);
        };
        let not_json = "not a JSON object; download it again if it came from a hub";
        let not_a_token = "expected a token: a string or {\"content\", …}, found";
        let config = "tokenizer_config.json";
        with(config, "version https://git-lfs.github.com/spec/v1", not_json);
        with("special_tokens_map.json", "[]", not_json);
        with("added_tokens.json", "7", not_json);
        with(config, r#"{"eos_token": 7}"#, &format!("field `eos_token`: {not_a_token} 7"));
        with(
            config,
            r#"{"added_tokens_decoder": [7]}"#,
            "field `added_tokens_decoder`: expected an object of tokens by their ids, found [7]",
        );
        with(
            config,
            r#"{"added_tokens_decoder": {"x": "y"}}"#,
            "field `added_tokens_decoder.x`: expected a token id as its name, found \"y\"",
        );
        with(
            config,
            r#"{"added_tokens_decoder": {"1": {"special": true}}}"#,
            &format!("field `added_tokens_decoder.1`: {not_a_token} {{\"special\":true}}"),
        );
        with(
            config,
            r#"{"extra_special_tokens": ["a", null]}"#,
            &format!("field `extra_special_tokens[1]`: {not_a_token} null"),
        );
        with(
            "added_tokens.json",
            r#"{"<think>": "1"}"#,
            "field `<think>`: expected a token id, found \"1\"",
        );
        check(
            &[("tokenizer.json", "{}")],
            "tokenizer.json",
            "not a tokenizer; download it again if it came from a hub",
        );

        let vocab = r#"{"a": 0, "b": 1, "ab": 2}"#;
        let with_merges = |merges, cause: &str| {
            check(&[("vocab.json", vocab), ("merges.txt", merges)], "merges.txt", cause);
        };
        let expected = "expected two tokens of vocab.json that make a third, found";
        with_merges("#version: 0.2\na b\nab\n", &format!("line 3: {expected} \"ab\""));
        with_merges("a b c", &format!("line 1: {expected} \"a b c\""));
        with_merges("\nb a", &format!("line 2: {expected} \"b a\""));
        check(&[("vocab.json", "[]"), ("merges.txt", "")], "vocab.json", not_json);
        check(
            &[("vocab.json", r#"{"a": "b"}"#), ("merges.txt", "")],
            "vocab.json",
            "not a tokenizer; download it again if it came from a hub",
        );

        for files in [&[][..], &["vocab.json"], &["merges.txt"], &[config]] {
            let dir = tempfile::tempdir().unwrap();
            for name in files {
                fs::write(dir.path().join(name), "{}").unwrap();
            }
            let error = Tokenizer::from_dir(&dir).unwrap_err().to_string();
            let expected = "has neither tokenizer.json nor vocab.json with merges.txt, and text needs one of them";
            assert_eq!(error, format!("{} {expected}", dir.path().display()));
        }
    }

    #[test]
    fn unusable_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let error = Tokenizer::from_file(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {}", path.display()));

        let check = |content: &str, cause: &str| {
            fs::write(&path, content).unwrap();
            let error = Tokenizer::from_file(&path).unwrap_err();
            assert_eq!(error.to_string(), format!("cannot use {}", path.display()));
            assert_eq!(error.source().unwrap().to_string(), cause);
        };
        let lfs_pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        check(lfs_pointer, "not a tokenizer; download it again if it came from a hub");
        check("{}", "not a tokenizer; download it again if it came from a hub");
        let mut with_prefix = file();
        with_prefix["model"]["continuing_subword_prefix"] = "é".into();
        check(&with_prefix.to_string(), "not a tokenizer; download it again if it came from a hub");
        let mut of_words = file();
        of_words["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        check(&of_words.to_string(), "not a tokenizer; download it again if it came from a hub");
        let with_decoder = |decoder: Value| {
            let mut file = file();
            file["decoder"] = decoder;
            file.to_string()
        };
        let only = "is not supported, only ByteLevel";
        check(&with_decoder(Value::Null), &format!("field `decoder`: none {only}"));
        let fuse = with_decoder(json!({"type": "Fuse"}));
        check(&fuse, &format!("field `decoder`: Fuse {only}"));
    }
}
