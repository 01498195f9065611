//! The committed references: which checkpoint and token ids each was made from.
//!
//! Random checkpoints aren't committed. They are written again from their config and seed, and each reference knows
//! the SHA-256 of its checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nv_config::load_config;
use sha2::{Digest, Sha256};

use crate::synth::Recipe;

/// One committed reference, `tests/references/NAME.safetensors`.
#[derive(Debug)]
pub struct Case {
    /// The stem of its files in `tests/references`.
    pub name: &'static str,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// A folder of the repository. Prompts are `NAME.tokens.json`, and `NAME.prompt.json` to continue greedily.
    Folder { path: &'static str, num_greedy: usize },
    /// `NAME.config.json` with random weights and token ids.
    Random { seed: u64, max_shard_bytes: usize },
}

/// Token ids of a random case: no multiple of any chunk length that is verified.
const NUM_RANDOM_TOKENS: usize = 40;

/// Every committed reference. A random case is named for what its config covers.
pub const CASES: &[Case] = &[
    Case { name: "demo", source: Source::Folder { path: "assets/demo", num_greedy: 128 } },
    random("tied-gqa2", 1, usize::MAX),
    random("tied-gqa5-bias-odd-sizes", 2, usize::MAX),
    random("tied-gqa8-wide-heads-sharded", 3, 100_000),
    random("tied-gqa8-yarn", 4, usize::MAX),
    random("untied-gqa1-narrow-heads", 5, usize::MAX),
    random("untied-gqa1-yarn-odd-vocabulary", 6, usize::MAX),
    random("untied-gqa2-bias", 7, usize::MAX),
    random("untied-gqa5-sharded", 8, 60_000),
];

/// What transformers is asked to compute: one run of `reference.py`.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) model: PathBuf,
    pub(crate) tokens: PathBuf,
    /// How many tokens to continue which prompt by.
    pub(crate) greedy: Option<(usize, PathBuf)>,
    pub(crate) out: PathBuf,
}

const fn random(name: &'static str, seed: u64, max_shard_bytes: usize) -> Case {
    Case { name, source: Source::Random { seed, max_shard_bytes } }
}

/// The folder of the committed references.
pub fn references_dir() -> PathBuf {
    crate::root().join("tests/references")
}

impl Case {
    /// The file of reference logits.
    pub fn reference_path(&self) -> PathBuf {
        self.file("safetensors")
    }

    /// The folder of the checkpoint, which is written inside `scratch` if it is a random one.
    ///
    /// # Errors
    /// If the random checkpoint can't be written.
    pub fn checkpoint(&self, scratch: &Path) -> Result<PathBuf> {
        match self.source {
            Source::Folder { path, .. } => Ok(crate::root().join(path)),
            Source::Random { seed, max_shard_bytes } => {
                let dir = scratch.join(self.name);
                Recipe { config: self.file("config.json"), seed, max_shard_bytes }
                    .write(&dir)
                    .with_context(|| format!("cannot make the checkpoint of {}", self.name))?;
                Ok(dir)
            }
        }
    }

    /// What to ask transformers for, with new files inside `scratch`.
    pub(crate) fn request(&self, scratch: &Path) -> Result<Request> {
        let model = self.checkpoint(scratch)?;
        let (tokens, greedy) = match self.source {
            Source::Folder { num_greedy, .. } => {
                (self.file("tokens.json"), Some((num_greedy, self.file("prompt.json"))))
            }
            Source::Random { seed, .. } => {
                let tokens = scratch.join("tokens.json");
                let vocab_size = load_config(self.file("config.json"))?.vocab_size;
                fs::write(&tokens, serde_json::to_string(&random_ids(seed, vocab_size))?)?;
                (tokens, None)
            }
        };
        Ok(Request { model, tokens, greedy, out: self.reference_path() })
    }

    fn file(&self, extension: &str) -> PathBuf {
        references_dir().join(format!("{}.{extension}", self.name))
    }
}

/// Ids from the whole vocabulary, each a function of the seed and its position.
fn random_ids(seed: u64, vocab_size: usize) -> Vec<u64> {
    (0..NUM_RANDOM_TOKENS as u64)
        .map(|position| {
            let digest = Sha256::new()
                .chain_update(seed.to_le_bytes())
                .chain_update(position.to_le_bytes())
                .finalize();
            u64::from_le_bytes(*digest.first_chunk().expect("a SHA-256 digest has 32 bytes"))
                % vocab_size as u64
        })
        .collect()
}
