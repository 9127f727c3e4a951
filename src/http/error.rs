//! Errors to status codes and to the OpenAI dialect's JSON.

use super::etag::quoted;
use crate::error::Error;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::http::header::{ETAG, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::any::Any;
use std::time::Duration;

/// When to come back while the server loads, drains or is started anew.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(5);

/// `{"error": {"message", "type", "param", "code"}}` with its status, and `Retry-After` where waiting helps.
pub fn openai_error(error: &Error) -> Response {
    let (status, kind, code, param) = match error {
        Error::Invalid { param, .. } => (StatusCode::BAD_REQUEST, "invalid_request_error", None, param.as_deref()),
        Error::ContextLength { .. } => {
            (StatusCode::BAD_REQUEST, "invalid_request_error", Some("context_length_exceeded"), Some("input"))
        }
        Error::UnknownModel(_) => {
            (StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), Some("model"))
        }
        Error::Changed { .. } => {
            let code = Some("precondition_failed");
            (StatusCode::PRECONDITION_FAILED, "invalid_request_error", code, Some("If-Match"))
        }
        Error::Unauthorized => (StatusCode::UNAUTHORIZED, "invalid_request_error", Some("invalid_api_key"), None),
        Error::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded"), None),
        Error::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unavailable"), None),
        Error::Deadline(_) => (StatusCode::GATEWAY_TIMEOUT, "server_error", Some("timeout"), None),
        Error::Config(_)
        | Error::Load { .. }
        | Error::Hub { .. }
        | Error::OutOfMemory(_)
        | Error::Lost(_)
        | Error::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal_error"), None),
    };
    let message = match status {
        StatusCode::INTERNAL_SERVER_ERROR => {
            tracing::debug!(%error, "answered with 500");
            "The server failed to answer; its log says why.".to_owned()
        }
        _ => error.to_string(),
    };
    let wait = match error {
        Error::Busy { retry_after, .. } => Some(*retry_after),
        Error::Unavailable(_) => Some(UNAVAILABLE_RETRY),
        _ => None,
    };
    let mut response = body(status, &message, kind, param, code);
    if let Error::Changed { now } = error {
        response.headers_mut().insert(ETAG, quoted(now));
    }
    if matches!(error, Error::Unauthorized) {
        // Which RFC 9110, 11.6.1 asks for.
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(wait) = wait {
        let wait_ms = wait.as_millis() as u64;
        response.headers_mut().insert(RETRY_AFTER, wait_ms.div_ceil(1000).max(1).into());
        // OpenAI's clients read this first; whole seconds would bring all who were refused back at once.
        response.headers_mut().insert("retry-after-ms", wait_ms.max(1).into());
    }
    response
}

/// A path that is not text.
pub fn unreadable_path(rejection: &PathRejection) -> Error {
    Error::Invalid { param: None, message: format!("{}.", rejection.body_text()) }
}

/// 413: the body is larger than the limit.
pub fn too_large(bytes_max: usize) -> Response {
    let message = format!("The request body is larger than {bytes_max} bytes.");
    body(StatusCode::PAYLOAD_TOO_LARGE, &message, "invalid_request_error", None, Some("request_too_large"))
}

/// 404 for a path that is not served.
pub async fn no_such_path(method: Method, uri: Uri) -> Response {
    let message = format!("Unknown request URL: {method} {}.", uri.path());
    body(StatusCode::NOT_FOUND, &message, "invalid_request_error", None, Some("unknown_url"))
}

/// 405 for a path that is served under another method.
pub async fn no_such_method(method: Method, uri: Uri) -> Response {
    let message = format!("Not allowed to {method} on {}.", uri.path());
    body(StatusCode::METHOD_NOT_ALLOWED, &message, "invalid_request_error", None, Some("method_not_allowed"))
}

/// 500 for a handler that panicked.
pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or_default(), "a handler panicked");
    openai_error(&Error::Internal(String::new()))
}

fn body(status: StatusCode, message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Response {
    let error = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
    (status, Json(error)).into_response()
}
