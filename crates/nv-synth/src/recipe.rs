//! What a random checkpoint depends on, and how it is made: in small pieces, so that memory stays the same for any size.

use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use nv_config::load_config;
use nv_qwen3::tensor_specs;
use nv_weights::{CheckpointWriter, Dtype, NewTensor, Shards};

use crate::error::{Error, Result};
use crate::noise::Noise;

/// All that a random checkpoint depends on.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The config.json to make weights for; it is copied beside them.
    pub config: PathBuf,
    /// Seed of every weight.
    pub seed: u64,
    /// Largest file; a checkpoint that needs more is split into shards with an index.
    pub max_shard_bytes: usize,
}

impl Recipe {
    /// Writes the checkpoint to the new folder `dir` and returns the paths of its weight files, in order.
    ///
    /// The folder appears under its name only when it is complete.
    ///
    /// # Errors
    /// [`Error::Config`] if the config isn't a valid Qwen3 config; [`Error::Write`] if `dir` exists, and for what the system says.
    pub fn write(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        self.write_until(dir, || false)
    }

    /// As [`write`](Self::write), but asks `is_stopped` before every piece of a weight file.
    ///
    /// # Errors
    /// As [`write`](Self::write); [`Error::Stopped`] once `is_stopped` says so, and nothing is left then.
    pub fn write_until(
        &self,
        dir: &Path,
        mut is_stopped: impl FnMut() -> bool,
    ) -> Result<Vec<PathBuf>> {
        /// Elements.
        const PIECE: usize = 1 << 16;
        let config = load_config(&self.config)?;
        let config_json = fs::read(&self.config)
            .map_err(|source| Error::Read { path: self.config.clone(), source })?;
        let specs = tensor_specs(&config);
        let tensors = specs.iter().map(|spec| NewTensor {
            name: spec.name.clone(),
            dtype: Dtype::BF16,
            shape: spec.shape.clone(),
        });
        let num_parameters = config.num_parameters();
        // As safetensors' own writer aligns them.
        let shards = Shards { max_bytes: self.max_shard_bytes, alignment: 8 };
        let mut writer = CheckpointWriter::create(dir, tensors.collect(), num_parameters, shards)?;
        writer.write_file("config.json", &config_json)?;
        let mut bytes = Vec::with_capacity(PIECE * size_of::<bf16>());
        for spec in &specs {
            let noise = Noise::new(self.seed, spec);
            let len = spec.num_elements();
            for start in (0..len).step_by(PIECE) {
                if is_stopped() {
                    return Err(Error::Stopped { dir: dir.into() });
                }
                bytes.clear();
                for index in start..len.min(start + PIECE) {
                    bytes.extend_from_slice(&noise.value(index as u64).to_le_bytes());
                }
                writer.write(&bytes)?;
            }
        }
        Ok(writer.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use safetensors::SafeTensors;

    use super::*;

    const CONFIG: &str = r#"{"model_type": "qwen3", "vocab_size": 257, "hidden_size": 33, "intermediate_size": 45,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
        "attention_bias": true, "tie_word_embeddings": false}"#;

    fn recipe(dir: &Path, seed: u64, max_shard_bytes: usize) -> Recipe {
        let config = dir.join("recipe.json");
        fs::write(&config, CONFIG).unwrap();
        Recipe { config, seed, max_shard_bytes }
    }

    /// Every tensor of the files at `paths`, by name, as the safetensors crate reads them.
    fn read(paths: &[PathBuf]) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
        let mut tensors = BTreeMap::new();
        for path in paths {
            let bytes = fs::read(path).unwrap();
            let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            assert_eq!(header_len % 8, 0);
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
                assert_eq!(view.dtype(), Dtype::BF16);
                let twice =
                    tensors.insert(name.to_owned(), (view.shape().to_vec(), view.data().to_vec()));
                assert!(twice.is_none(), "{name} is there twice");
            }
        }
        tensors
    }

    #[test]
    fn shards_hold_the_tensors_of_the_single_file() {
        let dir = tempfile::tempdir().unwrap();
        let single = recipe(dir.path(), 7, usize::MAX).write(&dir.path().join("single")).unwrap();
        let sharded = recipe(dir.path(), 7, 20_000).write(&dir.path().join("sharded")).unwrap();
        assert_eq!(single, [dir.path().join("single/model.safetensors")]);
        assert_eq!(sharded[1], dir.path().join("sharded/model-00002-of-00004.safetensors"));
        assert_eq!(sharded.len(), 4);

        let tensors = read(&single);
        assert_eq!(tensors, read(&sharded));
        let found: BTreeSet<(String, Vec<usize>)> =
            tensors.into_iter().map(|(name, (shape, _))| (name, shape)).collect();
        assert_eq!(
            found,
            nv_qwen3::tensor_shapes(&serde_json::from_str(CONFIG).unwrap()).into_iter().collect()
        );
        assert_eq!(fs::read_to_string(dir.path().join("sharded/config.json")).unwrap(), CONFIG);
    }

    #[test]
    fn the_index_says_where_each_tensor_is() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("sharded");
        recipe(dir.path(), 7, 20_000).write(&out).unwrap();
        let index = fs::read_to_string(out.join("model.safetensors.index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();

        let mut total_size = 0;
        let mut named = 0;
        for (name, file) in index["weight_map"].as_object().unwrap() {
            total_size += read(&[out.join(file.as_str().unwrap())])[name].1.len();
            named += 1;
        }
        assert_eq!(index["metadata"]["total_size"], total_size);
        assert_eq!(index["metadata"]["total_parameters"], total_size / 2);
        assert_eq!(named, nv_qwen3::tensor_shapes(&serde_json::from_str(CONFIG).unwrap()).len());
    }

    #[test]
    fn a_writer_that_is_stopped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = recipe(dir.path(), 1, 20_000);
        let out = dir.path().join("out");
        let num_pieces = nv_qwen3::tensor_shapes(&serde_json::from_str(CONFIG).unwrap()).len();
        for last in [0, num_pieces - 1] {
            let mut asked = 0;
            let error = recipe
                .write_until(&out, || {
                    asked += 1;
                    asked > last
                })
                .unwrap_err();
            assert!(matches!(&error, Error::Stopped { dir } if *dir == out), "{error}");
            assert_eq!(asked, last + 1);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the config is left");
        }
        assert_eq!(recipe.write_until(&out, || false).unwrap().len(), 4);
    }

    #[test]
    fn an_existing_folder_and_a_bad_config_are_refused_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = recipe(dir.path(), 1, usize::MAX);
        let error = recipe.write(dir.path()).unwrap_err().to_string();
        assert_eq!(error, format!("{} exists already", dir.path().display()));

        fs::write(&recipe.config, CONFIG.replace("257", "0")).unwrap();
        assert!(recipe.write(&dir.path().join("out")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the config is left");
    }
}
