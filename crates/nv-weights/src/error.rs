//! What can go wrong between a model's name and its tensors.

use std::io;
use std::path::PathBuf;
#[cfg(feature = "hub")]
use std::time::Duration;

use safetensors::Dtype;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint could not be found, read or trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file could not be mapped into memory.
    #[error("cannot map {path} into memory: {num_bytes} bytes, which `ulimit -v` may limit")]
    Map {
        /// The file.
        path: PathBuf,
        /// Its size.
        num_bytes: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no memory for a copy of a file.
    #[error("no memory for a copy of {path}: {num_bytes} bytes; map it instead")]
    Memory {
        /// The file.
        path: PathBuf,
        /// Its size.
        num_bytes: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A path leads to something other than a regular file.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// No weight files were given.
    #[error("no weight files were given")]
    NoFiles,

    /// A repository was cloned without the large files that its pointers stand for.
    #[error(
        "{path} is a Git LFS pointer, not the weights it stands for; run `git lfs pull` in its folder"
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A file is in another format, or a page that a server sent in its place.
    #[error("{path} is not a safetensors file: it looks like {found}")]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What the first bytes look like.
        found: &'static str,
    },
    /// A file ends before its header does.
    #[error(
        "{path} is cut short: its header needs {expected} bytes, the file has {found}; fetch it again"
    )]
    TruncatedHeader {
        /// The file.
        path: PathBuf,
        /// The least number of bytes the file must have.
        expected: usize,
        /// The number of bytes it has.
        found: usize,
    },
    /// A file ends before its tensors do.
    #[error(
        "{path} is cut short: tensor `{name}` lies past its end; expected {expected} bytes, found {found}; fetch it again"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The first tensor whose data are not all there.
        name: String,
        /// The number of bytes the header promises.
        expected: usize,
        /// The number of bytes the file has.
        found: usize,
    },
    /// A file goes on after its last tensor.
    #[error("{path}: expected {expected} bytes by its header, found {found}")]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// The number of bytes the header promises.
        expected: usize,
        /// The number of bytes the file has.
        found: usize,
    },
    /// A safetensors header or a shard index is not the JSON it should be.
    #[error("{path}: malformed {what}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Which part of it: `header` or `shard index`.
        what: &'static str,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// One file names a tensor twice.
    #[error("{path} names tensor `{name}` twice")]
    DuplicateName {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A header gives a tensor a dtype that safetensors does not define.
    #[error("{path}: tensor `{name}`: unknown dtype `{dtype}`")]
    UnknownDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The dtype as written.
        dtype: String,
    },
    /// A tensor's size does not fit an address, or is no whole number of bytes.
    #[error("{path}: tensor `{name}`: {dtype} {shape:?} has no valid size in bytes")]
    TensorSize {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The dtype.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
    },
    /// A tensor's data do not start where the previous tensor's data end.
    #[error("{path}: tensor `{name}`: data must begin at offset {expected}, found {found}")]
    TensorOffset {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Where its data should begin, counted from the end of the header.
        expected: usize,
        /// Where they begin.
        found: usize,
    },
    /// A tensor's data offsets disagree with its dtype and shape.
    #[error(
        "{path}: tensor `{name}`: {dtype} {shape:?} takes {expected} bytes, its data offsets are {begin} and {end}"
    )]
    TensorLength {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The dtype.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
        /// The number of bytes that dtype and shape make.
        expected: usize,
        /// The first data offset.
        begin: usize,
        /// The second data offset.
        end: usize,
    },

    /// Two files hold a tensor of the same name.
    #[error("tensor `{name}` is in two files, {first} and {second}")]
    DuplicateTensor {
        /// The tensor.
        name: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// No file holds the tensor that was asked for.
    #[error("tensor `{name}`{} is not in {}", in_brackets(stored_as.as_deref()), join(paths))]
    TensorNotFound {
        /// The tensor.
        name: String,
        /// The name that a file's metadata give for it.
        stored_as: Option<String>,
        /// The files of the checkpoint.
        paths: Vec<PathBuf>,
    },
    /// A tensor has another shape than the one asked for.
    #[error("{path}: tensor `{name}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape asked for.
        expected: Vec<usize>,
        /// The shape stored.
        found: Vec<usize>,
    },
    /// A tensor has another dtype than the one asked for.
    #[error("{path}: tensor `{name}`: expected dtype {expected}, found {found}")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The dtype asked for.
        expected: Dtype,
        /// The dtype stored.
        found: Dtype,
    },
    /// A tensor's data do not lie at a multiple of its element size, so they cannot be borrowed as elements.
    #[error("{path}: tensor `{name}`: data are not aligned for {dtype}")]
    Misaligned {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The dtype.
        dtype: Dtype,
    },
    /// Weights are stored in a dtype that the `VarBuilder` does not convert.
    #[error(
        "{path}: tensor `{name}`: dtype {dtype} is not supported; use BF16, F16, F32 or F64 weights"
    )]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The dtype stored.
        dtype: Dtype,
    },

    /// A shard index lists no tensor.
    #[error("{path} lists no tensor")]
    EmptyIndex {
        /// The index.
        path: PathBuf,
    },
    /// A shard index names a shard by something other than the name of a file beside it.
    #[error("{path} puts tensor `{name}` into `{}`, which is not a plain .safetensors file name", shard.escape_debug())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The refused name.
        shard: String,
    },
    /// A shard that the index names is not there.
    #[error("{path} puts tensor `{name}` into `{shard}`, which is missing; fetch that file")]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// A tensor of that shard.
        name: String,
        /// The shard.
        shard: String,
    },
    /// A tensor is in another shard than the index says.
    #[error("{path} puts tensor `{name}` into `{shard}`, but it is in {found}")]
    MisplacedTensor {
        /// The index.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shard that should hold it.
        shard: String,
        /// The file that holds it.
        found: PathBuf,
    },

    /// A model folder lacks a file that every model has.
    #[error("{dir} has no {file}: is it a model folder?")]
    MissingFile {
        /// The folder.
        dir: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// A model folder has neither weights nor an index of them.
    #[error("{dir} has neither model.safetensors nor model.safetensors.index.json")]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },

    /// A name is neither a folder nor a possible model id.
    #[cfg(feature = "hub")]
    #[error("`{}` is neither a folder nor a model id such as `Qwen/Qwen3-0.6B`", model_id.escape_debug())]
    ModelId {
        /// The name.
        model_id: String,
    },
    /// A model is named by a file in place of its folder.
    #[cfg(feature = "hub")]
    #[error(
        "{path} is not a folder: give the one that holds config.json, the safetensors files and the tokenizer"
    )]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A name can't be that of a branch, a tag or a commit.
    #[cfg(feature = "hub")]
    #[error("`{}` is not a revision: give a branch, a tag or a commit, such as `main`", revision.escape_debug())]
    Revision {
        /// The name.
        revision: String,
    },
    /// There is nowhere to keep the cache.
    #[cfg(feature = "hub")]
    #[error("there is no home folder to keep models in: set HF_HOME to a folder")]
    NoHome,
    /// The token holds what no token holds.
    #[cfg(feature = "hub")]
    #[error("the hub token is malformed: it must be visible ASCII; check HF_TOKEN")]
    Token,
    /// The hub's address is no address.
    #[cfg(feature = "hub")]
    #[error("{url} is not an http or https address: check HF_ENDPOINT")]
    Url {
        /// The address of a file, as made from the hub's.
        url: String,
    },
    /// A variable that sets a time limit holds no time.
    #[cfg(feature = "hub")]
    #[error("{name}: expected seconds above 0, found `{}`", found.escape_debug())]
    Timeout {
        /// The variable.
        name: &'static str,
        /// Its value.
        found: String,
    },
    /// There are no certificates where the environment says so.
    #[cfg(feature = "hub")]
    #[error(
        "{names}: there is no certificate in {paths}: name a file of certificates in PEM, or unset that"
    )]
    Certificates {
        /// The variables.
        names: &'static str,
        /// Their values.
        paths: String,
        /// Why one of them can't be read.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A server, or a proxy in its place, shows a certificate that is not trusted.
    #[cfg(feature = "hub")]
    #[error(
        "the certificate that answers for {url} is not trusted: if a proxy in between has one of its own, set SSL_CERT_FILE \
         to the file of its authority"
    )]
    Untrusted {
        /// The address that was asked.
        url: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The HTTP client could not be set up.
    #[cfg(feature = "hub")]
    #[error("cannot set up the HTTP client")]
    Client {
        /// Its reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The hub has no such model, or not for this user.
    #[cfg(feature = "hub")]
    #[error(
        "there is no folder `{model_id}`, and no model of that name at {url}, or it is private: check the spelling, {}",
        if *has_token { "and that HF_TOKEN is valid and may read it".to_owned() } else { no_token("or set HF_TOKEN", *is_withheld) }
    )]
    NoSuchModel {
        /// The model.
        model_id: String,
        /// The address that was asked.
        url: String,
        /// Whether a token was shown.
        has_token: bool,
        /// Whether the environment asks that none is.
        is_withheld: bool,
    },
    /// The model has no such branch, tag or commit.
    #[cfg(feature = "hub")]
    #[error("model `{model_id}` has no revision `{revision}`: check the spelling, or use `main`")]
    NoSuchRevision {
        /// The model.
        model_id: String,
        /// The revision.
        revision: String,
    },
    /// The model is only for those who accepted its terms.
    #[cfg(feature = "hub")]
    #[error(
        "access to model `{model_id}` is restricted: accept its terms on its page, and {}",
        if *has_token { "check that HF_TOKEN is of that account and may read gated models".to_owned() } else { no_token("set HF_TOKEN", *is_withheld) }
    )]
    Gated {
        /// The model.
        model_id: String,
        /// Whether a token was shown.
        has_token: bool,
        /// Whether the environment asks that none is.
        is_withheld: bool,
    },
    /// The hub lacks a file that the model needs.
    #[cfg(feature = "hub")]
    #[error(
        "there is no {url}: check the model id and the revision; the model must have safetensors weights"
    )]
    MissingRemoteFile {
        /// The address of the file.
        url: String,
    },
    /// The hub answered with a status that says neither yes nor no.
    #[cfg(feature = "hub")]
    #[error(
        "{url}: the server answered with status {status}{}",
        retry_after.map_or(": try again later, and check for a proxy in between".to_owned(), |pause| {
            format!(", and asks to come back in {}: try again then", wait(pause))
        })
    )]
    Status {
        /// The address that answered, without its query, which may be secret.
        url: String,
        /// The HTTP status.
        status: u16,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// An answer lacks a header that every hub sends, or has one that no hub sends.
    #[cfg(feature = "hub")]
    #[error(
        "{url}: not the answer of a hub: header `{header}` is {}; check HF_ENDPOINT, and for a proxy in between",
        found.as_ref().map_or("missing".to_owned(), |found| format!("`{}`", found.escape_debug()))
    )]
    BadAnswer {
        /// The address that was asked.
        url: String,
        /// The header.
        header: &'static str,
        /// Its value.
        found: Option<String>,
    },
    /// The hub could not be reached.
    #[cfg(feature = "hub")]
    #[error(
        "cannot reach {url}, and the cache lacks a part of the model: check the network and run it again, which goes on \
         from what is there"
    )]
    Unreachable {
        /// The address that was asked.
        url: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Offline, and the model is not in the cache.
    #[cfg(feature = "hub")]
    #[error(
        "there is no folder `{model_id}`, model `{model_id}` at `{revision}` is not complete in {cache_dir}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE \
         forbids to download it: unset that, or copy the model there"
    )]
    NotCached {
        /// The model.
        model_id: String,
        /// The revision.
        revision: String,
        /// The cache.
        cache_dir: PathBuf,
        /// What is missing, if part of the model is there.
        source: Option<Box<Error>>,
    },
    /// A download broke off, several times in a row.
    #[cfg(feature = "hub")]
    #[error(
        "the download of {file} broke off at {found}{} bytes: run it again to resume",
        expected.map_or(String::new(), |expected| format!(" of {expected}"))
    )]
    Interrupted {
        /// The file.
        file: String,
        /// Its size, if that is known.
        expected: Option<u64>,
        /// The number of bytes that are there.
        found: u64,
        /// Why, if the connection did not simply end.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A server sent more than the file that the hub described.
    #[cfg(feature = "hub")]
    #[error(
        "the download of {file} goes on after its {expected} bytes: run it again, and check for a proxy in between"
    )]
    TooLong {
        /// The file.
        file: String,
        /// Its size.
        expected: u64,
    },
    /// A download is not the file that the hub described.
    #[cfg(feature = "hub")]
    #[error(
        "the download of {file} was damaged on its way: expected SHA-256 {expected}, found {found}: run it again"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// Its SHA-256 by the hub.
        expected: String,
        /// The SHA-256 of the download, which was deleted.
        found: String,
    },
    /// There is no space left for a download.
    #[cfg(feature = "hub")]
    #[error(
        "no room to write {path}: make some and run it again, or set HF_HUB_CACHE to a folder on another disk"
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A download is larger than a file may be.
    #[cfg(feature = "hub")]
    #[error(
        "cannot write {path}: it would be larger than files may be, by `ulimit -f` or for its file system: raise that limit \
         and run it again, or set HF_HUB_CACHE to a folder on another disk"
    )]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The cache could not be written to.
    #[cfg(feature = "hub")]
    #[error("cannot write {path}: check its permissions, or set HF_HUB_CACHE to another folder")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

fn in_brackets(stored_as: Option<&str>) -> String {
    stored_as.map_or_else(String::new, |name| format!(" (stored as `{}`)", name.escape_debug()))
}

/// `advice` to a user who shows no token, perhaps since the environment withholds it.
#[cfg(feature = "hub")]
fn no_token(advice: &str, is_withheld: bool) -> String {
    let unset = if is_withheld {
        ", and unset HF_HUB_DISABLE_IMPLICIT_TOKEN, which withholds it"
    } else {
        ""
    };
    format!("{advice}{unset}")
}

/// A wait in words: `45 s`, `5 min`, `2 h 5 min`, `3 d 1 h`.
#[cfg(feature = "hub")]
fn wait(pause: Duration) -> String {
    let minutes = pause.as_secs().div_ceil(60);
    match pause.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        120..7_200 => format!("{minutes} min"),
        7_200..172_800 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} d {} h", minutes / 1_440, minutes / 60 % 24),
    }
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
