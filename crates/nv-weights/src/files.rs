//! The files of a model in a local folder.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::index::ShardIndex;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const VOCAB: [&str; 2] = ["vocab.json", "merges.txt"];
/// What goes with a tokenizer.
pub(crate) const TEXT: [&str; 6] = [
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/default.jinja",
    "additional_chat_templates/tool_use.jinja",
];
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Where the files of one model are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelFiles {
    /// The folder of them all.
    pub dir: PathBuf,
    /// `config.json`.
    pub config: PathBuf,
    /// The weights: `model.safetensors`, or every shard of `model.safetensors.index.json`, sorted by name.
    pub weights: Vec<PathBuf>,
    /// The files that say how text becomes tokens: `tokenizer.json`, or `vocab.json` and `merges.txt`; `tokenizer_config.json` and
    /// older ones beside it; the chat templates. A model without any can still be run on token ids.
    pub text: Vec<PathBuf>,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
}

impl ModelFiles {
    /// Finds the files of the model in the folder `dir`, under the names that Hugging Face gives them.
    ///
    /// If there are both a `model.safetensors` and an index of shards, the single file is the model, as in transformers.
    /// Of shards the headers are read: no tensor may be in another shard than the index says, if it says so.
    ///
    /// # Errors
    /// [`Error::MissingFile`] without a config, [`Error::NoWeights`] without weights. For shards, an error that
    /// names index, tensor and shard if the index is malformed or names a path, a shard is missing, or a tensor is in
    /// two shards or in another than the index says; the errors of [`Checkpoint::open`](crate::Checkpoint::open) too.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let find = |file| Some(dir.join(file)).filter(|path| path.is_file());
        let missing = |file| Error::MissingFile { dir: dir.into(), file };
        let tokenizer = match find(TOKENIZER) {
            Some(tokenizer) => vec![tokenizer],
            None => VOCAB.into_iter().filter_map(find).collect(),
        };
        Ok(Self {
            config: find(CONFIG).ok_or_else(|| missing(CONFIG))?,
            weights: match (find(WEIGHTS), find(WEIGHTS_INDEX)) {
                (Some(weights), _) => vec![weights],
                (None, Some(index)) => ShardIndex::read(&index)?.checked_shards()?,
                (None, None) => return Err(Error::NoWeights { dir: dir.into() }),
            },
            text: tokenizer.into_iter().chain(TEXT.into_iter().filter_map(find)).collect(),
            generation_config: find(GENERATION_CONFIG),
            dir: dir.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::checkpoint::tests::{safetensors, write};

    /// A folder of a config and these files.
    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(&dir, CONFIG, b"{}");
        for (name, content) in files {
            write(&dir, name, content);
        }
        dir
    }

    /// A shard of tensors with these names.
    fn shard(names: &[&str]) -> Vec<u8> {
        let tensors: Vec<(&str, &str, &[usize], &[u8])> =
            names.iter().map(|name| (*name, "U8", &[1][..], &[0][..])).collect();
        safetensors(&tensors, 0)
    }

    #[test]
    fn a_folder_with_everything() {
        let dir = folder(&[(GENERATION_CONFIG, b""), (TOKENIZER, b""), (WEIGHTS, &shard(&["a"]))]);
        fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
        for name in TEXT.into_iter().chain(VOCAB) {
            write(&dir, name, b"");
        }
        let path = |name| dir.path().join(name);
        let expected = ModelFiles {
            dir: dir.path().into(),
            config: path(CONFIG),
            weights: vec![path(WEIGHTS)],
            text: [TOKENIZER].into_iter().chain(TEXT).map(path).collect(),
            generation_config: Some(path(GENERATION_CONFIG)),
        };
        assert_eq!(ModelFiles::from_dir(&dir).unwrap(), expected);
        fs::remove_file(path(TOKENIZER)).unwrap();
        let text: Vec<_> = VOCAB.into_iter().chain(TEXT).map(path).collect();
        assert_eq!(ModelFiles::from_dir(&dir).unwrap().text, text);
        for name in text.into_iter().chain([path(GENERATION_CONFIG)]) {
            fs::remove_file(name).unwrap();
        }
        let files = ModelFiles::from_dir(&dir).unwrap();
        assert_eq!((files.text, files.weights), (vec![], vec![path(WEIGHTS)]));
        assert_eq!(files.generation_config, None);
        // The single file wins, as in transformers.
        write(&dir, WEIGHTS_INDEX, b"not looked at");
        assert_eq!(ModelFiles::from_dir(&dir).unwrap().weights, [path(WEIGHTS)]);
    }

    #[test]
    fn folders_that_lack_something() {
        let dir = folder(&[]);
        let check = |expected: &str| {
            let error = ModelFiles::from_dir(&dir).unwrap_err().to_string();
            assert_eq!(error, format!("{} {expected}", dir.path().display()));
        };
        check("has neither model.safetensors nor model.safetensors.index.json");
        fs::remove_file(dir.path().join(CONFIG)).unwrap();
        check("has no config.json: is it a model folder?");
    }

    const INDEX: &[u8] =
        br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}"#;

    #[cfg(unix)]
    #[test]
    fn shards_may_be_links() {
        let dir = folder(&[
            (WEIGHTS_INDEX, INDEX),
            ("blob-1", &shard(&["a"])),
            ("2.safetensors", &shard(&["b", "c"])),
        ]);
        std::os::unix::fs::symlink("blob-1", dir.path().join("1.safetensors")).unwrap();
        let paths = ["1.safetensors", "2.safetensors"].map(|name| dir.path().join(name));
        assert_eq!(ModelFiles::from_dir(&dir).unwrap().weights, paths);
    }

    #[test]
    fn shards_that_disagree_with_their_index() {
        let check = |index: &[u8], first: Option<&[&str]>, second: &[&str], expected: &str| {
            let dir = folder(&[(WEIGHTS_INDEX, index), ("2.safetensors", &shard(second))]);
            if let Some(names) = first {
                write(&dir, "1.safetensors", &shard(names));
            }
            let message = ModelFiles::from_dir(&dir).unwrap_err().to_string();
            let message = message.replace(&format!("{}/", dir.path().display()), "");
            assert_eq!(message.replace(WEIGHTS_INDEX, "INDEX"), expected);
        };
        check(
            INDEX,
            None,
            &["b", "c"],
            "INDEX puts tensor `a` into `1.safetensors`, which is missing; fetch that file",
        );
        check(
            INDEX,
            Some(&["a", "b"]),
            &["c"],
            "INDEX puts tensor `b` into `2.safetensors`, but it is in 1.safetensors",
        );
        check(
            INDEX,
            Some(&["a", "b"]),
            &["b", "c"],
            "tensor `b` is in two files, 1.safetensors and 2.safetensors",
        );
        check(
            br#"{"weight_map": {"a": "../1.safetensors"}}"#,
            Some(&["a"]),
            &[],
            "INDEX puts tensor `a` into `../1.safetensors`, which is not a plain .safetensors file name",
        );
        check(
            br#"{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}"#,
            Some(&["a"]),
            &["a"],
            "INDEX names tensor `a` twice",
        );
    }

    /// What a model needs shows later: `lm_head` of a tied model may be in either alone.
    #[test]
    fn an_index_may_list_more_and_fewer_tensors_than_there_are() {
        let shards = [("1.safetensors", shard(&["a", "z"])), ("2.safetensors", shard(&["c"]))];
        let dir = folder(&[(WEIGHTS_INDEX, INDEX)]);
        let paths = shards.map(|(name, content)| write(&dir, name, &content));
        assert_eq!(ModelFiles::from_dir(&dir).unwrap().weights, paths);
    }

    #[test]
    fn a_shard_that_is_a_pointer() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        let dir = folder(&[
            (WEIGHTS_INDEX, INDEX),
            ("1.safetensors", pointer),
            ("2.safetensors", &shard(&["b", "c"])),
        ]);
        let error = ModelFiles::from_dir(&dir).unwrap_err();
        assert!(
            matches!(error, Error::LfsPointer { path } if path == dir.path().join("1.safetensors"))
        );
    }
}
