//! `generation_config.json`: how a model's makers want it sampled.
//!
//! Says what the file says, with the config's end tokens if it names none, and the tokenizer's beside them; what to do where it is silent is the sampler's business.

use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::{self, Field, Fields};
use crate::qwen3::Qwen3Config;

/// The sampling that a checkpoint recommends. Fields bear transformers' names; unknown ones are ignored.
///
/// A config that was deserialised is valid; [`GenerationConfig::validate`] tells of one that was built by hand.
/// The default is that of a checkpoint without the file: greedy, and silent about all else.
///
/// As in transformers, a file that doesn't sample may hold anything in `temperature`, `top_k`, `top_p` and `min_p`: what no
/// sampler takes is left out. `pad_token_id` and `bos_token_id` that are no token ids are left out, too.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Whether to sample; else the likeliest token is taken each time. Default false.
    pub do_sample: bool,
    /// Divides the logits; 0 is greedy.
    pub temperature: Option<f64>,
    /// How many of the likeliest tokens to sample from; 0 is all, and so is -1 in the file.
    pub top_k: Option<usize>,
    /// The probability, above 0 and up to 1, that the likeliest tokens to sample from must reach together.
    pub top_p: Option<f64>,
    /// The least probability, as a fraction of the likeliest token's, from 0 to 1.
    pub min_p: Option<f64>,
    /// Above 1, tokens already in the text become less likely.
    pub repetition_penalty: Option<f64>,
    /// Tokens that end a text; the file gives one or a list.
    pub eos_token_id: Vec<u32>,
    /// The token that fills up short rows of a batch.
    pub pad_token_id: Option<u32>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// How many tokens to generate at most.
    pub max_new_tokens: Option<usize>,
}

/// Reads a model's `generation_config.json`.
///
/// # Errors
/// [`Error::Read`] and [`Error::Parse`] if `path` is not a file with a JSON object; [`Error::File`] with the
/// offending field in its source if a value is out of range.
pub fn load_generation_config(path: impl AsRef<Path>) -> Result<GenerationConfig> {
    json::load(path.as_ref(), GenerationConfig::from_fields)
}

impl<'de> Deserialize<'de> for GenerationConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Map::<String, Value>::deserialize(deserializer)?;
        Self::from_fields(Fields::new(&object)).map_err(D::Error::custom)
    }
}

impl GenerationConfig {
    /// What the makers of a model recommend, in the file at `path` if there is one. If it names no end tokens, they are those of
    /// the model's config, without which nothing would say where an answer ends.
    ///
    /// # Errors
    /// As [`load_generation_config`].
    pub fn of_model(path: Option<&Path>, config: &Qwen3Config) -> Result<Self> {
        let mut recommended = path.map(load_generation_config).transpose()?.unwrap_or_default();
        if recommended.eos_token_id.is_empty() {
            recommended.eos_token_id.clone_from(&config.eos_token_id);
        }
        Ok(recommended)
    }

    /// Has the tokenizer's own `eos_token` end a text too, besides those that are named here, as vLLM has it.
    #[must_use]
    pub fn with_eos_token(mut self, eos_token_id: Option<u32>) -> Self {
        let missing = eos_token_id.filter(|token_id| !self.eos_token_id.contains(token_id));
        self.eos_token_id.extend(missing);
        self
    }

    /// Checks everything that deserialising checks.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        TEMPERATURE.check(self.temperature)?;
        TOP_P.check(self.top_p)?;
        MIN_P.check(self.min_p)?;
        REPETITION_PENALTY.check(self.repetition_penalty)?;
        if self.max_new_tokens == Some(0) {
            return Err(Error::invalid("max_new_tokens", "at least 1", 0));
        }
        Ok(())
    }

    fn from_fields(fields: Fields<'_>) -> Result<Self> {
        let do_sample = fields.get_or("do_sample", false)?;
        let top_p = match fields.get("top_p") {
            Ok(top_p) if do_sample => Ok(top_p.map(top_p_as_transformers)),
            read => read,
        };
        let top_k = fields.get("top_k").map(|top_k| top_k.map(|TopK(top_k)| top_k));
        let config = Self {
            do_sample,
            temperature: if_sampling(do_sample, TEMPERATURE.checked(fields.get("temperature")))?,
            top_k: if_sampling(do_sample, top_k)?,
            top_p: if_sampling(do_sample, TOP_P.checked(top_p))?,
            min_p: if_sampling(do_sample, MIN_P.checked(fields.get("min_p")))?,
            repetition_penalty: fields.get("repetition_penalty")?,
            eos_token_id: fields.get_or("eos_token_id", Vec::new())?,
            pad_token_id: fields.get_if_valid("pad_token_id"),
            bos_token_id: fields.get_if_valid("bos_token_id"),
            max_new_tokens: fields.get("max_new_tokens")?,
        };
        config.validate()?;
        Ok(config)
    }
}

/// The numbers that a field may have.
struct Range {
    field: &'static str,
    expected: &'static str,
    contains: fn(f64) -> bool,
}

const TEMPERATURE: Range =
    Range { field: "temperature", expected: "a finite number from 0", contains: |t| t >= 0.0 };
const TOP_P: Range = Range {
    field: "top_p",
    expected: "a number above 0 and up to 1",
    contains: |p| p > 0.0 && p <= 1.0,
};
const MIN_P: Range = Range {
    field: "min_p",
    expected: "a number from 0 to 1",
    contains: |p| (0.0..=1.0).contains(&p),
};
const REPETITION_PENALTY: Range = Range {
    field: "repetition_penalty",
    expected: "a finite number above 0",
    contains: |r| r > 0.0,
};

impl Range {
    fn check(&self, value: Option<f64>) -> Result<()> {
        match value.filter(|&value| !value.is_finite() || !(self.contains)(value)) {
            Some(found) => Err(Error::invalid(self.field, self.expected, found)),
            None => Ok(()),
        }
    }

    fn checked(&self, read: Result<Option<f64>>) -> Result<Option<f64>> {
        let value = read?;
        self.check(value)?;
        Ok(value)
    }
}

/// What was read of a field that shapes sampling. A file that doesn't sample may hold anything there.
fn if_sampling<T>(do_sample: bool, read: Result<Option<T>>) -> Result<Option<T>> {
    if do_sample { read } else { Ok(read.unwrap_or_default()) }
}

/// In transformers, where it samples, 0 leaves the likeliest token alone, and more than 1 leaves all of them.
fn top_p_as_transformers(top_p: f64) -> f64 {
    if top_p == 0.0 { f64::MIN_POSITIVE } else { top_p.min(1.0) }
}

/// A number of tokens; -1, as vLLM writes it, is all.
struct TopK(usize);

impl Field for TopK {
    const EXPECTED: &str = "a number from -1";

    fn from_json(value: &Value) -> Option<Self> {
        match value.as_f64() {
            Some(-1.0) => Some(Self(0)),
            _ => usize::from_json(value).map(Self),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::parse::load_config;

    #[test]
    fn the_published_file_is_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configs/generation_config.json");
        let expected = GenerationConfig {
            do_sample: true,
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            eos_token_id: vec![151_645, 151_643],
            pad_token_id: Some(151_643),
            bos_token_id: Some(151_643),
            ..GenerationConfig::default()
        };
        assert_eq!(load_generation_config(path).unwrap(), expected);
    }

    #[test]
    fn end_tokens_that_the_file_does_not_name_are_the_configs() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configs"));
        let config = Qwen3Config {
            eos_token_id: vec![5],
            ..load_config(folder.join("Qwen3-0.6B.json")).unwrap()
        };
        let file = folder.join("generation_config.json");
        let of_model = |path| GenerationConfig::of_model(path, &config).unwrap();
        assert_eq!(of_model(Some(&file)), load_generation_config(&file).unwrap());
        let silent = GenerationConfig { eos_token_id: vec![5], ..GenerationConfig::default() };
        assert_eq!(of_model(None), silent);
        assert!(GenerationConfig::of_model(Some(folder), &config).is_err());
    }

    #[test]
    fn the_tokenizers_own_end_counts_once() {
        let ends = |eos_token| {
            let config =
                GenerationConfig { eos_token_id: vec![7, 5], ..GenerationConfig::default() };
            config.with_eos_token(eos_token).eos_token_id
        };
        assert_eq!(ends(None), [7, 5]);
        assert_eq!(ends(Some(5)), [7, 5]);
        assert_eq!(ends(Some(9)), [7, 5, 9]);
    }

    #[test]
    fn every_other_field_is_read() {
        let file = json!({
            "min_p": 0.05, "repetition_penalty": 1.1, "max_new_tokens": 512, "eos_token_id": 7, "temperature": null,
        });
        let expected = GenerationConfig {
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            max_new_tokens: Some(512),
            eos_token_id: vec![7],
            ..GenerationConfig::default()
        };
        assert_eq!(serde_json::from_value::<GenerationConfig>(file).unwrap(), expected);
        let empty = serde_json::from_value::<GenerationConfig>(json!({})).unwrap();
        assert_eq!(empty, GenerationConfig::default());
    }

    #[test]
    fn wrong_values_are_named() {
        let check = |field: &str, value: Value, expected: &str| {
            let file = json!({ "do_sample": true, field: value });
            let error = serde_json::from_value::<GenerationConfig>(file);
            let expected = format!("field `{field}`: expected {expected}, found {value}");
            assert_eq!(error.unwrap_err().to_string(), expected);
        };
        check("temperature", json!(-0.5), "a finite number from 0");
        check("top_k", json!(-2), "a number from -1");
        check("top_k", json!(1.5), "a number from -1");
        check("top_p", json!(-0.5), "a number above 0 and up to 1");
        check("min_p", json!(-0.5), "a number from 0 to 1");
        check("repetition_penalty", json!(0), "a finite number above 0");
        check("max_new_tokens", json!(0), "at least 1");
        check("do_sample", json!("no"), "true or false");
        check("eos_token_id", json!("</s>"), "a token id or a list of token ids");
        let greedy = json!({"do_sample": false, "repetition_penalty": 0});
        assert!(serde_json::from_value::<GenerationConfig>(greedy).is_err(), "greedy has it, too");
    }

    /// Each of these files generates in transformers 5.24.
    #[test]
    fn what_decides_nothing_is_no_matter() {
        let check = |file: Value, expected: GenerationConfig| {
            let found = serde_json::from_value::<GenerationConfig>(file.clone()).unwrap();
            assert_eq!(found, expected, "{file}");
        };
        let greedy = GenerationConfig::default;
        check(
            json!({"top_p": 0, "top_k": -1, "temperature": -1}),
            GenerationConfig { top_k: Some(0), ..greedy() },
        );
        check(json!({"do_sample": false, "top_p": "0.9", "min_p": 7, "top_k": -5}), greedy());
        check(
            json!({"temperature": "x", "top_p": 0.9}),
            GenerationConfig { top_p: Some(0.9), ..greedy() },
        );
        check(json!({"pad_token_id": -1, "bos_token_id": -5}), greedy());
        check(json!({"pad_token_id": [1], "bos_token_id": "<s>"}), greedy());
        check(json!({"eos_token_id": -1}), greedy());
        check(
            json!({"eos_token_id": [2.0, -1, 99_999, 2]}),
            GenerationConfig { eos_token_id: vec![2, 99_999, 2], ..greedy() },
        );
        check(
            json!({"max_new_tokens": 4.0, "do_sample": null}),
            GenerationConfig { max_new_tokens: Some(4), ..greedy() },
        );

        let sampled = || GenerationConfig { do_sample: true, ..GenerationConfig::default() };
        check(
            json!({"do_sample": true, "top_k": -1}),
            GenerationConfig { top_k: Some(0), ..sampled() },
        );
        check(
            json!({"do_sample": true, "top_k": 20.0}),
            GenerationConfig { top_k: Some(20), ..sampled() },
        );
        // The likeliest token alone, and all.
        check(
            json!({"do_sample": true, "top_p": 0}),
            GenerationConfig { top_p: Some(f64::MIN_POSITIVE), ..sampled() },
        );
        check(
            json!({"do_sample": true, "top_p": 1.5}),
            GenerationConfig { top_p: Some(1.0), ..sampled() },
        );
    }
}
