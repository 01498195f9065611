//! Whose certificates are trusted.

use std::path::PathBuf;

use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use ureq::tls::{Certificate, RootCerts};

use crate::error::{Error, Result};

/// Certificates that a user names in place of the system's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CertPaths {
    /// The variables that name them.
    pub(super) names: &'static str,
    /// A file of certificates in PEM.
    pub(super) file: Option<PathBuf>,
    /// Folders of such files, which `c_rehash` has named.
    pub(super) dirs: Vec<PathBuf>,
}

impl CertPaths {
    /// As `requests` has it: one variable for either.
    pub(super) fn file_or_dir(names: &'static str, path: PathBuf) -> Self {
        if path.is_dir() {
            Self { names, file: None, dirs: vec![path] }
        } else {
            Self { names, file: Some(path), dirs: Vec::new() }
        }
    }

    fn list(&self) -> String {
        let paths = self.file.iter().chain(&self.dirs).map(|path| path.display().to_string());
        paths.collect::<Vec<_>>().join(" and ")
    }
}

/// The certificates that connections are checked by: those in `paths` alone, if a user names some; else the system's, or
/// Mozilla's where the system has none.
///
/// # Errors
/// [`Error::Certificates`] if there are none in `paths`.
pub(super) fn roots(paths: Option<&CertPaths>) -> Result<RootCerts> {
    let Some(paths) = paths else {
        let CertificateResult { certs, .. } = load_native_certs();
        return Ok(if certs.is_empty() { RootCerts::WebPki } else { specific(&certs) });
    };
    let file = paths.file.as_deref().map(|file| load_certs_from_paths(Some(file), None));
    let dirs = paths.dirs.iter().map(|dir| load_certs_from_paths(None, Some(dir)));
    let (mut certs, mut failure) = (Vec::new(), None);
    for CertificateResult { certs: found, errors, .. } in file.into_iter().chain(dirs) {
        certs.extend(found);
        failure = failure.or_else(|| errors.into_iter().next());
    }
    if certs.is_empty() {
        let source = failure.map(Into::into);
        return Err(Error::Certificates { names: paths.names, paths: paths.list(), source });
    }
    Ok(specific(&certs))
}

fn specific<T: AsRef<[u8]>>(certs: &[T]) -> RootCerts {
    let certs = certs.iter().map(|cert| Certificate::from_der(cert.as_ref()).to_owned());
    RootCerts::new_with_certs(&certs.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn certificates_that_are_not_there_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        fs::write(&empty, "no certificate\n").unwrap();
        for path in [dir.path().join("missing.pem"), empty, dir.path().to_owned()] {
            let paths = CertPaths::file_or_dir("REQUESTS_CA_BUNDLE", path.clone());
            let error = roots(Some(&paths)).unwrap_err().to_string();
            assert!(error.contains("REQUESTS_CA_BUNDLE"), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }
}
