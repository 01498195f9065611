//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! The file is untrusted. A shard is named by the name of a file beside the index, never by a path.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::MapAccess;

use crate::checkpoint::Checkpoint;
use crate::entries::{Entries, Entry};
use crate::error::{Error, Result};

/// The longest index read, in bytes; that of a model with 100,000 tensors takes a tenth of it.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// A shard index: at least one tensor, unique tensor names, plain shard names.
#[derive(Debug)]
pub(crate) struct ShardIndex {
    path: PathBuf,
    /// Tensor name to shard name.
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads the index at `path`, a regular file; looks at no shard.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let json =
            read_limited(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Self::parse(path, &json)
    }

    /// Parses an index; `path` says where its shards are, and where to look in case of an error.
    fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let RawIndex { weight_map } = serde_json::from_slice(json)
            .map_err(|source| Error::Json { path: path.into(), what: "shard index", source })?;
        let weight_map = weight_map.into_map(path)?;
        if let Some((name, shard)) = weight_map.iter().find(|(_, shard)| !is_shard_name(shard)) {
            let (path, name, shard) = (path.into(), name.clone(), shard.clone());
            return Err(Error::ShardName { path, name, shard });
        }
        if weight_map.is_empty() {
            return Err(Error::EmptyIndex { path: path.into() });
        }
        Ok(Self { path: path.into(), weight_map })
    }

    /// The names of the shards, sorted, each once.
    pub(crate) fn shard_names(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// The shards, which must all be there. A tensor that the index lists is in the shard that it names, or in none.
    ///
    /// Which tensors a model needs is not known here: as in transformers, an index may list too many or too few.
    /// Reads the shards' headers, not their data.
    pub(crate) fn checked_shards(&self) -> Result<Vec<PathBuf>> {
        for (name, shard) in &self.weight_map {
            if !self.path.with_file_name(shard).is_file() {
                let (path, name, shard) = (self.path.clone(), name.clone(), shard.clone());
                return Err(Error::MissingShard { path, name, shard });
            }
        }
        let shards: Vec<_> =
            self.shard_names().iter().map(|name| self.path.with_file_name(name)).collect();
        for tensor in Checkpoint::open(&shards)?.tensors() {
            let Some(shard) = self.weight_map.get(tensor.name()) else { continue };
            if tensor.path() != self.path.with_file_name(shard) {
                return Err(Error::MisplacedTensor {
                    path: self.path.clone(),
                    name: tensor.name().into(),
                    shard: shard.clone(),
                    found: tensor.path().into(),
                });
            }
        }
        Ok(shards)
    }
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_INDEX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_INDEX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Whether `name` names a safetensors file in the folder of the index, on every system.
///
/// What a path could hide behind (separators, drive letters, dots in front, control characters) is refused.
fn is_shard_name(name: &str) -> bool {
    const MAX_NAME_BYTES: usize = 255;
    name.strip_suffix(".safetensors").is_some_and(|stem| !stem.is_empty())
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && !name.chars().any(|c| matches!(c, '/' | '\\' | ':') || c.is_control())
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Entries<String>,
}

/// The shard of a tensor.
impl<'de> Entry<'de> for String {
    const EXPECTED: &'static str = "an object of shard names by tensor name";

    fn take<A: MapAccess<'de>>(_name: &str, map: &mut A) -> Result<Self, A::Error> {
        map.next_value()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(weight_map: &str) -> Result<ShardIndex> {
        let json = format!(r#"{{"metadata": {{"total_size": 1}}, "weight_map": {weight_map}}}"#);
        ShardIndex::parse(Path::new("folder/index.json"), json.as_bytes())
    }

    #[test]
    fn an_index() {
        let index =
            parse(r#"{"b": "y.safetensors", "a": "x.safetensors", "c": "y.safetensors"}"#).unwrap();
        assert_eq!(
            index.shard_names().into_iter().collect::<Vec<_>>(),
            ["x.safetensors", "y.safetensors"]
        );
    }

    #[test]
    fn malformed_indexes() {
        let check = |json: &str, expected: fn(&Error) -> bool| {
            let error =
                ShardIndex::parse(Path::new("folder/index.json"), json.as_bytes()).unwrap_err();
            assert!(expected(&error), "{json}: {error:?}");
            assert!(error.to_string().contains("folder/index.json"));
        };
        for json in [
            "",
            "{}",
            "[]",
            r#"{"weight_map": []}"#,
            r#"{"weight_map": {"a": 1}}"#,
            r#"{"weight_map": {}} x"#,
        ] {
            check(json, |error| matches!(error, Error::Json { what: "shard index", .. }));
        }
        check(r#"{"weight_map": {}}"#, |error| matches!(error, Error::EmptyIndex { .. }));
        check(
            r#"{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}"#,
            |error| matches!(error, Error::DuplicateName { name, .. } if name == "a"),
        );
    }

    #[test]
    fn shard_names() {
        let check = |name: &str, valid| assert_eq!(is_shard_name(name), valid, "{name:?}");
        check("model-00001-of-00002.safetensors", true);
        check("a b ü.safetensors", true);
        check("a..b.safetensors", true);
        let long = format!("{}.safetensors", "a".repeat(250));
        for name in [
            "",
            ".",
            "..",
            ".safetensors",
            "x",
            "x.bin",
            "x.safetensors.",
            "../x.safetensors",
            "/x.safetensors",
            "a/x.safetensors",
            "a\\x.safetensors",
            "..\\x.safetensors",
            "C:x.safetensors",
            ".x.safetensors",
            "..safetensors",
            "x\0.safetensors",
            "x\n.safetensors",
            &long,
        ] {
            check(name, false);
        }
        let error = parse(r#"{"t": "../x\u0000.safetensors"}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "folder/index.json puts tensor `t` into `../x\\0.safetensors`, which is not a plain .safetensors file name"
        );
    }

    proptest! {
        #[test]
        fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ShardIndex::parse(Path::new("i"), &bytes);
        }

        #[test]
        fn accepted_shards_lie_beside_the_index(names in prop::collection::vec(r"[./\\:a\x00]{0,4}(\.safetensors)?", 1..4)) {
            let entries: Vec<_> =
                names.iter().enumerate().map(|(i, name)| format!("\"{i}\": {}", serde_json::json!(name))).collect();
            if let Ok(index) = parse(&format!("{{{}}}", entries.join(", "))) {
                for name in index.shard_names() {
                    let path = Path::new("folder").join(name);
                    prop_assert_eq!(path.parent(), Some(Path::new("folder")));
                }
            }
        }
    }
}
