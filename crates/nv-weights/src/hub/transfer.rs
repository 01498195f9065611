//! One file from the hub into the cache: resumed, checked, and only then put under its name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::remote::Metadata;
use super::store::{create_parent, write_error};
use super::{Download, names};
use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 18;

/// Downloads the blob of `file` at `commit`, by way of the file at `path`, which nobody else writes to.
///
/// The bytes grow there, and stay when the connection breaks, so that this or a later call takes up from there. Only what
/// a SHA-256 vouches for is taken up: other files are small.
pub(super) fn run(
    download: &Download<'_>,
    commit: &str,
    file: &str,
    metadata: &Metadata,
    path: &Path,
    bar: &ProgressBar,
) -> Result<()> {
    let mut target = Target { file, path, metadata, bar, out: open(path)? };
    let mut was_resumed = target.len()? > 0;
    if !target.has_sha256() {
        target.truncate()?;
        was_resumed = false;
    }
    loop {
        download
            .hub
            .retry(|| target.append(|offset| download.remote.content(commit, file, offset)))?;
        match target.check_sha256() {
            Ok(()) => break,
            // What was left from before may be to blame: once more from the start.
            Err(Error::Corrupt { .. }) if was_resumed => {
                target.truncate()?;
                was_resumed = false;
            }
            Err(error) => {
                let _ = fs::remove_file(path);
                return Err(error);
            }
        }
    }
    target.out.sync_all().map_err(|source| write_error(path, source))?;
    let blob = download.store.blob(&metadata.etag);
    fs::rename(path, &blob).map_err(|source| write_error(&blob, source))
}

fn open(path: &Path) -> Result<File> {
    create_parent(path)
        .and_then(|()| {
            File::options().read(true).write(true).create(true).truncate(false).open(path)
        })
        .map_err(|source| write_error(path, source))
}

/// A file on its way.
struct Target<'a> {
    /// Its name on the hub.
    file: &'a str,
    /// Where it grows.
    path: &'a Path,
    metadata: &'a Metadata,
    bar: &'a ProgressBar,
    out: File,
}

impl Target<'_> {
    fn has_sha256(&self) -> bool {
        names::is_sha256(&self.metadata.etag)
    }

    fn len(&self) -> Result<u64> {
        let metadata = self.out.metadata();
        Ok(metadata.map_err(|source| write_error(self.path, source))?.len())
    }

    fn truncate(&self) -> Result<()> {
        self.out.set_len(0).map_err(|source| write_error(self.path, source))
    }

    /// Adds the bytes that are missing, by one request if there are any.
    fn append(&mut self, request: impl FnOnce(u64) -> Result<Response<Body>>) -> Result<()> {
        let size = self.metadata.size;
        if self.len()? > size {
            self.truncate()?;
        }
        let offset = self.len()?;
        if offset == size {
            return Ok(());
        }
        let response = request(offset).map_err(|error| match error {
            Error::Unreachable { source, .. } => self.interrupted(offset, Some(source)),
            error => error,
        })?;
        let mut len = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if begins_at(&response, offset) => offset,
            // A server that can't resume: the next attempt asks for the whole file.
            _ => {
                self.truncate()?;
                return Err(self.interrupted(0, None));
            }
        };
        if len < offset {
            self.truncate()?;
        }
        self.out.seek(SeekFrom::Start(len)).map_err(|source| write_error(self.path, source))?;

        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            self.bar.set_position(len);
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.interrupted(len, Some(error.into()))),
            };
            len += read as u64;
            if len > size {
                self.truncate()?;
                let file = self.file.to_owned();
                return Err(Error::TooLong { file, expected: size });
            }
            self.out.write_all(&buffer[..read]).map_err(|source| write_error(self.path, source))?;
        }
        if len < size { Err(self.interrupted(len, None)) } else { Ok(()) }
    }

    /// Compares the file with its etag, if that is a SHA-256.
    fn check_sha256(&mut self) -> Result<()> {
        if !self.has_sha256() {
            return Ok(());
        }
        let found = sha256(&mut self.out)
            .map_err(|source| Error::Read { path: self.path.into(), source })?;
        if found == self.metadata.etag {
            return Ok(());
        }
        let (file, expected) = (self.file.into(), self.metadata.etag.clone());
        Err(Error::Corrupt { file, expected, found })
    }

    fn interrupted(
        &self,
        found: u64,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Interrupted { file: self.file.into(), expected: self.metadata.size, found, source }
    }
}

/// Whether the body of a partial answer begins `offset` bytes into the file.
fn begins_at(response: &Response<Body>, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range
        .and_then(|range| range.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(start, _)| start.trim().parse() == Ok(offset))
}

/// The SHA-256 of a whole file, in hexadecimal digits.
fn sha256(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hex(&hasher.finalize()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16));
    bytes.iter().flat_map(digits).flatten().collect()
}
