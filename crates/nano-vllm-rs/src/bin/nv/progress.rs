//! Progress in bytes or tokens, on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on stderr, if that is a terminal, of work on `num_bytes`; it goes when it is dropped.
pub(crate) fn bar(what: &'static str, num_bytes: usize) -> ProgressBar {
    with_template(what, num_bytes, "{msg} {wide_bar} {bytes} of {total_bytes} {eta}")
}

/// The same of work on `num_tokens`.
pub(crate) fn token_bar(what: &'static str, num_tokens: usize) -> ProgressBar {
    with_template(what, num_tokens, "{msg} {wide_bar} {human_pos} of {human_len} tokens {eta}")
}

fn with_template(what: &'static str, len: usize, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(len as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(template).expect("the template is well-formed");
    bar.with_style(style).with_message(what).with_finish(indicatif::ProgressFinish::AndClear)
}
