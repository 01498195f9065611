//! When to ask again: what an answer says of it, and how long that is waited for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, header};

use super::Hub;
use crate::error::{Error, Result};

/// How often something is tried before its failure counts.
pub(super) const MAX_ATTEMPTS: u32 = 5;

/// The longest wait that a server is granted: the hub counts requests in windows of five minutes.
const MAX_PAUSE: Duration = Duration::from_mins(5);

/// How often a thread that waits looks whether it is still to wait.
const GLANCE: Duration = Duration::from_millis(50);

/// Raised when one of several downloads has failed, so that the others end too.
#[derive(Debug, Default)]
pub(super) struct Stop(AtomicBool);

impl Stop {
    pub(super) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits so long, or until it is raised; returns whether it is.
    pub(super) fn wait(&self, mut pause: Duration) -> bool {
        while !self.is_raised() && !pause.is_zero() {
            let nap = pause.min(GLANCE);
            thread::sleep(nap);
            pause -= nap;
        }
        self.is_raised()
    }
}

impl Hub {
    /// Calls `attempt` until it succeeds, fails by more than an outage, or has failed [`MAX_ATTEMPTS`] times. Before each
    /// pause, `tell` learns the failure and how long the pause is.
    ///
    /// Pauses double, and are as long as the server asks for, up to [`MAX_PAUSE`]: a longer one is left to the user.
    pub(super) fn retry<T>(
        &self,
        stop: &Stop,
        mut tell: impl FnMut(&Error, Duration),
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut pause = self.pause;
        for _ in 1..MAX_ATTEMPTS {
            let error = match attempt() {
                Err(error) if is_outage(&error) && !stop.is_raised() => error,
                result => return result,
            };
            let asked = asked_pause(&error);
            if asked > MAX_PAUSE {
                return Err(error);
            }
            let wait = pause.max(asked);
            tell(&error, wait);
            if stop.wait(wait) {
                return Err(error);
            }
            pause *= 2;
        }
        attempt()
    }
}

/// Whether the hub or the network, rather than the request, is at fault, so that asking again may help.
pub(super) fn is_outage(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Interrupted { .. } => true,
        Error::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
        _ => false,
    }
}

/// How long the server asks to be left alone.
fn asked_pause(error: &Error) -> Duration {
    match error {
        Error::Status { retry_after: Some(pause), .. } => *pause,
        _ => Duration::ZERO,
    }
}

/// When the sender of a failure with these headers wants to be asked again, counted from now.
///
/// Sources: RFC 9110 for `Retry-After`, seconds or a date; draft-ietf-httpapi-ratelimit-headers for `RateLimit`, as the
/// hub sends it: `"api";r=0;t=55`, and as its older versions have it: `limit=9, remaining=0, reset=55`.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let date = |name: &str| httpdate::parse_http_date(text(name)?).ok();
    let at = || {
        let sent = date(header::DATE.as_str()).unwrap_or_else(now);
        Some(date(header::RETRY_AFTER.as_str())?.duration_since(sent).unwrap_or_default())
    };
    let after = text(header::RETRY_AFTER.as_str()).and_then(seconds).or_else(at);
    let limits = headers.get_all("ratelimit").iter().filter_map(|value| value.to_str().ok());
    let resets = limits.filter_map(reset).chain(text("ratelimit-reset").and_then(seconds));
    after.into_iter().chain(resets).max()
}

/// When the last exhausted limit of a `RateLimit` is reset.
fn reset(limits: &str) -> Option<Duration> {
    let number = |limit: &str, names: [&str; 2]| {
        let parameters = limit.split(';').filter_map(|parameter| parameter.split_once('='));
        let mut named = parameters.filter(|(name, _)| names.contains(&name.trim()));
        named.find_map(|(_, value)| seconds(value.trim()))
    };
    // Older versions have the parameters of a single limit where newer ones have several limits.
    let is_old = limits.contains("reset");
    let limits = if is_old { limits.replace(',', ";") } else { limits.to_owned() };
    let exhausted = limits.split(',').filter(|limit| {
        number(limit, ["r", "remaining"]).is_none_or(|remaining| remaining.is_zero())
    });
    exhausted.filter_map(|limit| number(limit, ["t", "reset"])).max()
}

/// A whole number of seconds, or of whatever; one that is too large counts as the largest.
fn seconds(text: &str) -> Option<Duration> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a server names a date and doesn't say what time it has"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use ureq::http::HeaderValue;

    use super::*;

    #[test]
    fn servers_say_when_to_come_back() {
        let check = |headers: &[(&'static str, &str)], expected: Option<u64>| {
            let pairs = headers.iter().map(|(name, value)| {
                (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())
            });
            let found = retry_after(&pairs.collect());
            assert_eq!(found, expected.map(Duration::from_secs), "{headers:?}");
        };
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        check(&[], None);
        check(&[("retry-after", "120")], Some(120));
        check(&[("retry-after", " 7 ")], Some(7));
        check(&[("retry-after", "99999999999999999999")], Some(u64::MAX));
        check(&[date, ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT")], Some(30));
        check(&[date, ("retry-after", "Sunday, 06-Nov-94 08:50:07 GMT")], Some(30));
        check(&[date, ("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")], Some(0));
        for nonsense in ["", "-1", "soon", "1.5", "+3", "Sun, 99 Nov 1994 08:50:07 GMT"] {
            check(&[date, ("retry-after", nonsense)], None);
        }
        // As the hub sends it.
        check(&[("ratelimit", r#""api";r=0;t=55"#)], Some(55));
        check(&[("ratelimit", r#""api"; r = 0; t = 55"#)], Some(55));
        check(&[("ratelimit", r#""api";r=3;t=55"#)], None);
        check(&[("ratelimit", r#""api";t=55"#)], Some(55));
        check(&[("ratelimit", r#""api";r=0;t=5, "files";r=0;t=25, "pages";r=9;t=300"#)], Some(25));
        check(&[("ratelimit", r#""api";r=0;t=5"#), ("retry-after", "9")], Some(9));
        check(&[("ratelimit", r#""api";r=0;t=5"#), ("ratelimit", r#""files";r=0;t=25"#)], Some(25));
        check(&[("ratelimit", r#""api";r=0;t=soon"#)], None);
        // As its older versions have it.
        check(&[("ratelimit", "limit=100, remaining=0, reset=50")], Some(50));
        check(&[("ratelimit-limit", "100"), ("ratelimit-reset", "50")], Some(50));
    }

    #[test]
    fn a_date_without_another_is_compared_with_the_clock() {
        let later = httpdate::fmt_http_date(now() + Duration::from_mins(10));
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, later.parse().unwrap())]);
        let found = retry_after(&headers).unwrap().as_secs();
        assert!((500..=600).contains(&found), "{found}");
    }
}
