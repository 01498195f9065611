//! Which path leads where, and what every request goes through.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{Html, IntoResponse};
use axum::routing::{MethodRouter, get, post};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use crate::error::{Error, Result};
use crate::server::Server;
use crate::{auth, chat, completions, health, host, metrics, models, request_log, tokenize};

const PAGE: &str = include_str!("../assets/page.html");
/// What the page may do; by the hashes in itself it allows its own script and style alone.
const PAGE_POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; \
     script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const OPENAPI: &str = include_str!("../assets/openapi.json");

/// All that a server answers.
///
/// If it has API keys, they are asked for under `/v1` and by `/tokenize` and `/detokenize`; the page, its description
/// and what says how the server is doing are open.
///
/// The socket's owner closes connections that send no whole head or don't read, and checks that requests name a host:
/// of [`ServerConfig`](crate::ServerConfig), [`run`](crate::run) alone heeds `write_timeout`, and `read_timeout` for heads.
///
/// ```
/// use nv_server::{Server, router};
///
/// # async fn example(
/// #     server: Server,
/// #     listener: tokio::net::TcpListener,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// axum::serve(listener, router(server)?).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Setting`] if an origin of [`cors_origins`](crate::ServerConfig::cors_origins) can't stand in a header.
pub fn router(server: Server) -> Result<Router> {
    let routes = routes(&server)?;
    Ok(routes.layer(from_fn(request_log::log)).with_state(server))
}

/// As [`router`], for a socket of this crate.
pub(crate) fn router_of_socket(server: Server) -> Result<Router> {
    let routes = routes(&server)?.layer(from_fn(host::check));
    Ok(routes.layer(from_fn(request_log::log)).with_state(server))
}

fn routes(server: &Server) -> Result<Router<Server>> {
    let cors = cors(&server.config().cors_origins)?;
    let max_body_bytes = server.config().max_body_bytes;
    let api = at_paths([
        ("/v1/chat/completions", post(chat::complete)),
        ("/v1/completions", post(completions::complete)),
        ("/v1/models", get(models::list)),
        ("/tokenize", post(tokenize::tokenize)),
        ("/detokenize", post(tokenize::detokenize)),
    ])
    .route("/v1/models/{*model}", get(models::get))
    .route_layer(from_fn_with_state(server.clone(), auth::check));
    let open = at_paths([
        ("/health", get(health::health)),
        ("/ready", get(health::ready)),
        ("/metrics", get(metrics::metrics)),
        ("/version", get(health::version)),
        ("/openapi.json", get(openapi)),
    ])
    .route("/", get(page));
    let router = api
        .merge(open)
        .fallback(not_found)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(max_body_bytes));
    Ok(match cors {
        Some(cors) => router.layer(cors),
        None => router,
    })
}

/// Each path, and the same with a slash at its end, which some clients add.
fn at_paths<const N: usize>(routes: [(&str, MethodRouter<Server>); N]) -> Router<Server> {
    routes.into_iter().fold(Router::new(), |router, (path, methods)| {
        router.route(path, methods.clone()).route(&format!("{path}/"), methods)
    })
}

async fn page() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(PAGE))
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

async fn not_found(uri: Uri) -> Error {
    Error::NotFound { path: uri.path().to_owned() }
}

async fn other_method(method: Method, uri: Uri) -> Error {
    Error::Method { method: method.to_string(), path: uri.path().to_owned() }
}

/// Which pages may use the server from a browser, beside its own; `None` if none may.
fn cors(origins: &[String]) -> Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        // `*` would not cover `authorization`, as the Fetch standard has it.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::HeaderName::from_static("x-request-id")]);
    if origins.iter().any(|origin| origin == "*") {
        return Ok(Some(layer.allow_origin(Any)));
    }
    let origin = |origin: &String| {
        HeaderValue::from_str(origin).map_err(|_| Error::Setting {
            setting: "cors_origins",
            expected: "an origin such as https://example.org, or *",
            found: format!("{origin:?}"),
        })
    };
    let origins = origins.iter().map(origin).collect::<Result<Vec<_>>>()?;
    Ok(Some(layer.allow_origin(AllowOrigin::list(origins))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_below_the_path_at_which_it_stands() {
        let calls: Vec<&str> = PAGE.split("fetch(").skip(1).collect();
        assert_eq!(calls.len(), 3);
        assert!(calls.iter().all(|call| call.starts_with("`${BASE}/")), "{calls:?}");
    }
}
