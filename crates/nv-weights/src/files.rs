//! The files of a model in a local folder.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::index::ShardIndex;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Where the files of one model are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelFiles {
    /// `config.json`.
    pub config: PathBuf,
    /// The weights: `model.safetensors`, or every shard of `model.safetensors.index.json`, sorted by name.
    pub weights: Vec<PathBuf>,
    /// `tokenizer.json`; a model without one can still be run on token ids.
    pub tokenizer: Option<PathBuf>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<PathBuf>,
    /// `chat_template.jinja`; older models keep their template in `tokenizer_config.json`.
    pub chat_template: Option<PathBuf>,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
}

impl ModelFiles {
    /// Finds the files of the model in the folder `dir`, under the names that Hugging Face gives them.
    ///
    /// If there are both a `model.safetensors` and an index of shards, the single file is the model, as in transformers.
    /// Of shards the headers are read: each must hold the tensors that the index puts into it, and no others.
    ///
    /// # Errors
    /// [`Error::MissingFile`] without a config, [`Error::NoWeights`] without weights. For shards, an error that
    /// names index, tensor and shard if the index is malformed or names a path, a shard is missing, or a tensor is in
    /// two shards or in another than the index says; the errors of [`Checkpoint::open`](crate::Checkpoint::open) too.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let find = |file| Some(dir.join(file)).filter(|path| path.is_file());
        let missing = |file| Error::MissingFile { dir: dir.into(), file };
        Ok(Self {
            config: find(CONFIG).ok_or_else(|| missing(CONFIG))?,
            weights: match (find(WEIGHTS), find(WEIGHTS_INDEX)) {
                (Some(weights), _) => vec![weights],
                (None, Some(index)) => ShardIndex::read(&index)?.checked_shards()?,
                (None, None) => return Err(Error::NoWeights { dir: dir.into() }),
            },
            tokenizer: find(TOKENIZER),
            tokenizer_config: find(TOKENIZER_CONFIG),
            chat_template: find(CHAT_TEMPLATE),
            generation_config: find(GENERATION_CONFIG),
        })
    }
}
