//! GET /v1/models: what is served.

use super::App;
use super::error::{openai_error, unreadable_path};
use crate::error::Result;
use crate::registry::Served;
use axum::Json;
use axum::extract::rejection::PathRejection;
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
pub async fn one(State(app): State<Arc<App>>, id: std::result::Result<Path<String>, PathRejection>) -> Response {
    let id = id.map_err(|rejection| unreadable_path(&rejection));
    let found: Result<_> = id.and_then(|Path(id)| app.serving()?.registry.find(&id));
    match found {
        Ok(served) => Json(describe(&served)).into_response(),
        Err(error) => openai_error(&error),
    }
}

fn describe(served: &Served) -> Value {
    json!({
        "id": served.label(),
        "object": "model",
        "created": served.created,
        "owned_by": "veneer",
        "root": served.root,
        "parent": served.parent,
        "max_model_len": served.main().text.tokens_max(),
        "generation": served.provenance.generation.map(|generation| generation.to_string()),
        "fingerprint": served.provenance.fingerprint.to_string(),
    })
}
