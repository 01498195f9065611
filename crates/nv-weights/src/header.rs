//! The header of a safetensors file, parsed and checked in full before any tensor is looked at.
//!
//! The file is untrusted. What passes [`Header::parse`] has unique names, known dtypes, sizes that agree with dtype and
//! shape, and data that fill the file from the end of the header to its last byte without gap or overlap.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{self, IntoDeserializer, MapAccess, value};

use crate::entries::{Entries, Entry};
use crate::error::{Error, Result};

/// The longest header accepted, in bytes: the bound of the safetensors library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// What the header of one file says.
#[derive(Debug)]
pub(crate) struct Header {
    /// The tensors, in the order of their data.
    pub(crate) tensors: Vec<TensorInfo>,
    /// Free-form notes of the writer.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// One tensor of a file.
#[derive(Debug)]
pub(crate) struct TensorInfo {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Where its data lie, counted from the start of the file; always inside it.
    pub(crate) range: Range<usize>,
}

impl Header {
    /// Parses the header of `file`, the whole content of the file at `path`; `path` is only for errors.
    pub(crate) fn parse(path: &Path, file: &[u8]) -> Result<Self> {
        let json = header_json(path, file)?;
        let data_start = size_of::<u64>() + json.len();
        let data_len = file.len() - data_start;
        let entries: Entries<RawEntry> = serde_json::from_slice(json)
            .map_err(|source| Error::Json { path: path.into(), what: "header", source })?;

        let (mut tensors, mut metadata) = (Vec::new(), BTreeMap::new());
        for (name, entry) in entries.into_map(path)? {
            match entry {
                RawEntry::Tensor(tensor) => tensors.push((name, tensor)),
                RawEntry::Metadata(found) => metadata = found,
            }
        }
        tensors.sort_by_key(|(_, raw)| raw.data_offsets);
        let mut data_end = 0;
        let mut checked = Vec::with_capacity(tensors.len());
        for (name, raw) in tensors {
            let tensor = raw.check(path, name, data_end)?;
            data_end = tensor.range.end;
            checked.push(tensor);
        }

        let (expected, found) = (data_start.saturating_add(data_end), file.len());
        if let Some(cut) = checked.iter().position(|tensor| tensor.range.end > data_len) {
            let name = checked.swap_remove(cut).name;
            return Err(Error::Truncated { path: path.into(), name, expected, found });
        }
        if data_end < data_len {
            return Err(Error::TrailingBytes { path: path.into(), expected, found });
        }
        for TensorInfo { range, .. } in &mut checked {
            *range = data_start + range.start..data_start + range.end;
        }
        Ok(Self { tensors: checked, metadata })
    }
}

/// The JSON text that follows the eight bytes of its length.
fn header_json<'a>(path: &Path, file: &'a [u8]) -> Result<&'a [u8]> {
    let truncated =
        |expected| Error::TruncatedHeader { path: path.into(), expected, found: file.len() };
    let Some((len, rest)) = file.split_first_chunk() else {
        return Err(truncated(size_of::<u64>()));
    };
    match u64::from_le_bytes(*len) {
        len @ ..=MAX_HEADER_BYTES => {
            let len = usize::try_from(len).expect("100 MB fit a usize");
            rest.get(..len).ok_or_else(|| truncated(size_of::<u64>() + len))
        }
        _ => Err(not_safetensors(path, file)),
    }
}

/// Why a file whose first eight bytes are no header length is no safetensors file.
fn not_safetensors(path: &Path, file: &[u8]) -> Error {
    const KINDS: [(&[u8], &str); 6] = [
        (b"<!doctype", "a web page; fetch the file itself"),
        (b"<html", "a web page; fetch the file itself"),
        (b"<?xml", "an error page of a file server; fetch the file itself"),
        (b"{", "JSON text; fetch the file itself"),
        (b"PK\x03\x04", "a zip archive, as PyTorch saves; convert it to safetensors"),
        (b"GGUF", "a GGUF file; use the model's safetensors files"),
    ];
    if file.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Error::LfsPointer { path: path.into() };
    }
    let text = file.trim_ascii_start();
    let found = KINDS
        .iter()
        .find(|(magic, _)| text.get(..magic.len()).is_some_and(|s| s.eq_ignore_ascii_case(magic)))
        .map_or("something else; fetch it again", |&(_, kind)| kind);
    Error::NotSafetensors { path: path.into(), found }
}

/// The name of the entry that is no tensor.
const METADATA: &str = "__metadata__";

/// An entry of the header as written: sizes may lie.
enum RawEntry {
    Tensor(RawTensor),
    Metadata(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl RawTensor {
    /// Checks that this tensor has a known dtype, begins at `expected_begin`, and ends where dtype and shape say.
    /// The range returned is relative to the end of the header, and may lie past the end of the file.
    fn check(self, path: &Path, name: String, expected_begin: usize) -> Result<TensorInfo> {
        let path = || path.to_path_buf();
        let Self { dtype, shape, data_offsets: (begin, end) } = self;
        let known: Result<_, value::Error> = Dtype::deserialize(dtype.as_str().into_deserializer());
        let Ok(known) = known else {
            return Err(Error::UnknownDtype { path: path(), name, dtype });
        };
        let dtype = known;
        let Some(expected) = byte_len(dtype, &shape) else {
            return Err(Error::TensorSize { path: path(), name, dtype, shape });
        };
        if end.checked_sub(begin) != Some(expected) {
            return Err(Error::TensorLength {
                path: path(),
                name,
                dtype,
                shape,
                expected,
                begin,
                end,
            });
        }
        if begin != expected_begin {
            let (expected, found) = (expected_begin, begin);
            return Err(Error::TensorOffset { path: path(), name, expected, found });
        }
        Ok(TensorInfo { name, dtype, shape, range: begin..end })
    }
}

/// The number of bytes of a tensor; `None` if it overflows or is no whole number.
///
/// A size of 0 hides no overflow of the others: strides are products of the sizes that follow it.
fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let mut sizes = shape.iter().filter(|&&size| size != 0);
    let elements = sizes.try_fold(1, |product: usize, &size| product.checked_mul(size))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    if shape.contains(&0) { Some(0) } else { bits.is_multiple_of(8).then_some(bits / 8) }
}

impl<'de> Entry<'de> for RawEntry {
    const EXPECTED: &'static str = "an object of tensors by name";

    fn take<A: MapAccess<'de>>(name: &str, map: &mut A) -> Result<Self, A::Error> {
        if name == METADATA {
            return Ok(Self::Metadata(map.next_value::<Option<_>>()?.unwrap_or_default()));
        }
        let of_tensor = |error| de::Error::custom(format_args!("tensor `{name}`: {error}"));
        map.next_value().map(Self::Tensor).map_err(of_tensor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with this header and `data_len` bytes of data.
    fn file(json: &str, data_len: usize) -> Vec<u8> {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.as_bytes());
        file.resize(file.len() + data_len, 0);
        file
    }

    fn parse(file: &[u8]) -> Result<Header> {
        Header::parse(Path::new("the/file"), file)
    }

    #[test]
    fn a_header_of_several_tensors() {
        let json = r#"{"b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},
            "__metadata__": {"format": "pt"},
            "empty": {"dtype": "F32", "shape": [0, 5], "data_offsets": [8, 8]},
            "a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8], "future": 1}}   "#;
        let header = parse(&file(json, 20)).unwrap();
        let start = 8 + json.len();
        let tensors: Vec<_> = header
            .tensors
            .iter()
            .map(|tensor| {
                (tensor.name.as_str(), tensor.dtype, tensor.shape.as_slice(), tensor.range.clone())
            })
            .collect();
        assert_eq!(
            tensors,
            [
                ("a", Dtype::F64, &[][..], start..start + 8),
                ("empty", Dtype::F32, &[0, 5], start + 8..start + 8),
                ("b", Dtype::BF16, &[2, 3], start + 8..start + 20),
            ]
        );
        assert_eq!(header.metadata, BTreeMap::from([("format".to_owned(), "pt".to_owned())]));
        assert!(parse(&file("{}", 0)).unwrap().tensors.is_empty());
        // As the safetensors library has it.
        let json =
            r#"{"__metadata__": null, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}"#;
        let header = parse(&file(json, 1)).unwrap();
        assert_eq!((header.tensors.len(), header.metadata.len()), (1, 0));
        refuse(&file(r#"{"__metadata__": {"step": 1}}"#, 0), "malformed header");
    }

    /// Checks that `file` is refused with an error whose causes say `expected`, and name the file.
    fn refuse(file: &[u8], expected: &str) {
        let error = parse(file).unwrap_err();
        let mut message = error.to_string();
        assert!(message.contains("the/file"), "{message}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn other_files_are_named() {
        refuse(b"", "needs 8 bytes, the file has 0");
        refuse(b"abc", "needs 8 bytes, the file has 3");
        refuse(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "git lfs pull",
        );
        refuse(b"<!DOCTYPE html><html></html>", "a web page");
        refuse(b"\n<html lang=en></html>", "a web page");
        refuse(b"<?xml version=\"1.0\"?><Error/>", "an error page");
        refuse(br#"{"error": "not found"}"#, "JSON text");
        refuse(b"PK\x03\x04\0\0\x08\x08\0\0", "a zip archive");
        refuse(b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file");
        refuse(&[0xff; 100], "something else");
        refuse(&(MAX_HEADER_BYTES + 1).to_le_bytes(), "something else");
        refuse(&file("{}", 0)[..9], "needs 10 bytes, the file has 9");
    }

    #[test]
    fn malformed_json() {
        for json in ["", "[]", "null", "1", "{", "{} x", r#"{"a": 1}"#, "\u{0}"] {
            refuse(&file(json, 0), "malformed header");
        }
        refuse(
            &file(r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#, 4),
            "tensor `a`",
        );
        refuse(
            &file(r#"{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}"#, 4),
            "tensor `a`",
        );
        refuse(
            &file(r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}"#, 4),
            "tensor `a`",
        );
        refuse(
            &file(r#"{"a": {"dtype": "F32", "data_offsets": [0, 4]}}"#, 4),
            "missing field `shape`",
        );
        refuse(
            &file(
                r#"{"a": {"shape": [1], "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#,
                4,
            ),
            "duplicate field `shape`",
        );
        let mut not_utf8 = file(r#"{"a": 1}"#, 0);
        not_utf8[10] = 0xff;
        refuse(&not_utf8, "malformed header");
        refuse(&file(&"[".repeat(100_000), 0), "malformed header");
        refuse(&file(&format!(r#"{{"a": {}"#, r#"{"x":"#.repeat(100_000)), 0), "malformed header");
    }

    /// As [`refuse`], for a header of one or two tensors of `(dtype, shape, begin, end)`, and 8 bytes of data.
    fn refuse_tensors(tensors: &[(&str, &str, u64, u64)], expected: &str) {
        let entry = |(i, (dtype, shape, begin, end)): (usize, &(&str, &str, u64, u64))| {
            format!(
                r#""t{i}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{begin}, {end}]}}"#
            )
        };
        let entries: Vec<_> = tensors.iter().enumerate().map(entry).collect();
        refuse(&file(&format!("{{{}}}", entries.join(", ")), 8), expected);
    }

    #[test]
    fn headers_that_contradict_themselves_or_the_file() {
        const MAX: u64 = u64::MAX;
        refuse_tensors(&[("F33", "[2]", 0, 8)], "`t0`: unknown dtype `F33`");
        refuse_tensors(&[("F32", "[3]", 0, 8)], "`t0`: F32 [3] takes 12 bytes");
        refuse_tensors(&[("F32", "[2]", 8, 0)], "data offsets are 8 and 0");
        refuse_tensors(&[("F32", "[2]", MAX, MAX)], "takes 8 bytes");
        refuse_tensors(&[("U8", "[0]", MAX, MAX)], "must begin at offset 0");
        refuse_tensors(&[("F32", "[2]", MAX - 8, MAX)], "must begin at offset 0");
        refuse_tensors(
            &[("U8", "[18446744073709551615]", 0, MAX)],
            "`t0`: U8 [18446744073709551615] has no valid",
        );
        refuse_tensors(&[("F32", "[4294967296, 4294967296]", 0, 8)], "no valid size");
        refuse_tensors(&[("F32", "[0, 4294967296, 4294967296]", 0, 0)], "no valid size");
        refuse_tensors(&[("F4", "[3]", 0, 1)], "no valid size");
        refuse_tensors(&[("F32", "[1]", 4, 8)], "must begin at offset 0, found 4");
        refuse_tensors(
            &[("F32", "[1]", 0, 4), ("F32", "[1]", 0, 4)],
            "`t1`: data must begin at offset 4",
        );
        refuse_tensors(
            &[("U8", "[2]", 0, 2), ("U8", "[2]", 4, 6)],
            "`t1`: data must begin at offset 2",
        );
        refuse_tensors(&[("F32", "[1]", 0, 4)], "expected 74 bytes by its header, found 78");
        refuse_tensors(
            &[("U8", "[8]", 0, 8), ("F32", "[1]", 8, 12)],
            "cut short: tensor `t1` lies past",
        );
        refuse_tensors(
            &[("F32", "[3]", 0, 12), ("F32", "[1]", 12, 16)],
            "cut short: tensor `t0` lies past",
        );
        refuse_tensors(
            &[
                ("U8", "[2305843009213693951]", 0, (1 << 61) - 1),
                ("U8", "[9]", (1 << 61) - 1, (1 << 61) + 8),
            ],
            "tensor `t0` lies past",
        );
    }

    #[test]
    fn a_name_that_comes_twice() {
        let json = r#"{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}"#;
        refuse(&file(json, 2), "names tensor `a` twice");
        // As the safetensors library has it.
        let json = r#"{"__metadata__": {}, "__metadata__": {}}"#;
        refuse(&file(json, 0), "`__metadata__` twice");
    }

    /// Every tensor that parsing lets through lies in the file and has the size of its dtype and shape.
    fn parse_is_sound(file: &[u8]) {
        for tensor in parse(file).map(|header| header.tensors).unwrap_or_default() {
            let elements: usize = tensor.shape.iter().product();
            assert_eq!(file[tensor.range].len() * 8, elements * tensor.dtype.bitsize());
        }
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..20u64, u64::MAX - 20..=u64::MAX, Just(1 << 32), Just(1 << 61), any::<u64>()]
    }

    proptest! {
        #[test]
        fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse_is_sound(&bytes);
            parse_is_sound(&file(&String::from_utf8_lossy(&bytes), 8));
        }

        #[test]
        fn random_tensors(
            tensors in prop::collection::vec(
                ("[ab]", "U8|F4|BF16|F32|F64|X", prop::collection::vec(number(), 0..4), number(), number()),
                0..4,
            ),
            data_len in 0..40usize,
        ) {
            let entries: Vec<_> = tensors
                .iter()
                .map(|(name, dtype, shape, begin, end)| {
                    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
                })
                .collect();
            parse_is_sound(&file(&format!("{{{}}}", entries.join(",")), data_len));
        }

        #[test]
        fn changed_bytes(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut: prop::sample::Index) {
            let json = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}}"#;
            let mut bytes = file(json, 12);
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            parse_is_sound(&bytes);
            parse_is_sound(&bytes[..cut.index(bytes.len())]);
        }
    }
}
