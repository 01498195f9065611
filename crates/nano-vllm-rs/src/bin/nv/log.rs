//! Where events and spans go: the log of a server, or the one that `RUST_LOG` asks for, and the trace that `--trace` asks for.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
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

/// Completes the trace when it is dropped.
pub(crate) struct Log {
    _trace: Option<FlushGuard>,
}

/// Begins to log and to trace as the command line asks.
///
/// # Errors
/// If the trace can't be written.
pub(crate) fn start(args: &Args) -> Result<Log> {
    let mut layers: Vec<AnyLayer> = Vec::new();
    let mut guard = None;
    if let Some(path) = &args.trace {
        let (layer, until_dropped) = trace(path)?;
        layers.push(layer);
        guard = Some(until_dropped);
    }
    layers.push(log(args));
    tracing_subscriber::registry().with(layers).init();
    Ok(Log { _trace: guard })
}

/// The steps of the engine and what they consist of, as Chrome and Perfetto show them.
fn trace(path: &Path) -> Result<(AnyLayer, FlushGuard)> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let (layer, guard) = ChromeLayerBuilder::new().writer(file).include_args(true).build();
    Ok((layer.with_filter(LevelFilter::DEBUG).boxed(), guard))
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
