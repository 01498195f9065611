//! The writer: which tensor goes into which file, and the files.
//!
//! Tensors are written as they are made, in small pieces: memory stays the same for any size of checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use nv_config::load_config;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use crate::error::{Error, Result};
use crate::noise::Noise;

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";

const BYTES_PER_ELEMENT: usize = size_of::<bf16>();

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
    /// [`Error::Config`] if the config isn't a valid Qwen3 config, [`Error::Exists`] if `dir` does; otherwise what the
    /// system says.
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
        let config = load_config(&self.config)?;
        if dir.exists() {
            return Err(Error::Exists { path: dir.into() });
        }
        let parent = match dir.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let create = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Create { path, source }
        };
        let write = |file: &str| {
            let (file, dir) = (file.to_owned(), dir.to_owned());
            move |source| Error::Write { file, dir, source }
        };
        fs::create_dir_all(parent).map_err(create(parent))?;
        // Removed when dropped: an error leaves nothing behind.
        let scratch =
            tempfile::Builder::new().prefix(".synth-").tempdir_in(parent).map_err(create(dir))?;
        let part = scratch.path().join("checkpoint");
        fs::create_dir(&part).map_err(create(dir))?;

        let config_json = fs::read(&self.config)
            .map_err(|source| Error::Read { path: self.config.clone(), source })?;
        fs::write(part.join(CONFIG), config_json).map_err(write(CONFIG))?;
        let shards = split(nv_qwen3::tensor_shapes(&config), self.max_shard_bytes);
        let names = file_names(shards.len());
        for (shard, name) in shards.iter().zip(&names) {
            let is_whole = write_shard(shard, self.seed, &part.join(name), &mut is_stopped);
            if !is_whole.map_err(write(name))? {
                return Err(Error::Stopped { dir: dir.into() });
            }
        }
        if shards.len() > 1 {
            let index = format!("{:#}\n", index(&shards, &names));
            fs::write(part.join(INDEX), index).map_err(write(INDEX))?;
        }
        fs::rename(&part, dir).map_err(create(dir))?;
        Ok(names.iter().map(|name| dir.join(name)).collect())
    }
}

type NamedShape = (String, Vec<usize>);

fn num_bytes(shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * BYTES_PER_ELEMENT
}

/// Fills shards in order; one holds more than `max_bytes` only if a single tensor does.
fn split(tensors: Vec<NamedShape>, max_bytes: usize) -> Vec<Vec<NamedShape>> {
    let mut shards: Vec<Vec<NamedShape>> = Vec::new();
    let mut filled = usize::MAX;
    for tensor in tensors {
        let size = num_bytes(&tensor.1);
        match shards.last_mut() {
            Some(shard) if filled.saturating_add(size) <= max_bytes => {
                filled += size;
                shard.push(tensor);
            }
            _ => {
                filled = size;
                shards.push(vec![tensor]);
            }
        }
    }
    shards
}

fn file_names(num_shards: usize) -> Vec<String> {
    if num_shards == 1 {
        return vec!["model.safetensors".to_owned()];
    }
    (1..=num_shards).map(|i| format!("model-{i:05}-of-{num_shards:05}.safetensors")).collect()
}

/// The `model.safetensors.index.json` of `shards`.
fn index(shards: &[Vec<NamedShape>], names: &[String]) -> serde_json::Value {
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (shard, file) in shards.iter().zip(names) {
        for (name, shape) in shard {
            weight_map.insert(name, file);
            total_size += num_bytes(shape);
        }
    }
    let metadata =
        json!({ "total_parameters": total_size / BYTES_PER_ELEMENT, "total_size": total_size });
    json!({ "metadata": metadata, "weight_map": weight_map })
}

/// Writes one safetensors file: the header's length, the header, then the tensors without gaps. False if it was stopped.
fn write_shard(
    shard: &[NamedShape],
    seed: u64,
    path: &Path,
    is_stopped: &mut impl FnMut() -> bool,
) -> io::Result<bool> {
    const PIECE: usize = 1 << 16;
    let mut file = File::create(path)?;
    file.write_all(&header(shard))?;
    let mut bytes = Vec::with_capacity(PIECE * BYTES_PER_ELEMENT);
    for (name, shape) in shard {
        let noise = Noise::new(seed, name, shape);
        let len = shape.iter().product::<usize>();
        for start in (0..len).step_by(PIECE) {
            if is_stopped() {
                return Ok(false);
            }
            bytes.clear();
            for index in start..len.min(start + PIECE) {
                bytes.extend_from_slice(&noise.value(index as u64).to_le_bytes());
            }
            file.write_all(&bytes)?;
        }
    }
    file.sync_all()?;
    Ok(true)
}

/// The safetensors header, padded with spaces so that data starts at a multiple of 8.
///
/// `safetensors::serialize` wants every tensor in memory; its `Metadata` does the part that doesn't.
fn header(shard: &[NamedShape]) -> Vec<u8> {
    let mut end = 0;
    let infos = shard.iter().map(|(name, shape)| {
        let start = end;
        end += num_bytes(shape);
        let info =
            TensorInfo { dtype: Dtype::BF16, shape: shape.clone(), data_offsets: (start, end) };
        (name.clone(), info)
    });
    // transformers refuses a file that doesn't say which framework wrote it.
    let framework = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata =
        Metadata::new(Some(framework), infos.collect()).expect("tensors follow one another");
    let mut json = serde_json::to_vec(&metadata).expect("a header is plain JSON");
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
        let found: BTreeSet<NamedShape> =
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
