//! `generation_config.json`: how a model's makers want it sampled.
//!
//! Says what the file says, with the config's end tokens if it names none; what to do where it is silent is the sampler's business.

use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::{self, Fields};
use crate::qwen3::Qwen3Config;

/// The sampling that a checkpoint recommends. Fields bear transformers' names; unknown ones are ignored.
///
/// A config that was deserialised is valid; [`GenerationConfig::validate`] tells of one that was built by hand.
/// The default is that of a checkpoint without the file: greedy, and silent about all else.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Whether to sample; else the likeliest token is taken each time. Default false.
    pub do_sample: bool,
    /// Divides the logits; 0 is greedy.
    pub temperature: Option<f64>,
    /// How many of the likeliest tokens to sample from; 0 is all.
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

    /// Checks everything that deserialising checks.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let check =
            |field: &str, value: Option<f64>, expected: &str, valid: fn(f64) -> bool| match value
                .filter(|&value| !value.is_finite() || !valid(value))
            {
                Some(found) => Err(Error::invalid(field, expected, found)),
                None => Ok(()),
            };
        check("temperature", self.temperature, "a finite number from 0", |t| t >= 0.0)?;
        check("top_p", self.top_p, "a number above 0 and up to 1", |p| p > 0.0 && p <= 1.0)?;
        check("min_p", self.min_p, "a number from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
        let penalty = self.repetition_penalty;
        check("repetition_penalty", penalty, "a finite number above 0", |r| r > 0.0)?;
        if self.max_new_tokens == Some(0) {
            return Err(Error::invalid("max_new_tokens", "at least 1", 0));
        }
        Ok(())
    }

    fn from_fields(fields: Fields<'_>) -> Result<Self> {
        let config = Self {
            do_sample: fields.get_or("do_sample", false)?,
            temperature: fields.get("temperature")?,
            top_k: fields.get("top_k")?,
            top_p: fields.get("top_p")?,
            min_p: fields.get("min_p")?,
            repetition_penalty: fields.get("repetition_penalty")?,
            eos_token_id: fields.get_or("eos_token_id", Vec::new())?,
            pad_token_id: fields.get("pad_token_id")?,
            bos_token_id: fields.get("bos_token_id")?,
            max_new_tokens: fields.get("max_new_tokens")?,
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::qwen3::load_config;

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
            let error = serde_json::from_value::<GenerationConfig>(json!({ field: value }));
            let expected = format!("field `{field}`: expected {expected}, found {value}");
            assert_eq!(error.unwrap_err().to_string(), expected);
        };
        check("temperature", json!(-0.5), "a finite number from 0");
        check("top_k", json!(-1), "a non-negative integer");
        check("top_p", json!(0), "a number above 0 and up to 1");
        check("top_p", json!(1.5), "a number above 0 and up to 1");
        check("min_p", json!(-0.5), "a number from 0 to 1");
        check("repetition_penalty", json!(0), "a finite number above 0");
        check("max_new_tokens", json!(0), "at least 1");
        check("do_sample", json!("no"), "true or false");
        check("eos_token_id", json!("</s>"), "a token id or a list of token ids");
        check("pad_token_id", json!(-1), "a token id");
    }
}
