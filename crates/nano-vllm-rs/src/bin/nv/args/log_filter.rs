//! `RUST_LOG`: which events and spans are worth a line of the log, by the crate and module that they come from.

use std::env;

use anyhow::{Result, anyhow, ensure};
use tracing_subscriber::filter::{LevelFilter, Targets};

/// What the variable asks for; `None` if it is not set, or empty.
///
/// # Errors
/// If a directive makes no sense; the error names it.
pub(crate) fn from_env() -> Result<Option<Targets>> {
    env::var_os("RUST_LOG").map_or(Ok(None), |text| parse(&text.to_string_lossy()))
}

/// Directives between commas: a level for everything, a target for all of it, or `target=level`.
fn parse(text: &str) -> Result<Option<Targets>> {
    let directives = text.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    let mut filter = None;
    for directive in directives {
        let so_far = filter.unwrap_or_default();
        filter = Some(add(so_far, directive).ok_or_else(|| {
            anyhow!(
                "RUST_LOG: `{directive}` is no directive; expected a level, a target such as nv_server, or target=level, with the \
                 level off, error, warn, info, debug or trace"
            )
        })?);
    }
    ensure!(filter.is_some() || text.trim().is_empty(), "RUST_LOG: `{text}` has no directive");
    Ok(filter)
}

fn add(filter: Targets, directive: &str) -> Option<Targets> {
    // The parser takes nothing for `error`.
    let level = |text: &str| text.parse::<LevelFilter>().ok().filter(|_| !text.is_empty());
    let (target, level) = match directive.split_once('=') {
        None => match level(directive) {
            Some(level) => return Some(filter.with_default(level)),
            None => (directive, LevelFilter::TRACE),
        },
        Some((target, text)) => (target, level(text)?),
    };
    let is_of_path = |c: char| c.is_ascii_alphanumeric() || "_:-.".contains(c);
    let is_target = !target.is_empty() && target.chars().all(is_of_path);
    is_target.then(|| filter.with_target(target, level))
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter as Level;

    use super::*;

    #[test]
    fn directives_are_levels_targets_or_both() {
        let check = |text: &str, default: Option<Level>, targets: &[(&str, Level)]| {
            let filter = parse(text).unwrap().unwrap();
            assert_eq!(filter.default_level(), default, "{text}");
            let mut found: Vec<(&str, Level)> = filter.iter().collect();
            found.retain(|(target, _)| !target.is_empty());
            found.sort_unstable();
            assert_eq!(found, targets, "{text}");
        };
        check("debug", Some(Level::DEBUG), &[]);
        check("OFF", Some(Level::OFF), &[]);
        check("nv_engine", None, &[("nv_engine", Level::TRACE)]);
        check(
            "warn, nv_engine::engine=debug,nv_server=off,",
            Some(Level::WARN),
            &[("nv_engine::engine", Level::DEBUG), ("nv_server", Level::OFF)],
        );
    }

    #[test]
    fn what_is_not_set_asks_for_nothing() {
        for text in ["", " "] {
            assert_eq!(parse(text).unwrap(), None, "{text:?}");
        }
    }

    #[test]
    fn a_directive_that_makes_no_sense_is_named() {
        for (text, directive) in [
            ("info,nv_server=loud", "nv_server=loud"),
            ("nv_server=", "nv_server="),
            ("=info", "=info"),
            ("a=b=info", "a=b=info"),
            ("nv_engine[step]=debug", "nv_engine[step]=debug"),
            ("nv_server debug", "nv_server debug"),
            ("\u{fffd}", "\u{fffd}"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("RUST_LOG: `{directive}` is no directive; ")),
                "{error}"
            );
        }
        assert_eq!(parse(",").unwrap_err().to_string(), "RUST_LOG: `,` has no directive");
    }
}
