//! Progress in bytes, on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on stderr, if that is a terminal, of work on `num_bytes`; it goes when it is dropped.
pub(crate) fn bar(what: &'static str, num_bytes: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(num_bytes as u64), ProgressDrawTarget::stderr());
    let template = "{msg} {wide_bar} {bytes} of {total_bytes} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is well-formed");
    bar.with_style(style).with_message(what).with_finish(indicatif::ProgressFinish::AndClear)
}
