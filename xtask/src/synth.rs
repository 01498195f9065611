//! `cargo xtask synth`: a random checkpoint of any Qwen3 config, laid out as Hugging Face publishes one.
//!
//! An element's value is a function of (seed, tensor name, index) alone, so sharding doesn't change it. It comes
//! from integers, one f32 multiplication, one addition and one rounding to bf16, each of which IEEE 754 defines to the
//! bit: every platform writes the same file. Weights are scaled so that logits have about unit variance.
//!
//! Tensors are written as they are made, in small pieces: memory stays the same for any size of checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use half::bf16;
use nv_config::load_config;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use sha2::{Digest, Sha256};

const BYTES_PER_ELEMENT: usize = size_of::<bf16>();

/// The arguments of `cargo xtask synth`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: Recipe,
    /// Folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// All that a random checkpoint depends on.
#[derive(Debug, clap::Args)]
pub struct Recipe {
    /// The config.json to make weights for; it is copied beside them
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Seed of every weight
    #[arg(long, value_name = "N")]
    pub seed: u64,
    /// Largest file; a checkpoint that needs more is split into shards with an index
    #[arg(long, value_name = "N", default_value_t = 5_000_000_000)]
    pub max_shard_bytes: usize,
}

/// Writes the checkpoint and says what was written.
///
/// # Errors
/// As [`Recipe::write`].
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let start = Instant::now();
    let weights = args.recipe.write(&args.out)?;
    let num_bytes =
        weights.iter().map(|path| Ok(path.metadata()?.len())).sum::<io::Result<u64>>()?;
    let seconds = start.elapsed().as_secs_f64();
    for path in &weights {
        writeln!(out, "{}", path.display())?;
    }
    writeln!(out, "{:.3} GB in {seconds:.1} s", num_bytes as f64 / 1e9)?;
    Ok(())
}

impl Recipe {
    /// Writes the checkpoint to the new folder `dir` and returns the paths of its weight files, in order.
    ///
    /// The folder appears under its name only when it is complete.
    ///
    /// # Errors
    /// If the config isn't a valid Qwen3 config, `dir` exists, or writing fails.
    pub fn write(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let config = load_config(&self.config)?;
        ensure!(!dir.exists(), "{} exists already", dir.display());
        let parent = match dir.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        // Removed when dropped: an error leaves nothing behind.
        let scratch = tempfile::Builder::new().prefix(".synth-").tempdir_in(parent)?;
        let part = scratch.path().join("checkpoint");
        fs::create_dir(&part)?;

        fs::write(part.join("config.json"), fs::read(&self.config)?)?;
        let shards = split(nv_qwen3::tensor_shapes(&config), self.max_shard_bytes);
        let names = file_names(shards.len());
        for (shard, name) in shards.iter().zip(&names) {
            write_shard(shard, self.seed, &part.join(name))
                .with_context(|| format!("cannot write {name} for {}", dir.display()))?;
        }
        if shards.len() > 1 {
            let index = serde_json::to_string_pretty(&index(&shards, &names))?;
            fs::write(part.join("model.safetensors.index.json"), index + "\n")?;
        }
        fs::rename(&part, dir).with_context(|| format!("cannot create {}", dir.display()))?;
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

/// Writes one safetensors file: the header's length, the header, then the tensors without gaps.
fn write_shard(shard: &[NamedShape], seed: u64, path: &Path) -> Result<()> {
    const PIECE: usize = 1 << 16;
    let mut file = File::create(path)?;
    file.write_all(&header(shard)?)?;
    let mut bytes = Vec::with_capacity(PIECE * BYTES_PER_ELEMENT);
    for (name, shape) in shard {
        let noise = Noise::new(seed, name, shape);
        let len = shape.iter().product::<usize>();
        for start in (0..len).step_by(PIECE) {
            bytes.clear();
            for index in start..len.min(start + PIECE) {
                bytes.extend_from_slice(&noise.value(index as u64).to_le_bytes());
            }
            file.write_all(&bytes)?;
        }
    }
    file.sync_all()?;
    Ok(())
}

/// The safetensors header, padded with spaces so that data starts at a multiple of 8.
///
/// `safetensors::serialize` wants every tensor in memory; its `Metadata` does the part that doesn't.
fn header(shard: &[NamedShape]) -> Result<Vec<u8>> {
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
    let mut json = serde_json::to_vec(&Metadata::new(Some(framework), infos.collect())?)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// The values of one tensor: about normal, each a function of its index.
struct Noise {
    key: u64,
    mean: f32,
    /// The standard deviation over that of `value`'s integer.
    scale: f32,
}

impl Noise {
    fn new(seed: u64, name: &str, shape: &[usize]) -> Self {
        let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
        let (mean, std) = match *shape {
            // Unit input gives unit output; so does the head, which may be the embedding, transposed.
            [_, in_features] => (0.0, 1.0 / (in_features as f32).sqrt()),
            _ if name.ends_with("norm.weight") => (1.0, 0.25),
            _ => (0.0, 0.25), // a bias
        };
        // Four uniform 16-bit integers have the variance 4 * (2^32 - 1) / 12.
        let key = u64::from_le_bytes(*digest.first_chunk().expect("a SHA-256 digest has 32 bytes"));
        Self { key, mean, scale: std / (4.0 * 4_294_967_295.0 / 12.0_f32).sqrt() }
    }

    fn value(&self, index: u64) -> bf16 {
        // SplitMix64, whose state is a counter.
        let mut bits = self.key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let sum: i32 = bits
            .to_le_bytes()
            .as_chunks()
            .0
            .iter()
            .map(|&b| i32::from(u16::from_le_bytes(b)))
            .sum();
        // An f32 holds the centred sum exactly.
        bf16::from_f32(self.mean + (sum - 2 * 65_535) as f32 * self.scale)
    }
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
    fn seeds_and_names_give_values_of_their_own() {
        let values = |seed, name| {
            let noise = Noise::new(seed, name, &[4, 4]);
            (0..16).map(|index| noise.value(index).to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(values(1, "a"), values(1, "a"));
        assert_ne!(values(1, "a"), values(2, "a"));
        assert_ne!(values(1, "a"), values(1, "b"));
    }

    #[test]
    fn values_have_the_stated_mean_and_deviation() {
        let check = |name: &str, shape: &[usize], mean: f64, std: f64| {
            let noise = Noise::new(3, name, shape);
            let values: Vec<f64> = (0..100_000).map(|index| noise.value(index).to_f64()).collect();
            let found_mean = values.iter().sum::<f64>() / 1e5;
            let found_std =
                (values.iter().map(|x| (x - found_mean).powi(2)).sum::<f64>() / 1e5).sqrt();
            assert!((found_mean - mean).abs() < 0.02 * std, "{name}: mean {found_mean}");
            assert!((found_std / std - 1.0).abs() < 0.02, "{name}: deviation {found_std}");
        };
        check("q_proj.weight", &[512, 64], 0.0, 0.125);
        check("q_proj.bias", &[512], 0.0, 0.25);
        check("model.norm.weight", &[512], 1.0, 0.25);
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
