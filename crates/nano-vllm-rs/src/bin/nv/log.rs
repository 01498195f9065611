//! Where events and spans go: the log of a server, and the trace that `--trace` asks for.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::args::Args;
#[cfg(feature = "server")]
use crate::args::{Command, LogFormat, LogLevel, ServeArgs};

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
    // The other commands talk to their user instead.
    #[cfg(feature = "server")]
    if let Command::Serve(args) = &args.command {
        layers.push(log(args));
    }
    if !layers.is_empty() {
        tracing_subscriber::registry().with(layers).init();
    }
    Ok(Log { _trace: guard })
}

/// The steps of the engine and what they consist of, as Chrome and Perfetto show them.
fn trace(path: &Path) -> Result<(AnyLayer, FlushGuard)> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let (layer, guard) = ChromeLayerBuilder::new().writer(file).include_args(true).build();
    Ok((layer.with_filter(LevelFilter::DEBUG).boxed(), guard))
}

#[cfg(feature = "server")]
fn log(args: &ServeArgs) -> AnyLayer {
    let level = match args.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    match args.log_format {
        LogFormat::Text => log.with_filter(level).boxed(),
        LogFormat::Json => log.json().flatten_event(true).with_filter(level).boxed(),
    }
}
