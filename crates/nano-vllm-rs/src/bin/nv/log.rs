//! Where events and spans go: the log of a server, or the one that `RUST_LOG` asks for, and the trace that `--trace` asks for.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Error, Result, ensure};
use serde_json::Value;
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::args::Args;
#[cfg(feature = "server")]
use crate::args::{Command, LogFormat, LogLevel};

type AnyLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// What is to be completed when the command has ended.
pub(crate) struct Log {
    trace: Option<Trace>,
}

/// A trace on its way.
struct Trace {
    path: PathBuf,
    /// Completes it when it is dropped.
    guard: FlushGuard,
    failure: Failure,
}

/// Why a trace breaks off, if it does.
type Failure = Arc<Mutex<Option<io::Error>>>;

impl Log {
    /// Completes the trace.
    ///
    /// # Errors
    /// If it could not be written to its end.
    pub(crate) fn finish(self) -> Result<()> {
        let Some(Trace { path, guard, failure }) = self.trace else { return Ok(()) };
        drop(guard);
        let failure = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), |error| Err(Error::from(error).context(cannot_write(&path))))
    }
}

/// Begins to log and to trace as the command line asks.
///
/// # Errors
/// If the trace can't be written, or would overwrite what is no trace.
pub(crate) fn start(args: &Args) -> Result<Log> {
    let mut layers: Vec<AnyLayer> = Vec::new();
    let mut begun = None;
    if let Some(path) = &args.trace {
        let (layer, trace) = trace(path)?;
        layers.push(layer);
        begun = Some(trace);
    }
    layers.push(log(args));
    tracing_subscriber::registry().with(layers).init();
    Ok(Log { trace: begun })
}

/// The steps of the engine and what they consist of, as Chrome and Perfetto show them.
fn trace(path: &Path) -> Result<(AnyLayer, Trace)> {
    let is_free =
        is_replaceable(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        is_free,
        "--trace would overwrite {}, which is not a trace: name another file, or remove that one",
        path.display()
    );
    let file = File::create(path).with_context(|| cannot_write(path))?;
    let failure = Failure::default();
    let writer = Writer { file, failure: Arc::clone(&failure) };
    let (layer, guard) = ChromeLayerBuilder::new().writer(writer).include_args(true).build();
    let trace = Trace { path: path.to_owned(), guard, failure };
    Ok((layer.with_filter(LevelFilter::DEBUG).boxed(), trace))
}

/// Whether nothing is lost if `path` is overwritten: there is nothing, or a trace; or it is a device or a pipe.
fn is_replaceable(path: &Path) -> io::Result<bool> {
    /// The first line of an array and its first element, which is short.
    const MAX_HEAD_BYTES: u64 = 4096;
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    }
    let mut head = Vec::new();
    File::open(path)?.take(MAX_HEAD_BYTES).read_to_end(&mut head)?;
    let is_event = |line: &[u8]| {
        let line = line.strip_suffix(b",").unwrap_or(line);
        serde_json::from_slice::<Value>(line).is_ok_and(|event| event["ph"].is_string())
    };
    let mut lines = head.split(|&byte| byte == b'\n');
    Ok(match (lines.next(), lines.next()) {
        // One that broke off, or has no event.
        (Some(b"" | b"["), None) | (Some(b"["), Some(b"")) => true,
        (Some(b"["), Some(event)) => is_event(event),
        _ => false,
    })
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// A file to which a trace is written until that fails: the thread that writes it knows no errors.
struct Writer {
    file: File,
    failure: Failure,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.is_none()
            && let Err(error) = self.file.write_all(bytes)
        {
            *failure = Some(error);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log of a server; of other commands, which talk to their user instead, what `RUST_LOG` asks for, else their own warnings.
fn log(args: &Args) -> AnyLayer {
    #[cfg(feature = "server")]
    if let Command::Serve(serve) = &args.command {
        let is_json = matches!(serve.log_format, LogFormat::Json);
        let level = match (serve.log_level, &args.rust_log) {
            (None, Some(targets)) => return layer(is_json, targets.clone(), FmtSpan::CLOSE),
            (None | Some(LogLevel::Info), _) => LevelFilter::INFO,
            (Some(LogLevel::Error), _) => LevelFilter::ERROR,
            (Some(LogLevel::Warn), _) => LevelFilter::WARN,
            (Some(LogLevel::Debug), _) => LevelFilter::DEBUG,
        };
        let targets = Targets::new().with_default(level);
        return layer(is_json, targets, FmtSpan::NONE);
    }
    let Some(targets) = args.rust_log.clone() else {
        let warnings = Targets::new().with_target(env!("CARGO_BIN_NAME"), LevelFilter::WARN);
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = lines.with_ansi(false).without_time().with_target(false);
        return lines.with_filter(warnings).boxed();
    };
    layer(false, targets, FmtSpan::CLOSE)
}

/// A log on stderr of what `targets` lets through, with lines for spans that were asked for.
fn layer(is_json: bool, targets: Targets, spans: FmtSpan) -> AnyLayer {
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let log = log.with_span_events(spans);
    if is_json {
        log.json().flatten_event(true).with_filter(targets).boxed()
    } else {
        log.with_filter(targets).boxed()
    }
}
