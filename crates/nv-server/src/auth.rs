//! Who may use the API: whoever has a key, if there are any.

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use subtle::{Choice, ConstantTimeEq};

use crate::error::{Error, Result};
use crate::server::Server;

/// Lets a request through if its bearer token is one of the server's keys.
pub(crate) async fn check(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Result<Response> {
    let keys = &server.config().api_keys;
    if !keys.is_empty() {
        let header = request.headers().get(header::AUTHORIZATION);
        let token = header.and_then(|value| bearer_token(value.as_bytes()));
        if !token.is_some_and(|token| is_one_of(token, keys)) {
            return Err(Error::Unauthorized);
        }
    }
    Ok(next.run(request).await)
}

/// What follows the scheme, which is written in any case, and one space or more.
///
/// Source: RFC 9110, 11.1 and 11.4.
fn bearer_token(header: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer";
    let (scheme, rest) = header.split_at_checked(SCHEME.len())?;
    let token = rest.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(SCHEME) && token.len() < rest.len()).then_some(token)
}

/// How long it takes says how long the keys are and how many, nothing else of them.
fn is_one_of(token: &[u8], keys: &[String]) -> bool {
    let matches = keys.iter().map(|key| key.as_bytes().ct_eq(token));
    matches.fold(Choice::from(0), |any, this| any | this).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_written_in_any_case_and_spaces_are_not_counted() {
        let check = |header: &str, expected: Option<&str>| {
            assert_eq!(bearer_token(header.as_bytes()), expected.map(str::as_bytes), "{header}");
        };
        check("Bearer key", Some("key"));
        check("bearer key", Some("key"));
        check("BEARER   key", Some("key"));
        check("Bearer\tkey", Some("key"));
        check("Bearer a key", Some("a key"));
        check("Bearer ", Some(""));
        check("Bearerkey", None);
        check("Bearer", None);
        check("Basic key", None);
        check("key", None);
        check("", None);
    }

    #[test]
    fn a_token_must_be_a_whole_key() {
        let keys = ["first".to_owned(), "second".to_owned()];
        let check = |token: &str, expected| {
            assert_eq!(is_one_of(token.as_bytes(), &keys), expected, "{token}");
        };
        check("first", true);
        check("second", true);
        check("firs", false);
        check("firstsecond", false);
        check("", false);
    }
}
