//! The header `host`, which RFC 9112 has every server check, and hyper leaves to it.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Version, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::{Error, Result};

/// Refuses a request that doesn't say once, and well, which host it is for; before HTTP/1.1 it need not.
pub(crate) async fn check(request: Request, next: Next) -> Result<Response> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let found = match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => "nothing".to_owned(),
        (Some(_), Some(_)) => "several".to_owned(),
        (Some(host), None) if !is_host(host) => {
            format!("`{}`", String::from_utf8_lossy(host.as_bytes()))
        }
        _ => return Ok(next.run(request).await),
    };
    Err(Error::Header { header: "host", expected: "one host, perhaps with a port", found })
}

/// Whether this is a host, which may be empty, and perhaps a port.
fn is_host(value: &HeaderValue) -> bool {
    if value.is_empty() {
        return true;
    }
    let Ok(authority) = Authority::try_from(value.as_bytes()) else { return false };
    // Else it begins with a name of a user.
    let Some(port) = authority.as_str().strip_prefix(authority.host()) else { return false };
    // A number of 16 bits, if there is any.
    let is_number =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.is_empty() || is_number(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        let check = |value: &str, expected| {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            assert_eq!(is_host(&value), expected, "{value:?}");
        };
        for host in ["", "localhost", "example.org:8000", "127.0.0.1:80", "[::1]", "[::1]:80", "a:"]
        {
            check(host, true);
        }
        for host in [
            "a b", "a/b", "user@a", "a:b", "a:80:80", "[::1", "::1", "a:70000", "a,b c", "ä", ":+1",
        ] {
            check(host, false);
        }
    }
}
