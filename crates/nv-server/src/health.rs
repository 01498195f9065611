//! Whether the server lives, whether it takes requests, and what it is.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::server::Server;

/// How long the engine may be busy with a step before it counts as alive anyway.
const PATIENCE: Duration = Duration::from_millis(500);

/// Fails if the engine has stopped.
pub(crate) async fn health(State(server): State<Server>) -> Result<()> {
    match timeout(PATIENCE, server.engine().stats()).await {
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// Fails also if no more requests are taken.
pub(crate) async fn ready(state: State<Server>) -> Result<()> {
    if state.is_draining() {
        return Err(Error::Draining);
    }
    health(state).await
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
