//! Models from the Hugging Face hub, by way of the local cache that all of Hugging Face's tools share.
//!
//! `hf-hub` says where things are, on the hub and in the cache. The transfer is this module's own: it resumes, checks
//! size and SHA-256, puts a file under its final name only when it is whole, and takes no name from a server
//! unchecked. It knows nothing of what the files hold, but for the index that names the shards.

mod environment;
mod names;
mod remote;
mod retry;
mod roots;
mod store;
mod together;
mod transfer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::error::{Error, Result};
use crate::files::{self, ModelFiles};
use crate::index::ShardIndex;
use environment::Settings;
use remote::{Description, Remote};
use retry::{Stop, is_outage};
use roots::CertPaths;
use store::Store;

/// How long an answer is waited for unless the environment says.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Downloads the model `model_id` at `revision` (a branch, a tag or a commit; `main` is the usual one) into
/// Hugging Face's cache, or finds it there. A local folder is taken as it is, whatever the revision.
///
/// Config, tokenizer, chat template and weights are fetched, up to eight files at once, with progress bars if stderr is a
/// terminal. What the cache holds is not fetched again; what an earlier download left unfinished is resumed.
///
/// The environment is honoured as by Hugging Face's own tools: `HF_HOME` (where cache and token are; by default
/// `huggingface` in `XDG_CACHE_HOME`), `HF_HUB_CACHE` (where the cache is, elsewhere), `HF_TOKEN` (for private and gated
/// models) and `HF_TOKEN_PATH` (a file that holds it), `HF_ENDPOINT` (another hub), and `HF_HUB_OFFLINE` or
/// `TRANSFORMERS_OFFLINE` (no requests at all); `HF_HUB_DISABLE_IMPLICIT_TOKEN` (send no token) and
/// `HF_HUB_DISABLE_PROGRESS_BARS`; `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` (seconds to wait for the description of a
/// file, and for its next bytes; 30 by default). Connections go through the proxy of `ALL_PROXY`, `HTTPS_PROXY` or `HTTP_PROXY`,
/// but to the hosts of `NO_PROXY`. Certificates are checked by those in `SSL_CERT_FILE` and `SSL_CERT_DIR`, else
/// `REQUESTS_CA_BUNDLE`, else `CURL_CA_BUNDLE`; if none is set, by the system's, or by Mozilla's where the system has none.
///
/// # Errors
/// As [`Hub::download_model`]; [`Error::NoHome`], [`Error::Timeout`] and [`Error::Token`] for an unusable environment.
pub fn download_model(model_id: &str, revision: &str) -> Result<ModelFiles> {
    Hub::from_env()?.with_progress(true).download_model(model_id, revision)
}

/// A hub and a local cache of it.
#[derive(Clone)]
pub struct Hub {
    cache: Cache,
    endpoint: Option<String>,
    token: Option<String>,
    offline: bool,
    progress: Progress,
    /// The environment asks that no token is shown.
    is_token_withheld: bool,
    /// Longest wait for the description of a file, and for a connection to ask for it.
    etag_timeout: Duration,
    /// Longest wait for the next byte of a file, and for a connection to ask for it.
    download_timeout: Duration,
    /// Certificates to trust in place of the system's.
    certificates: Option<CertPaths>,
    /// Wait before the second attempt of a transfer; doubles with each further one.
    pause: Duration,
    system: System,
}

/// Whether progress is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Hidden,
    Shown,
    /// Hidden, whatever the caller says: the environment asks for it.
    Disabled,
}

/// What not every file system can do: [`System::default`], but for tests of those without.
#[derive(Clone, Copy)]
struct System {
    try_lock: fn(&File) -> Result<(), TryLockError>,
    /// Makes a link at the second path that leads to the first.
    symlink: fn(&Path, &Path) -> io::Result<()>,
}

impl Default for System {
    fn default() -> Self {
        #[cfg(unix)]
        let symlink = |original: &Path, link: &Path| std::os::unix::fs::symlink(original, link);
        // Links take a privilege elsewhere.
        #[cfg(not(unix))]
        let symlink = |_: &Path, _: &Path| Err(io::ErrorKind::Unsupported.into());
        Self { try_lock: File::try_lock, symlink }
    }
}

impl Hub {
    /// The public hub, cached in the folder `cache_dir` (its `models--…` folders are in there); no token, online.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache: Cache::new(cache_dir.into()),
            endpoint: None,
            token: None,
            offline: false,
            progress: Progress::Hidden,
            is_token_withheld: false,
            etag_timeout: DEFAULT_TIMEOUT,
            download_timeout: DEFAULT_TIMEOUT,
            certificates: None,
            pause: Duration::from_secs(1),
            system: System::default(),
        }
    }

    /// The hub and the cache that the environment names: see [`download_model`].
    ///
    /// Without `HF_TOKEN`, the token is the one that Hugging Face's login command stored.
    ///
    /// # Errors
    /// [`Error::NoHome`] if no variable says where the cache is and there is no home folder; [`Error::Timeout`] for a
    /// malformed time; [`Error::Token`] for a malformed token.
    pub fn from_env() -> Result<Self> {
        let settings = Settings::from_env()?;
        let stored = || fs::read_to_string(settings.token_path?).ok();
        let token = if settings.no_token { None } else { settings.token.or_else(stored) };
        let hub = Self::new(settings.cache_dir).with_token(token)?;
        Ok(Self {
            endpoint: settings.endpoint,
            offline: settings.offline,
            is_token_withheld: settings.no_token,
            progress: if settings.no_progress { Progress::Disabled } else { Progress::Hidden },
            etag_timeout: settings.etag_timeout.unwrap_or(hub.etag_timeout),
            download_timeout: settings.download_timeout.unwrap_or(hub.download_timeout),
            certificates: settings.certificates,
            ..hub
        })
    }

    /// Another hub, by the address that its paths are appended to.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// The token to show to the hub, and to no other host that it redirects to.
    ///
    /// # Errors
    /// [`Error::Token`] if it holds anything but visible ASCII.
    pub fn with_token(mut self, token: Option<String>) -> Result<Self> {
        self.token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        match &self.token {
            Some(token) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => Err(Error::Token),
            _ => Ok(self),
        }
    }

    /// Whether to make do with the cache, without a single request.
    #[must_use]
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Whether to show progress bars on stderr if it is a terminal. A hub by [`from_env`](Self::from_env) shows none if
    /// `HF_HUB_DISABLE_PROGRESS_BARS` says so.
    #[must_use]
    pub fn with_progress(mut self, progress: bool) -> Self {
        self.progress = match self.progress {
            Progress::Disabled => Progress::Disabled,
            _ if progress => Progress::Shown,
            _ => Progress::Hidden,
        };
        self
    }

    /// Downloads the model `model_id` at `revision` into the cache, or finds it there. A local folder is taken as it is.
    ///
    /// One request asks which commit `revision` is; all files are of that commit. If the hub can't be reached or is out
    /// of order, the model as last downloaded in full at `revision` is taken instead; if there is none, and for every
    /// file, it is asked up to five times, with pauses that grow, and that are as long as the hub asks for, up to five minutes. A
    /// `revision` that is a commit's full hash needs no request once it is cached.
    ///
    /// # Errors
    /// Every one says what to do. [`Error::ModelId`] and [`Error::Revision`] for names that can't be, [`Error::NotAFolder`]
    /// for one of a file; [`Error::NoSuchModel`],
    /// [`Error::NoSuchRevision`], [`Error::Gated`] and [`Error::MissingRemoteFile`] if the hub says no;
    /// [`Error::NotCached`] if offline; [`Error::Unreachable`], [`Error::Interrupted`], [`Error::Status`],
    /// [`Error::Corrupt`] and [`Error::BadAnswer`] for hubs and networks that fail; [`Error::Certificates`] and
    /// [`Error::Untrusted`] for certificates; [`Error::DiskFull`], [`Error::FileTooLarge`] and [`Error::Write`] for disks; those of [`ModelFiles::from_dir`].
    pub fn download_model(&self, model_id: &str, revision: &str) -> Result<ModelFiles> {
        self.download_model_with(model_id, revision, |_| Ok(())).map(|(files, ())| files)
    }

    /// As [`download_model`](Self::download_model), but has `read_config` read the `config.json` at the path that it is
    /// given before anything else is fetched: a model that can't be used is refused before its weights are downloaded.
    ///
    /// # Errors
    /// As [`download_model`](Self::download_model), and those of `read_config`.
    pub fn download_model_with<T, E: From<Error>>(
        &self,
        model_id: &str,
        revision: &str,
        read_config: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<(ModelFiles, T), E> {
        let path = Path::new(model_id);
        if path.is_dir() {
            return with_config(ModelFiles::from_dir(path)?, read_config);
        }
        if path.exists() {
            return Err(Error::NotAFolder { path: path.into() }.into());
        }
        names::check_model_id(model_id)?;
        names::check_revision(revision)?;
        let download = Download {
            hub: self,
            model_id,
            revision,
            store: Store::new(&self.cache, Repo::model(model_id.into()), self.system),
            remote: Remote::new(self, model_id, revision)?,
            bars: MultiProgress::new(),
            stop: Stop::default(),
        };
        if self.offline {
            with_config(download.cached()?, read_config)
        } else {
            download.online(read_config)
        }
    }

    fn api(&self) -> Result<Api> {
        let mut builder =
            ApiBuilder::from_cache(self.cache.clone()).with_token(None).with_progress(false);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').into());
        }
        builder.build().map_err(|source| Error::Client { source: source.into() })
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("cache_dir", self.cache.path())
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// One call of [`Hub::download_model_with`].
struct Download<'a> {
    hub: &'a Hub,
    model_id: &'a str,
    revision: &'a str,
    store: Store,
    remote: Remote<'a>,
    /// One for each file that is on its way.
    bars: MultiProgress,
    /// Ends all that is on its way.
    stop: Stop,
}

impl Download<'_> {
    fn online<T, E: From<Error>>(
        &self,
        read_config: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<(ModelFiles, T), E> {
        let cached = self.cached();
        let commit = match self.resolve(cached.is_ok()) {
            Ok(commit) => commit,
            Err(error) if is_outage(&error) || matches!(error, Error::Untrusted { .. }) => {
                return with_config(cached.map_err(|_| error)?, read_config);
            }
            Err(error) => return Err(error.into()),
        };
        self.require(&commit, files::CONFIG)?;
        let config = read_config(&self.store.snapshot(&commit).join(files::CONFIG))?;
        Ok((self.complete(&commit)?, config))
    }

    /// Fetches all files of `commit` but its config.
    fn complete(&self, commit: &str) -> Result<ModelFiles> {
        let has_tokenizer = self.fetch(commit, files::TOKENIZER)?;
        let vocab = files::VOCAB.into_iter().filter(|_| !has_tokenizer);
        let others: Vec<&str> =
            vocab.chain(files::TEXT).chain([files::GENERATION_CONFIG]).collect();
        together::for_each(&others, &self.stop, |file| self.fetch(commit, file).map(drop))?;
        if !self.fetch(commit, files::WEIGHTS)? {
            self.require(commit, files::WEIGHTS_INDEX)?;
            let index = ShardIndex::read(&self.store.snapshot(commit).join(files::WEIGHTS_INDEX))?;
            let shards: Vec<&str> = index.shard_names().into_iter().collect();
            together::for_each(&shards, &self.stop, |shard| self.require(commit, shard))?;
        }
        let files = ModelFiles::from_dir(self.store.snapshot(commit))?;
        // Last, so that the name never stands for a snapshot that is not whole.
        self.store.set_commit(self.revision, commit)?;
        Ok(files)
    }

    /// The snapshot that was last downloaded in full at this revision.
    fn cached(&self) -> Result<ModelFiles> {
        let not_cached = |source| Error::NotCached {
            model_id: self.model_id.into(),
            revision: self.revision.into(),
            cache_dir: self.hub.cache.path().clone(),
            source,
        };
        let Some(commit) = self.store.commit(self.revision) else {
            return Err(not_cached(None));
        };
        ModelFiles::from_dir(self.store.snapshot(&commit)).map_err(|error| match error {
            Error::MissingFile { .. } | Error::NoWeights { .. } | Error::MissingShard { .. } => {
                not_cached(Some(Box::new(error)))
            }
            error => error,
        })
    }

    /// The commit that the revision stands for; asked for once if the model `is_cached`, which will do in an outage.
    fn resolve(&self, is_cached: bool) -> Result<String> {
        if names::is_commit(self.revision) {
            return Ok(self.revision.into());
        }
        let description = if is_cached {
            self.remote.metadata(self.revision, files::CONFIG)
        } else {
            self.describe(self.revision, files::CONFIG)
        };
        match description? {
            Description::File(metadata) => Ok(metadata.commit),
            Description::Absent { .. } => Err(self.remote.missing(files::CONFIG)),
        }
    }

    /// Has the hub describe `file`, and says so if it takes more than one attempt.
    fn describe(&self, revision: &str, file: &str) -> Result<Description> {
        let bar = self.progress_bar(file, None);
        let attempt = || self.remote.metadata(revision, file);
        let description =
            self.hub.retry(&self.stop, |error, pause| tell(&bar, file, error, pause), attempt);
        bar.finish_and_clear();
        description
    }

    /// A message about `file`, and a bar beside it if there are so many bytes to come.
    fn progress_bar(&self, file: &str, size: Option<u64>) -> ProgressBar {
        if self.hub.progress != Progress::Shown {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(match size {
            Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})",
            None => "{msg}",
        });
        let bar = ProgressBar::no_length().with_style(style.expect("the template is valid"));
        if let Some(size) = size {
            bar.set_length(size);
        }
        // Hidden by itself where stderr is no terminal.
        let bar = self.bars.add(bar);
        if size.is_some() {
            bar.set_message(file.to_owned());
        }
        bar
    }

    /// Sees to it that the snapshot of `commit` has `file`, which must exist: the hub is asked whatever the cache says.
    fn require(&self, commit: &str, file: &str) -> Result<()> {
        if self.store.has(commit, file) || self.download(commit, file)? {
            Ok(())
        } else {
            Err(self.remote.missing(file))
        }
    }

    /// Sees to it that the snapshot of `commit` has `file`; false if that commit has no such file.
    fn fetch(&self, commit: &str, file: &str) -> Result<bool> {
        if self.store.has(commit, file) {
            return Ok(true);
        }
        if self.store.is_absent(commit, file) {
            return Ok(false);
        }
        self.download(commit, file)
    }

    /// Downloads `file` at `commit`, which the snapshot lacks; false if there is no such file.
    fn download(&self, commit: &str, file: &str) -> Result<bool> {
        let metadata = match self.describe(commit, file)? {
            Description::File(metadata) => metadata,
            Description::Absent { is_certain } => {
                if is_certain {
                    self.store.mark_absent(commit, file);
                }
                return Ok(false);
            }
        };
        let bar = self.progress_bar(file, Some(metadata.size.unwrap_or_default()));
        let lock = self.store.lock(&metadata.etag, &self.stop, || {
            bar.set_message(format!("{file}: waiting for another process that downloads it"));
            bar.tick();
        })?;
        // Whoever had the lock may have brought it.
        if self.store.has(commit, file) {
            bar.finish_and_clear();
            return Ok(true);
        }
        let is_cached = self.store.has_blob(&metadata);
        if !is_cached {
            bar.set_message(file.to_owned());
            transfer::run(self, commit, file, &metadata, lock.is_some(), &bar)?;
        }
        bar.finish_and_clear();
        self.store.link(commit, file, &metadata.etag, is_cached)?;
        Ok(true)
    }
}

/// Has `bar` say that `file` is asked for again after `pause`, and why.
fn tell(bar: &ProgressBar, file: &str, error: &Error, pause: Duration) {
    let reason = match error {
        Error::Status { status, .. } => format!("status {status} from the server"),
        Error::Interrupted { .. } => "the download broke off".to_owned(),
        _ => "no answer from the hub".to_owned(),
    };
    bar.set_message(format!("{file}: {reason}, trying again in {} s", pause.as_secs()));
    bar.tick();
}

/// `files`, and what `read_config` makes of their config.
fn with_config<T, E>(
    files: ModelFiles,
    read_config: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<(ModelFiles, T), E> {
    let config = read_config(&files.config)?;
    Ok((files, config))
}
