//! `/v1/models`: what is served.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Uri;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::server::Server;

pub(crate) async fn list(State(server): State<Server>) -> Json<Value> {
    let names = &server.config().served_model_names;
    let models: Vec<_> = names.iter().map(|name| model(&server, name)).collect();
    Json(json!({"object": "list", "data": models}))
}

pub(crate) async fn get(
    State(server): State<Server>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Json<Value>> {
    let Path(name) = name.map_err(|_| Error::Path { path: uri.path().to_owned() })?;
    // A path may end with a slash; a name that does is asked for with two.
    let name = name.strip_suffix('/').unwrap_or(&name);
    server.check_model(Some(name))?;
    Ok(Json(model(&server, name)))
}

fn model(server: &Server, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": server.created(),
        "owned_by": "nano-vllm-rs",
        "root": server.model_name(),
        "parent": null,
        "max_model_len": server.max_model_len(),
    })
}
