//! The header of a safetensors file, parsed and checked in full before any tensor is looked at.
//!
//! The file is untrusted. What passes [`Header::parse`] has unique names, known dtypes, sizes that agree with dtype and
//! shape, and data that fill the file from the end of the header to its last byte without gap or overlap.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{self, IntoDeserializer, MapAccess, Visitor, value};

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
        let RawHeader { mut tensors, metadata } = serde_json::from_slice(json)
            .map_err(|source| Error::Json { path: path.into(), what: "header", source })?;

        tensors.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(pair) = tensors.array_windows().find(|[(a, _), (b, _)]| a == b) {
            return Err(Error::DuplicateName { path: path.into(), name: pair[0].0.clone() });
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

/// The header as written: names may repeat, sizes may lie.
#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
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

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                header.metadata = map.next_value()?;
            } else {
                let tensor = map
                    .next_value()
                    .map_err(|error| de::Error::custom(format_args!("tensor `{name}`: {error}")))?;
                header.tensors.push((name, tensor));
            }
        }
        Ok(header)
    }
}
