//! GET /v1/models: what is served.

use super::App;
use super::error::openai_error;
use crate::error::{Error, Result};
use crate::registry::Served;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

/// All of it.
pub async fn list(State(app): State<Arc<App>>) -> Response {
    match app.serving() {
        Ok(serving) => {
            let data: Vec<Value> = serving.registry.iter().map(|served| describe(served)).collect();
            Json(json!({"object": "list", "data": data})).into_response()
        }
        Err(error) => openai_error(&error),
    }
}

/// One name, which may hold slashes.
pub async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let found: Result<_> = app.serving().and_then(|serving| serving.registry.find(&id));
    match found {
        Ok(served) => Json(describe(&served)).into_response(),
        Err(Error::Invalid { message, .. }) => openai_error(&Error::invalid("id", message)),
        Err(error) => openai_error(&error),
    }
}

fn describe(served: &Served) -> Value {
    json!({
        "id": served.target.label,
        "object": "model",
        "created": served.created,
        "owned_by": "veneer",
        "root": served.root,
        "parent": served.parent,
        "max_model_len": served.text.tokens_max(),
    })
}
