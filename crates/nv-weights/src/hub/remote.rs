//! The hub over HTTP: what a file is, and its bytes.
//!
//! Redirects are followed by hand, for two reasons: the hub describes a file in the answer that redirects to its
//! bytes, and the token must go to no other origin (scheme, host and port) than the hub's.

use std::sync::{Mutex, PoisonError};

use hf_hub::api::sync::Api;
use hf_hub::{Repo, RepoType};
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::retry::retry_after;
use super::roots::roots;
use super::{Hub, names};
use crate::error::{Error, Result};

const MAX_REDIRECTS: usize = 10;
const USER_AGENT: &str = concat!("nano-vllm-rs/", env!("CARGO_PKG_VERSION"));

/// One model on a hub.
pub(super) struct Remote<'a> {
    hub: &'a Hub,
    model_id: &'a str,
    revision: &'a str,
    token: Option<&'a str>,
    api: Api,
    /// Made for the first request: what is cached needs no certificates.
    agent: Mutex<Option<Agent>>,
}

/// What the hub says when it is asked for a file.
#[derive(Debug)]
pub(super) enum Description {
    /// There is one.
    File(Metadata),
    /// There is none.
    Absent {
        /// Whether the hub says so of that very commit. Else whatever answers with status 404 may be no hub at all.
        is_certain: bool,
    },
}

/// What the hub says of a file that there is.
#[derive(Debug)]
pub(super) struct Metadata {
    /// The commit that the asked-for revision stands for: 40 hexadecimal digits.
    pub(super) commit: String,
    /// Names the content, and may name a file: see [`names::is_etag`].
    pub(super) etag: String,
    /// In bytes, if the hub says.
    pub(super) size: Option<u64>,
}

impl<'a> Remote<'a> {
    /// Makes no request. `revision` is the one that errors speak of.
    pub(super) fn new(hub: &'a Hub, model_id: &'a str, revision: &'a str) -> Result<Self> {
        let (token, agent) = (hub.token.as_deref(), Mutex::default());
        Ok(Self { hub, model_id, revision, token, api: hub.api()?, agent })
    }

    /// The client, whose copies share their connections.
    fn agent(&self) -> Result<Agent> {
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = &*agent {
            return Ok(agent.clone());
        }
        let roots = roots(self.hub.certificates.as_ref())?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(USER_AGENT)
            // Sizes and ranges are those of the file, not of a compressed form.
            .accept_encoding("identity")
            .tls_config(TlsConfig::builder().root_certs(roots).build());
        Ok(agent.insert(config.build().into()).clone())
    }

    /// Describes `file` at `revision`.
    ///
    /// If `revision` is a commit, so is the one described.
    pub(super) fn metadata(&self, revision: &str, file: &str) -> Result<Description> {
        let url = self.url(revision, file);
        let (response, from) = self.send(Method::HEAD, &url, 0)?;
        let is_redirect = response.status().is_redirection();
        if !is_redirect && !self.is_there(&url, &response, &from)? {
            let header = |name| response.headers().get(name).map(HeaderValue::as_bytes);
            let is_certain = header("x-error-code") == Some(b"EntryNotFound")
                && header("x-repo-commit") == Some(revision.as_bytes());
            return Ok(Description::Absent { is_certain });
        }
        let field = |names: &[&'static str], is_valid: fn(&str) -> bool| {
            let found = names.iter().find_map(|&name| Some((name, response.headers().get(name)?)));
            let (name, value) = found.unzip();
            let text = value.and_then(|value| value.to_str().ok()).map(unquote);
            text.filter(|text| is_valid(text)).map(str::to_owned).ok_or_else(|| Error::BadAnswer {
                url: url.clone(),
                header: name.unwrap_or(names[0]),
                found: value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
            })
        };
        let commit = field(&["x-repo-commit"], names::is_commit)?;
        if names::is_commit(revision) && commit != revision {
            return Err(Error::BadAnswer { url, header: "x-repo-commit", found: Some(commit) });
        }
        let etag = field(&["x-linked-etag", "etag"], names::is_etag)?;
        // The length of an answer that redirects is its own, not the file's.
        let sizes: &[_] =
            if is_redirect { &["x-linked-size"] } else { &["x-linked-size", "content-length"] };
        let size = match field(sizes, |text| text.parse::<u64>().is_ok()) {
            Ok(size) => Some(size.parse().expect("checked just now")),
            // A proxy in between may leave it out.
            Err(Error::BadAnswer { found: None, .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Description::File(Metadata { commit, etag, size }))
    }

    /// Asks for the bytes of `file` at `commit`, from `offset` on if the server can.
    /// Returns an answer of status 200, 206 or 416.
    pub(super) fn content(&self, commit: &str, file: &str, offset: u64) -> Result<Response<Body>> {
        let url = self.url(commit, file);
        let (response, from) = self.send(Method::GET, &url, offset)?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE
            || self.is_there(&url, &response, &from)?
        {
            Ok(response)
        } else {
            Err(self.missing(file))
        }
    }

    /// The error for a `file` that the model should have and has not.
    pub(super) fn missing(&self, file: &str) -> Error {
        Error::MissingRemoteFile { url: self.url(self.revision, file) }
    }

    /// The error for an answer that doesn't tell a `file` that broke off from a whole one.
    pub(super) fn without_length(&self, commit: &str, file: &str) -> Error {
        Error::BadAnswer { url: self.url(commit, file), header: "content-length", found: None }
    }

    /// The address of `file`; names are of checked characters, but for those of shards.
    fn url(&self, revision: &str, file: &str) -> String {
        let repo = Repo::with_revision(self.model_id.into(), RepoType::Model, revision.into());
        self.api.repo(repo).url(&percent_encode(file))
    }

    /// Sends a request, following redirects until an answer of another kind; of a HEAD, until one that describes the
    /// file and redirects to another origin. Returns the answer and the address that gave it.
    fn send(&self, method: Method, url: &str, offset: u64) -> Result<(Response<Body>, Uri)> {
        let agent = self.agent()?;
        let failed = |source: ureq::Error| match source {
            source if is_untrusted(&source) => {
                Error::Untrusted { url: url.into(), source: source.into() }
            }
            source => Error::Unreachable { url: url.into(), source: source.into() },
        };
        let timeout = match method {
            Method::HEAD => self.hub.etag_timeout,
            _ => self.hub.download_timeout,
        };
        let hub: Uri = url.parse().map_err(|_| Error::Url { url: url.into() })?;
        if origin(&hub).is_none() {
            return Err(Error::Url { url: url.into() });
        }
        let mut target = hub.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(&method).uri(&target);
            if let Some(token) = self.token.filter(|_| origin(&target) == origin(&hub)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if offset > 0 {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            let request = request.body(()).map_err(|error| failed(error.into()))?;
            let request = agent
                .configure_request(request)
                .timeout_connect(Some(timeout))
                .timeout_recv_response(Some(timeout))
                .timeout_per_read(Some(timeout))
                .build();
            let response = agent.run(request).map_err(failed)?;
            if !response.status().is_redirection() {
                return Ok((response, target));
            }
            let location =
                response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let Some(next) = location.and_then(|location| resolve(&target, location)) else {
                let found = location.map(without_query);
                return Err(Error::BadAnswer { url: url.into(), header: "location", found });
            };
            let is_description = method == Method::HEAD && describes(response.headers());
            if is_description && origin(&next) != origin(&target) {
                return Ok((response, target));
            }
            target = next;
        }
        let found = Some(without_query(&target.to_string()));
        Err(Error::BadAnswer { url: url.into(), header: "location", found })
    }

    /// Whether an answer by the address `from`, which is no redirect, brings the file of `url`; an error if it says
    /// neither yes nor no. Of the model it says something only if it is the hub's.
    fn is_there(&self, url: &str, response: &Response<Body>, from: &Uri) -> Result<bool> {
        let status = response.status().as_u16();
        let code = response.headers().get("x-error-code").map(HeaderValue::as_bytes);
        let hub: Option<Uri> = url.parse().ok();
        let is_hubs = code.is_some() || hub.is_some_and(|hub| origin(&hub) == origin(from));
        let model_id = || self.model_id.to_owned();
        let (has_token, is_withheld) = (self.token.is_some(), self.hub.is_token_withheld);
        match (status, code.unwrap_or_default()) {
            (200 | 206, _) => Ok(true),
            (_, b"RevisionNotFound") => {
                Err(Error::NoSuchRevision { model_id: model_id(), revision: self.revision.into() })
            }
            (401 | 403 | 404, _) if !is_hubs => Err(unclear(from, response)),
            (_, b"GatedRepo") | (403, _) => {
                Err(Error::Gated { model_id: model_id(), has_token, is_withheld })
            }
            (_, b"RepoNotFound") | (401, _) => {
                let (model_id, url) = (model_id(), url.into());
                Err(Error::NoSuchModel { model_id, url, has_token, is_withheld })
            }
            (404, _) => Ok(false),
            _ => Err(unclear(from, response)),
        }
    }
}

/// The error for a status by the address `from` that says nothing of the model.
fn unclear(from: &Uri, response: &Response<Body>) -> Error {
    Error::Status {
        url: without_query(&from.to_string()),
        status: response.status().as_u16(),
        retry_after: retry_after(response.headers()),
    }
}

/// Whether a certificate is to blame.
fn is_untrusted(error: &ureq::Error) -> bool {
    let error = match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref().and_then(|error| error.downcast_ref()),
        _ => None,
    };
    matches!(error, Some(rustls::Error::InvalidCertificate(_)))
}

/// An address less its query, in which those of storage are signed.
fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_owned()
}

/// Whether an answer says what the file is, rather than only where.
fn describes(headers: &HeaderMap) -> bool {
    headers.contains_key("x-repo-commit")
}

/// An etag without its quotes and its mark of weakness.
fn unquote(etag: &str) -> &str {
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or(etag)
}

/// Scheme, host and port; `None` unless it is an address of HTTP with a host.
fn origin(uri: &Uri) -> Option<(&str, String, u16)> {
    let default_port = match uri.scheme_str()? {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let host = uri.host()?.to_ascii_lowercase();
    Some((uri.scheme_str()?, host, uri.port_u16().unwrap_or(default_port)))
}

/// Where a `Location` leads from `base`; `None` if it is malformed or leaves an encrypted connection for a plain one.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let next: Uri = if location.starts_with("//") {
        format!("{}:{location}", base.scheme_str()?).parse().ok()?
    } else if location.starts_with('/') {
        format!("{}://{}{location}", base.scheme_str()?, base.authority()?).parse().ok()?
    } else {
        location.parse().ok()?
    };
    let ((from, ..), (to, ..)) = (origin(base)?, origin(&next)?);
    (from == to || to == "https").then_some(next)
}

/// `name`, which may lie in a folder, as the end of an address's path.
fn percent_encode(name: &str) -> String {
    let encode = |byte: u8| match byte {
        b'/' | b'-' | b'_' | b'.' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(encode).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let check = |base: &str, location, expected: Option<&str>| {
            let found = resolve(&base.parse().unwrap(), location).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{base} {location}");
        };
        let base = "https://hub.example:8443/a/b?c";
        check(base, "/x?y", Some("https://hub.example:8443/x?y"));
        check(base, "//cdn.example/x", Some("https://cdn.example/x"));
        check(base, "https://cdn.example/x", Some("https://cdn.example/x"));
        check("http://hub.example/", "https://hub.example/", Some("https://hub.example/"));
        for refused in
            ["", "x", "http://hub.example:8443/x", "ftp://hub.example/x", "https://", "file:///x"]
        {
            check(base, refused, None);
        }
    }

    #[test]
    fn origins() {
        let check = |a: &str, b: &str, same| {
            let (a, b): (Uri, Uri) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(origin(&a).is_some() && origin(&a) == origin(&b), same, "{a} {b}");
        };
        check("https://hub.example/a", "https://HUB.example:443/b", true);
        check("https://hub.example/a", "http://hub.example/a", false);
        check("http://hub.example:1/a", "http://hub.example:2/a", false);
        check("http://hub.example/a", "http://hub.example.org/a", false);
        check("ftp://hub.example/a", "ftp://hub.example/a", false);
    }

    #[test]
    fn etags_lose_their_quotes() {
        for quoted in ["abc", "\"abc\"", "W/\"abc\""] {
            assert_eq!(unquote(quoted), "abc");
        }
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(percent_encode("model-1_2.safetensors~"), "model-1_2.safetensors~");
        assert_eq!(percent_encode("a b?c#d%é"), "a%20b%3Fc%23d%25%C3%A9");
    }
}
