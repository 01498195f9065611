//! The dense Qwen3 models as published: the few numbers in which their configs differ.

use std::fmt;
use std::str::FromStr;

use serde_json::json;

use crate::error::{Error, Result};

/// One of the published sizes of Qwen3.
///
/// ```
/// let size: nv_synth::PublishedSize = "qwen3-0.6b".parse()?;
/// let config: nv_config::Qwen3Config = serde_json::from_str(&size.config_json())?;
/// assert_eq!(config.num_parameters(), 596_049_920);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedSize {
    name: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    tie_word_embeddings: bool,
}

impl PublishedSize {
    /// Every published size, smallest first.
    pub const ALL: [Self; 6] = [
        published("qwen3-0.6b", [1024, 3072], 28, 16, true),
        published("qwen3-1.7b", [2048, 6144], 28, 16, true),
        published("qwen3-4b", [2560, 9728], 36, 32, true),
        published("qwen3-8b", [4096, 12288], 36, 32, false),
        published("qwen3-14b", [5120, 17408], 40, 40, false),
        published("qwen3-32b", [5120, 25600], 64, 64, false),
    ];

    /// The name in lower case: `qwen3-0.6b`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The `config.json` of a model of this size.
    pub fn config_json(self) -> String {
        let config = json!({
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": false,
            "bos_token_id": 151_643,
            "eos_token_id": 151_645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": 40_960,
            "max_window_layers": self.num_hidden_layers,
            "model_type": "qwen3",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "rope_scaling": null,
            "rope_theta": 1_000_000,
            "sliding_window": null,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "bfloat16",
            "use_sliding_window": false,
            "vocab_size": 151_936,
        });
        format!("{config:#}\n")
    }
}

const fn published(
    name: &'static str,
    [hidden_size, intermediate_size]: [usize; 2],
    num_hidden_layers: usize,
    num_attention_heads: usize,
    tie_word_embeddings: bool,
) -> PublishedSize {
    PublishedSize {
        name,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        tie_word_embeddings,
    }
}

impl fmt::Display for PublishedSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for PublishedSize {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|size| size.name == name).ok_or_else(|| Error::UnknownSize {
            name: name.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nv_config::{Qwen3Config, load_config};

    use super::*;

    #[test]
    fn configs_are_those_that_were_published() {
        let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nv-config/tests/configs");
        for size in PublishedSize::ALL {
            let found: Qwen3Config = serde_json::from_str(&size.config_json()).unwrap();
            let name = size.name().replace("qwen", "Qwen").replace('b', "B");
            assert_eq!(found, load_config(published.join(name + ".json")).unwrap(), "{size}");
        }
    }

    #[test]
    fn names_are_read_and_others_refused() {
        assert_eq!("qwen3-8b".parse::<PublishedSize>().unwrap(), PublishedSize::ALL[3]);
        assert_eq!(
            "qwen3-7b".parse::<PublishedSize>().unwrap_err().to_string(),
            "`qwen3-7b` is not a published size; use qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b, qwen3-14b, qwen3-32b"
        );
    }
}
