//! One file from the hub into the cache: resumed, checked, and only then put under its name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::remote::Metadata;
use super::store::{create_parent, replace, write_error};
use super::{Download, names, tell};
use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 18;

/// Downloads the blob of `file` at `commit`.
///
/// Where it `is_locked`, the bytes grow in a file that stays when the connection breaks, so that this or a later call takes up
/// from there. Only what a SHA-256 vouches for is taken up: other files are small.
///
/// Another process may be at that file too, for a lock may mean nothing on a network's file system. It writes the same bytes to the
/// same places. So nobody cuts the file or begins it anew: who must do so puts a new one in its place.
pub(super) fn run(
    download: &Download<'_>,
    commit: &str,
    file: &str,
    metadata: &Metadata,
    is_locked: bool,
    bar: &ProgressBar,
) -> Result<()> {
    let mut target = Target::open(download, commit, file, metadata, is_locked, bar)?;
    let result = target.fetch();
    if result.is_err() && target.is_own {
        // Nobody will look for it.
        let _ = fs::remove_file(&target.path);
    }
    result
}

/// A file on its way.
struct Target<'a> {
    download: &'a Download<'a>,
    commit: &'a str,
    /// Its name on the hub.
    file: &'a str,
    metadata: &'a Metadata,
    /// In bytes, by the hub or by who sends it.
    size: Option<u64>,
    bar: &'a ProgressBar,
    /// Where it grows.
    path: PathBuf,
    /// Nobody else has it.
    is_own: bool,
    out: File,
}

impl<'a> Target<'a> {
    fn open(
        download: &'a Download<'a>,
        commit: &'a str,
        file: &'a str,
        metadata: &'a Metadata,
        is_locked: bool,
        bar: &'a ProgressBar,
    ) -> Result<Self> {
        let is_own = !is_locked || !names::is_sha256(&metadata.etag);
        let path = if is_own {
            download.store.own_incomplete(&metadata.etag)
        } else {
            download.store.incomplete(&metadata.etag)
        };
        let out = create_parent(&path).and_then(|()| open(&path));
        let out = out.map_err(|source| write_error(&path, source))?;
        let size = metadata.size;
        Ok(Self { download, commit, file, metadata, size, bar, path, is_own, out })
    }

    fn fetch(&mut self) -> Result<()> {
        let mut was_resumed = self.len()? > 0;
        loop {
            let Download { hub, stop, .. } = self.download;
            let (bar, file) = (self.bar, self.file);
            hub.retry(stop, |error, pause| tell(bar, file, error, pause), || self.append())?;
            match self.check_sha256() {
                Ok(()) => break,
                // What was left from before may be to blame: once more from the start.
                Err(Error::Corrupt { .. }) if was_resumed => {
                    self.restart()?;
                    was_resumed = false;
                }
                Err(error) => {
                    let _ = fs::remove_file(&self.path);
                    return Err(error);
                }
            }
        }
        self.out.sync_all().map_err(|source| write_error(&self.path, source))?;
        self.finish()
    }

    fn has_sha256(&self) -> bool {
        names::is_sha256(&self.metadata.etag)
    }

    fn len(&self) -> Result<u64> {
        let metadata = self.out.metadata();
        Ok(metadata.map_err(|source| write_error(&self.path, source))?.len())
    }

    /// Begins anew, in a new file under the same name.
    fn restart(&mut self) -> Result<()> {
        let mut new = None;
        replace(&self.path, |path| {
            new = Some(open(path)?);
            Ok(())
        })?;
        self.out = new.expect("made just now");
        Ok(())
    }

    /// Adds the bytes that are missing, by one request if there are any.
    fn append(&mut self) -> Result<()> {
        if self.size.is_some_and(|size| self.len().is_ok_and(|len| len > size)) {
            self.restart()?;
        }
        let offset = self.len()?;
        if Some(offset) == self.size {
            return Ok(());
        }
        let response = self.download.remote.content(self.commit, self.file, offset);
        let response = response.map_err(|error| match error {
            Error::Unreachable { source, .. } => self.interrupted(offset, Some(source)),
            error => error,
        })?;
        let mut len = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if begins_at(&response, offset) => offset,
            // A server that can't resume: the next attempt asks for the whole file.
            _ => {
                self.restart()?;
                return Err(self.interrupted(0, None));
            }
        };
        if len < offset {
            self.restart()?;
        }
        let rest = header_number(&response, header::CONTENT_LENGTH);
        self.size = self.size.or(rest.map(|rest| len + rest));
        if self.size.is_none() && !is_chunked(&response) && !self.has_sha256() {
            return Err(self.download.remote.without_length(self.commit, self.file));
        }
        self.bar.set_message(self.file.to_owned());
        if let Some(size) = self.size {
            self.bar.set_length(size);
        }
        self.out.seek(SeekFrom::Start(len)).map_err(|source| write_error(&self.path, source))?;

        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            self.bar.set_position(len);
            if self.download.stop.is_raised() {
                return Err(self.interrupted(len, None));
            }
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.interrupted(len, Some(error.into()))),
            };
            len += read as u64;
            if let Some(expected) = self.size.filter(|&size| len > size) {
                self.restart()?;
                return Err(Error::TooLong { file: self.file.to_owned(), expected });
            }
            self.out
                .write_all(&buffer[..read])
                .map_err(|source| write_error(&self.path, source))?;
        }
        match self.size {
            Some(size) if len < size => Err(self.interrupted(len, None)),
            _ => Ok(()),
        }
    }

    /// Compares the file with its etag, if that is a SHA-256.
    fn check_sha256(&mut self) -> Result<()> {
        if !self.has_sha256() {
            return Ok(());
        }
        let found = sha256(&mut self.out)
            .map_err(|source| Error::Read { path: self.path.clone(), source })?;
        if found == self.metadata.etag {
            return Ok(());
        }
        let (file, expected) = (self.file.into(), self.metadata.etag.clone());
        Err(Error::Corrupt { file, expected, found })
    }

    /// Puts the whole file under its name.
    fn finish(&mut self) -> Result<()> {
        let Download { store, .. } = self.download;
        if !self.is_own && !self.claim()? {
            if store.has_blob(self.metadata) {
                return Ok(());
            }
            // Another process has put another file in this one's place: this one has no name any more.
            self.copy_to_own()?;
        }
        let blob = store.blob(&self.metadata.etag);
        fs::rename(&self.path, &blob).map_err(|source| write_error(&blob, source))
    }

    /// Gives the file a name that nobody else has; false if it is not there under its name any more.
    fn claim(&mut self) -> Result<bool> {
        let own = self.download.store.own_incomplete(&self.metadata.etag);
        match fs::rename(&self.path, &own) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(write_error(&own, source)),
        }
        let is_this = is_same(&own, &self.out).map_err(|source| write_error(&own, source))?;
        if is_this {
            (self.path, self.is_own) = (own, true);
        } else {
            fs::rename(&own, &self.path).map_err(|source| write_error(&self.path, source))?;
        }
        Ok(is_this)
    }

    fn copy_to_own(&mut self) -> Result<()> {
        self.path = self.download.store.own_incomplete(&self.metadata.etag);
        self.is_own = true;
        let mut copy = || {
            let mut own = open(&self.path)?;
            self.out.rewind()?;
            io::copy(&mut self.out, &mut own)?;
            own.sync_all()
        };
        copy().map_err(|source| write_error(&self.path, source))
    }

    fn interrupted(
        &self,
        found: u64,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Interrupted { file: self.file.into(), expected: self.size, found, source }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Whether `path` is a name of `file`.
#[cfg(unix)]
fn is_same(path: &Path, file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;

    let (named, open) = (fs::metadata(path)?, file.metadata()?);
    Ok((named.dev(), named.ino()) == (open.dev(), open.ino()))
}

/// Whether `path` is a name of `file`: elsewhere an open file keeps its name.
#[cfg(not(unix))]
fn is_same(_: &Path, _: &File) -> io::Result<bool> {
    Ok(true)
}

/// Whether the body of a partial answer begins `offset` bytes into the file.
fn begins_at(response: &Response<Body>, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range
        .and_then(|range| range.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(start, _)| start.trim().parse() == Ok(offset))
}

fn header_number(response: &Response<Body>, name: header::HeaderName) -> Option<u64> {
    response.headers().get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Whether the body itself says where it ends.
fn is_chunked(response: &Response<Body>) -> bool {
    let encoding = response.headers().get(header::TRANSFER_ENCODING);
    encoding.is_some_and(|encoding| encoding.as_bytes().ends_with(b"chunked"))
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
