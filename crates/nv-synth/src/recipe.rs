//! What a random checkpoint depends on, and how it is made: in small pieces, so that memory stays the same for any size.

use std::fs;
use std::path::{Path, PathBuf};

use nv_config::{Qwen3Config, load_config};
use nv_qwen3::{Cpu, Preset, Quantizer, tensor_specs};
use nv_weights::{CheckpointWriter, Dtype, NewTensor, Shards};

use crate::error::{Error, Result};
use crate::tensors::RandomTensors;

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
        let (config, config_json) = self.read_config()?;
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
        writer.write_file("config.json", config_json.as_bytes())?;
        let tensors = RandomTensors::new(&self.config, self.seed);
        for spec in &specs {
            tensors.pieces(spec, |bytes| {
                if is_stopped() {
                    return Err(Error::Stopped { dir: dir.into() });
                }
                Ok(writer.write(bytes)?)
            })?;
        }
        Ok(writer.finish()?)
    }

    /// Writes what [`Quantizer`] makes of the checkpoint that [`write`](Self::write) would write, to the bit, without that one: a
    /// model that fits in memory and on the disk only in fewer bits. Matrices are made on the threads of `cpu`.
    ///
    /// Asks `is_stopped` after every piece of a weight file.
    ///
    /// # Errors
    /// As [`write_until`](Self::write_until); [`Error::Quantize`] if the config is one of a quantised model.
    pub fn write_quantized(
        &self,
        dir: &Path,
        preset: Preset,
        cpu: &Cpu,
        mut is_stopped: impl FnMut() -> bool,
    ) -> Result<Vec<PathBuf>> {
        let (config, config_json) = self.read_config()?;
        let tensors = RandomTensors::new(&self.config, self.seed);
        let quantizer = Quantizer::from_source(&config, &tensors, preset)?;
        let quantizer = quantizer.with_max_shard_bytes(self.max_shard_bytes);
        let config_json = quantizer.config_json(&config_json)?;
        let files = [("config.json".into(), config_json.into_bytes())];
        Ok(quantizer.write(dir, &files, cpu.pool(), |_| !is_stopped())?)
    }

    /// The config, and its file as it is.
    fn read_config(&self) -> Result<(Qwen3Config, String)> {
        let config = load_config(&self.config)?;
        let json = fs::read_to_string(&self.config)
            .map_err(|source| Error::Read { path: self.config.clone(), source })?;
        Ok((config, json))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use nv_weights::Checkpoint;
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

    /// The files of a folder, by name.
    fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(dir).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        });
        files.collect()
    }

    #[test]
    fn a_quantised_checkpoint_is_what_the_plain_one_is_quantised_to() {
        let dir = tempfile::tempdir().unwrap();
        let cpu = Cpu::new(3).unwrap();
        // More rows than are quantised at once, and a head that is the embedding.
        let tied = CONFIG.replace("257", "1300").replace("false", "true");
        for (i, config) in [CONFIG, &tied].into_iter().enumerate() {
            for preset in Preset::ALL {
                for max_shard_bytes in [usize::MAX, 40_000] {
                    let recipe = recipe(dir.path(), 7, max_shard_bytes);
                    fs::write(&recipe.config, config).unwrap();
                    let case = format!("{i}-{preset}-{max_shard_bytes}");
                    let path = |of: &str| dir.path().join(format!("{case}-{of}"));
                    let paths = recipe.write(&path("plain")).unwrap();
                    let checkpoint = Checkpoint::open(&paths).unwrap();
                    let config = load_config(&recipe.config).unwrap();
                    let quantizer = Quantizer::new(&config, &checkpoint, preset).unwrap();
                    let quantizer = quantizer.with_max_shard_bytes(max_shard_bytes);
                    let json = fs::read_to_string(&recipe.config).unwrap();
                    let json = quantizer.config_json(&json).unwrap().into_bytes();
                    let side = [("config.json".into(), json)];
                    quantizer.write(&path("expected"), &side, cpu.pool(), |_| true).unwrap();

                    let out = path("synthetic");
                    recipe.write_quantized(&out, preset, &cpu, || false).unwrap();
                    let (found, expected) = (files(&out), files(&path("expected")));
                    assert_eq!(found.len() > 2, max_shard_bytes < usize::MAX, "{case}");
                    assert!(found == expected, "{case}: {:?}", found.keys());
                }
            }
        }
    }

    #[test]
    fn a_quantised_checkpoint_that_cannot_be_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (recipe, out) = (recipe(dir.path(), 1, 20_000), dir.path().join("out"));
        let cpu = Cpu::new(1).unwrap();
        for preset in Preset::ALL {
            let mut asked = 0;
            let stopped = recipe.write_quantized(&out, preset, &cpu, || {
                asked += 1;
                asked == 5
            });
            let error = stopped.unwrap_err();
            assert!(matches!(&error, Error::Stopped { dir } if *dir == out), "{error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the config is left");
        }
        fs::create_dir(&out).unwrap();
        let error = recipe.write_quantized(&out, Preset::Q8, &cpu, || false).unwrap_err();
        assert_eq!(error.to_string(), format!("{} exists already", out.display()));

        let packed = r#""quantization_config": {"quant_method": "nano-vllm-rs", "version": 1, "formats": {}}, "vocab_size""#;
        fs::write(&recipe.config, CONFIG.replace("\"vocab_size\"", packed)).unwrap();
        let other = dir.path().join("other");
        let error = recipe.write_quantized(&other, Preset::Q8, &cpu, || false).unwrap_err();
        assert!(error.to_string().starts_with("the model is quantised already"), "{error}");
        assert!(!other.exists());
    }
}
