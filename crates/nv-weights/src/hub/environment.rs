//! What the environment says of cache, token and hub, read as Hugging Face's own tools read it.
//!
//! Source: `huggingface_hub/constants.py`. A variable that is empty counts as not set.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::roots::CertPaths;
use crate::error::{Error, Result};

/// What is set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The folder of the `models--…` folders.
    pub(super) cache_dir: PathBuf,
    pub(super) endpoint: Option<String>,
    pub(super) token: Option<String>,
    /// Where a login stores a token; `None` if there is no such place.
    pub(super) token_path: Option<PathBuf>,
    pub(super) offline: bool,
    /// The user asks that no token is sent.
    pub(super) no_token: bool,
    /// The user asks for no progress bars.
    pub(super) no_progress: bool,
    /// The longest wait when a file is described.
    pub(super) etag_timeout: Option<Duration>,
    /// The longest wait for the next bytes of a file.
    pub(super) download_timeout: Option<Duration>,
    pub(super) certificates: Option<CertPaths>,
}

impl Settings {
    pub(super) fn from_env() -> Result<Self> {
        Self::from_vars(|name| env::var_os(name), env::home_dir().as_deref())
    }

    /// Settings by the variables that `var` finds, for a user with the home folder `home`.
    fn from_vars(var: impl Fn(&str) -> Option<OsString>, home: Option<&Path>) -> Result<Self> {
        let var = |name: &str| var(name).filter(|value| !value.to_string_lossy().trim().is_empty());
        let text = |name: &str| var(name).and_then(|value| value.into_string().ok());
        let folder = |name: &str| {
            var(name).map(|value| match value.into_string() {
                Ok(text) => expand(&text, home, |name| var(name)?.into_string().ok()),
                Err(value) => value.into(),
            })
        };
        let switch = |name: &str| text(name).is_some_and(|value| is_truthy(&value));
        let timeout =
            |name: &'static str| text(name).map(|value| seconds(name, &value)).transpose();
        let hf_home = folder("HF_HOME").or_else(|| {
            let caches = folder("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")));
            Some(caches?.join("huggingface"))
        });
        let cache_dir = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(hf_home.as_ref()?.join("hub")));
        Ok(Self {
            cache_dir: cache_dir.ok_or(Error::NoHome)?,
            endpoint: text("HF_ENDPOINT"),
            token: text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")),
            token_path: folder("HF_TOKEN_PATH").or_else(|| Some(hf_home?.join("token"))),
            offline: text("HF_HUB_OFFLINE")
                .or_else(|| text("TRANSFORMERS_OFFLINE"))
                .is_some_and(|value| is_truthy(&value)),
            no_token: switch("HF_HUB_DISABLE_IMPLICIT_TOKEN"),
            no_progress: switch("HF_HUB_DISABLE_PROGRESS_BARS"),
            etag_timeout: timeout("HF_HUB_ETAG_TIMEOUT")?,
            download_timeout: timeout("HF_HUB_DOWNLOAD_TIMEOUT")?,
            certificates: certificates(|name| var(name).map(PathBuf::from)),
        })
    }
}

/// Where trusted certificates are: by the names of OpenSSL, else by those of Python's `requests` and of curl.
fn certificates(var: impl Fn(&str) -> Option<PathBuf>) -> Option<CertPaths> {
    let file = var("SSL_CERT_FILE");
    let dirs: Vec<_> = var("SSL_CERT_DIR").iter().flat_map(env::split_paths).collect();
    if file.is_some() || !dirs.is_empty() {
        return Some(CertPaths { names: "SSL_CERT_FILE and SSL_CERT_DIR", file, dirs });
    }
    ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
        .into_iter()
        .find_map(|name| Some(CertPaths::file_or_dir(name, var(name)?)))
}

/// The seconds that the variable `name` gives.
fn seconds(name: &'static str, value: &str) -> Result<Duration> {
    let seconds = value.trim().parse().ok().filter(|&seconds: &f64| seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| Error::Timeout { name, found: value.to_owned() })
}

/// `path` with the home folder for a `~` in front, and the values of variables for `$NAME` and `${NAME}`; what there
/// is no value for stays as it is.
fn expand(path: &str, home: Option<&Path>, var: impl Fn(&str) -> Option<String>) -> PathBuf {
    let path = match (home.and_then(Path::to_str), path.strip_prefix('~')) {
        (Some(home), Some(rest)) if rest.is_empty() || rest.starts_with('/') => {
            format!("{home}{rest}")
        }
        _ => path.to_owned(),
    };
    let mut expanded = String::new();
    let mut rest = path.as_str();
    while let Some((before, after)) = rest.split_once('$') {
        expanded += before;
        let is_in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, behind) = match after.strip_prefix('{').and_then(|after| after.split_once('}')) {
            Some(parts) => parts,
            None => after.split_at(after.find(|c| !is_in_name(c)).unwrap_or(after.len())),
        };
        if let Some(value) = var(name) {
            expanded += &value;
            rest = behind;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    (expanded + rest).into()
}

fn is_truthy(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)], home: Option<&str>) -> Result<Settings> {
        let var = |name: &str| vars.iter().find(|(other, _)| *other == name);
        Settings::from_vars(|name| Some(var(name)?.1.into()), home.map(Path::new))
    }

    #[test]
    fn cache_and_token_are_where_other_tools_have_them() {
        // Expected values printed by huggingface_hub 2.4, but for empty variables.
        let check = |vars: &[(&str, &str)], cache_dir: &str, token_path: &str| {
            let settings = settings(vars, Some("/me")).unwrap();
            assert_eq!(settings.cache_dir, Path::new(cache_dir), "{vars:?}");
            assert_eq!(settings.token_path.as_deref(), Some(Path::new(token_path)), "{vars:?}");
        };
        let home = "/me/.cache/huggingface";
        let (hub, token) = (format!("{home}/hub"), format!("{home}/token"));
        check(&[], &hub, &token);
        check(&[("HF_HOME", ""), ("HF_HUB_CACHE", " "), ("HF_TOKEN_PATH", "")], &hub, &token);
        check(&[("HF_HOME", "/hf")], "/hf/hub", "/hf/token");
        check(&[("HF_HOME", "~/hf")], "/me/hf/hub", "/me/hf/token");
        check(&[("HF_HOME", "~")], "/me/hub", "/me/token");
        check(&[("HF_HOME", "~me/hf")], "~me/hf/hub", "~me/hf/token");
        check(&[("XDG_CACHE_HOME", "/xdg")], "/xdg/huggingface/hub", "/xdg/huggingface/token");
        check(&[("XDG_CACHE_HOME", "/xdg"), ("HF_HOME", "/hf")], "/hf/hub", "/hf/token");
        // The token does not follow the cache.
        check(&[("HUGGINGFACE_HUB_CACHE", "/old")], "/old", &token);
        check(&[("HF_HUB_CACHE", "~/new"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/me/new", &token);
        check(&[("HF_HUB_CACHE", "/new"), ("HF_HOME", "/hf")], "/new", "/hf/token");
        check(&[("HF_TOKEN_PATH", "~/t"), ("HF_HOME", "/hf")], "/hf/hub", "/me/t");
        // Variables.
        let disk = ("DISK", "/disk");
        check(&[disk, ("HF_HOME", "$DISK/hf")], "/disk/hf/hub", "/disk/hf/token");
        check(&[disk, ("HF_HOME", "${DISK}s/hf")], "/disks/hf/hub", "/disks/hf/token");
        check(
            &[disk, ("HF_HOME", "/$NONE/${/$$DISK")],
            "/$NONE/${/$/disk/hub",
            "/$NONE/${/$/disk/token",
        );
    }

    #[test]
    fn a_home_folder_is_needed_only_where_nothing_else_is_named() {
        assert!(matches!(settings(&[], None), Err(Error::NoHome)));
        let found = settings(&[("HF_HUB_CACHE", "/hub")], None).unwrap();
        assert_eq!((found.cache_dir, found.token_path), ("/hub".into(), None));
        assert_eq!(
            settings(&[("XDG_CACHE_HOME", "/x")], None).unwrap().cache_dir,
            Path::new("/x/huggingface/hub")
        );
    }

    #[test]
    fn newer_names_come_before_older_ones() {
        let check = |vars: &[(&str, &str)], token: Option<&str>, offline: bool| {
            let settings = settings(vars, Some("/me")).unwrap();
            assert_eq!((settings.token.as_deref(), settings.offline), (token, offline), "{vars:?}");
        };
        check(&[], None, false);
        check(&[("HF_TOKEN", "new"), ("HUGGING_FACE_HUB_TOKEN", "old")], Some("new"), false);
        check(&[("HF_TOKEN", ""), ("HUGGING_FACE_HUB_TOKEN", "old")], Some("old"), false);
        check(&[("TRANSFORMERS_OFFLINE", "1")], None, true);
        check(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")], None, false);
        check(&[("HF_HUB_OFFLINE", "yes"), ("TRANSFORMERS_OFFLINE", "0")], None, true);
    }

    #[test]
    fn waits_bars_and_tokens_are_set_as_for_other_tools() {
        let read = |vars: &[(&str, &str)]| settings(vars, Some("/me"));
        let found = read(&[
            ("HF_HUB_ETAG_TIMEOUT", "3"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", " 0.5 "),
            ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true"),
        ])
        .unwrap();
        assert_eq!(found.etag_timeout, Some(Duration::from_secs(3)));
        assert_eq!(found.download_timeout, Some(Duration::from_millis(500)));
        assert!(found.no_progress && found.no_token);
        let found = read(&[
            ("HF_HUB_ETAG_TIMEOUT", ""),
            ("HF_HUB_DISABLE_PROGRESS_BARS", "0"),
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "no"),
        ])
        .unwrap();
        assert_eq!((found.etag_timeout, found.download_timeout), (None, None));
        assert!(!found.no_progress && !found.no_token);
        for nonsense in ["0", "-1", "ten", "inf", "NaN", "1e300"] {
            let error = read(&[("HF_HUB_ETAG_TIMEOUT", nonsense)]).unwrap_err().to_string();
            assert!(error.contains("HF_HUB_ETAG_TIMEOUT") && error.contains(nonsense), "{error}");
        }
    }

    #[test]
    fn certificates_are_where_the_environment_names_them() {
        let check = |vars: &[(&str, &str)], file: Option<&str>, dirs: &[&str]| {
            let found = settings(vars, Some("/me")).unwrap().certificates;
            let (found_file, found_dirs) = found.map(|paths| (paths.file, paths.dirs)).unzip();
            assert_eq!(found_file.flatten().as_deref(), file.map(Path::new), "{vars:?}");
            let dirs: Vec<PathBuf> = dirs.iter().map(PathBuf::from).collect();
            assert_eq!(found_dirs.unwrap_or_default(), dirs, "{vars:?}");
        };
        check(&[], None, &[]);
        check(&[("SSL_CERT_FILE", "/a.pem")], Some("/a.pem"), &[]);
        check(
            &[("SSL_CERT_FILE", "/a.pem"), ("SSL_CERT_DIR", "/d:/e")],
            Some("/a.pem"),
            &["/d", "/e"],
        );
        check(&[("SSL_CERT_FILE", ""), ("REQUESTS_CA_BUNDLE", "/r.pem")], Some("/r.pem"), &[]);
        check(&[("SSL_CERT_FILE", "/a.pem"), ("CURL_CA_BUNDLE", "/c.pem")], Some("/a.pem"), &[]);
        let (r, c) = (("REQUESTS_CA_BUNDLE", "/r.pem"), ("CURL_CA_BUNDLE", "/c.pem"));
        check(&[c, r], Some("/r.pem"), &[]);
        check(&[c], Some("/c.pem"), &[]);
        check(&[("CURL_CA_BUNDLE", "/")], None, &["/"]);
    }

    #[test]
    fn switches_are_read_as_other_tools_read_them() {
        for (value, expected) in
            [("1", true), ("True", true), ("YES", true), ("on", true), ("0", false), ("", false)]
        {
            assert_eq!(is_truthy(value), expected, "{value}");
        }
    }
}
