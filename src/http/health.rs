//! GET /health: 200 once everything is loaded, until draining begins or a device is lost.

use super::App;
use super::error::openai_error;
use crate::error::Error;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::sync::Arc;

/// Nothing brings it back but a new start, by whoever watches this.
const LOST: Error = Error::Unavailable("without one of its devices, and has to be started anew");

/// Whether requests would be answered now.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    match app.serving() {
        Ok(serving) if !serving.engine.is_alive() => openai_error(&LOST),
        Ok(_) => Json(json!({"status": "ok"})).into_response(),
        Err(error) => openai_error(&error),
    }
}
