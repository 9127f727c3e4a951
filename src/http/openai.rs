//! The OpenAI dialect of `/v1/embeddings`: its request, its reply, and the translation between.

use super::body::{self, Inputs, Refusal};
use super::embed::{Answer, Call, embed};
use super::error::{openai_error, too_large, unreadable_path};
use super::etag;
use super::names::{Names, Several};
use super::output::{Dtype, Format, Output};
use super::{App, Expected};
use crate::error::{Error, Result};
use crate::telemetry;
use crate::text::{Prompt, Reading, Truncation};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The body. Fields that it does not know are ignored, and null is absent.
#[derive(Deserialize)]
struct Body {
    input: Option<Inputs>,
    model: Option<String>,
    adapter: Option<String>,
    adapters: Option<Several>,
    encoding_format: Option<Format>,
    dimensions: Option<usize>,
    output_dimension: Option<usize>,
    output_dtype: Option<Dtype>,
    normalize: Option<bool>,
    truncate_prompt_tokens: Option<i64>,
    truncate: Option<Truncate>,
    truncation_side: Option<Side>,
    prompt: Option<String>,
    prompt_name: Option<String>,
    input_type: Option<String>,
    task: Option<String>,
    add_special_tokens: Option<bool>,
}

/// `truncate`: a boolean, or which end is cut.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "serde_json::Value")]
enum Truncate {
    No,
    Yes,
    Start,
    End,
}

impl TryFrom<serde_json::Value> for Truncate {
    type Error = String;

    fn try_from(value: serde_json::Value) -> std::result::Result<Self, String> {
        match (value.as_bool(), value.as_str()) {
            (Some(false), _) | (_, Some("NONE")) => Ok(Self::No),
            (Some(true), _) => Ok(Self::Yes),
            (_, Some("START")) => Ok(Self::Start),
            (_, Some("END")) => Ok(Self::End),
            _ => Err(format!("expected true, false, \"NONE\", \"START\" or \"END\", found {value}")),
        }
    }
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Side {
    Left,
    Right,
}

#[derive(Serialize)]
struct Reply {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Datum>,
    usage: Usage,
}

#[derive(Serialize)]
struct Datum {
    object: &'static str,
    index: usize,
    embedding: Output,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// The parameters of the path: `adapter`, under a mount.
type Mount = std::result::Result<Path<HashMap<String, String>>, PathRejection>;

/// POST /v1/embeddings and its aliases.
pub async fn embeddings(State(app): State<Arc<App>>, path: Mount, headers: HeaderMap, request: Request) -> Response {
    let began = Instant::now();
    let deadline = Duration::from_secs(app.config.limits.request_timeout_s);
    let mut label = String::new();
    let answered = tokio::time::timeout(deadline, answer(&app, path, headers, request, &mut label)).await;
    let response = match answered.unwrap_or_else(|_| Err(Refusal::Error(Error::Deadline(deadline)))) {
        Ok(response) => response,
        Err(Refusal::TooLarge) => too_large(app.config.limits.max_body_bytes),
        Err(Refusal::Error(error)) => openai_error(&error),
    };
    telemetry::request(&label, response.status().as_u16(), began.elapsed());
    response
}

async fn answer(
    app: &App,
    path: Mount,
    headers: HeaderMap,
    request: Request,
    label: &mut String,
) -> std::result::Result<Response, Refusal> {
    let busy = |_| Error::Busy { what: "too many requests are under way", retry_after: Duration::from_secs(1) };
    let _place = app.requests.try_acquire().map_err(busy)?;
    let serving = app.serving()?;
    let Path(path) = path.map_err(|rejection| unreadable_path(&rejection))?;
    let read = body::read(request.into_body(), app.config.limits.max_body_bytes, &app.body_bytes).await;
    let (bytes, _room) = read?;
    let body: Body = body::json(&app.threads, bytes).await?;
    let (format, dtype) = (body.encoding_format.unwrap_or_default(), body.output_dtype.unwrap_or_default());
    let call = body.call(path, &headers, dtype)?;
    let answer = embed(app, serving, call, |name| label.push_str(name)).await?;
    Ok(reply(app, answer, dtype, format).await?)
}

impl Body {
    fn call(self, path: HashMap<String, String>, headers: &HeaderMap, dtype: Dtype) -> Result<Call> {
        let inputs = self.input.ok_or_else(|| Error::invalid("input", "You must provide an 'input' parameter."))?.0;
        let mut named = Vec::new();
        for value in headers.get_all("x-adapter").iter().filter(|value| !value.is_empty()) {
            let name = value.to_str().map_err(|_| Error::invalid("X-Adapter", "The header is not ASCII."))?;
            named.push(("the header X-Adapter", name.to_owned()));
        }
        let mount = path.get("adapter").map(|name| ("the path", name.clone()));
        let field = self.adapter.map(|name| ("'adapter'", name));
        let adapters = field.into_iter().chain(named).chain(mount).collect();
        let dimensions = match (self.dimensions, self.output_dimension) {
            (Some(a), Some(b)) if a != b => {
                return Err(Error::invalid("dimensions", "'dimensions' and 'output_dimension' differ."));
            }
            (a, b) => a.or(b),
        };
        let kinds = [("'input_type'", &self.input_type), ("'task'", &self.task)];
        let tasks = kinds.into_iter().filter_map(|(place, kind)| Some((place, kind.clone()?))).collect();
        let normalize = self.normalize.unwrap_or(true);
        if !normalize && matches!(dtype, Dtype::Int8 | Dtype::Uint8) {
            return Err(Error::invalid(
                "output_dtype",
                "int8 and uint8 need vectors of unit length: leave 'normalize' true.",
            ));
        }
        Ok(Call {
            names: Names { model: self.model, adapters, tasks, several: self.adapters },
            inputs,
            reading: Reading {
                prompt: prompt(self.prompt, self.prompt_name, self.input_type.or(self.task)),
                add_special_tokens: self.add_special_tokens,
                truncate: truncation(self.truncate, self.truncate_prompt_tokens, self.truncation_side)?,
            },
            dimensions,
            normalize,
            expected: Expected::of(headers)?,
        })
    }
}

/// `prompt` goes before `prompt_name`, which goes before the kind of text.
fn prompt(text: Option<String>, name: Option<String>, kind: Option<String>) -> Prompt {
    let kind = kind.map_or(Prompt::Default, Prompt::Kind);
    text.map(Prompt::Text).or(name.map(Prompt::Named)).unwrap_or(kind)
}

fn truncation(cut: Option<Truncate>, tokens: Option<i64>, side: Option<Side>) -> Result<Option<Truncation>> {
    let tokens = match tokens {
        None => None,
        Some(-1) => Some(None),
        Some(count) if count >= 1 => Some(Some(count as usize)),
        Some(_) => {
            return Err(Error::invalid(
                "truncate_prompt_tokens",
                "'truncate_prompt_tokens' must be at least 1, or -1.",
            ));
        }
    };
    let left = match (cut, side) {
        (Some(Truncate::No), _) if tokens.is_some() => {
            return Err(Error::invalid("truncate", "'truncate' forbids what 'truncate_prompt_tokens' asks for."));
        }
        (Some(Truncate::No), _) => return Ok(None),
        (Some(Truncate::Start), _) => Some(true),
        (Some(Truncate::End), _) => Some(false),
        (_, side) => side.map(|side| side == Side::Left),
    };
    if cut.is_none() && tokens.is_none() {
        return Ok(None);
    }
    Ok(Some(Truncation { tokens: tokens.flatten(), left }))
}

async fn reply(app: &App, answer: Answer, dtype: Dtype, format: Format) -> Result<Response> {
    static REPLIES: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let id = format!("embd-{:x}-{:x}", now.as_micros(), REPLIES.fetch_add(1, Ordering::Relaxed));
    let provenance = etag::headers(&answer.provenance);
    let elements: usize = answer.vectors.iter().map(Vec::len).sum();
    // A number takes about a microsecond's fraction to print; ten bytes of JSON each.
    let json = app.threads.run_large(elements * 10, move || {
        let datum =
            |(index, vector)| Datum { object: "embedding", index, embedding: Output::new(vector, dtype, format) };
        let reply = Reply {
            id,
            object: "list",
            created: now.as_secs(),
            model: answer.model,
            data: answer.vectors.into_iter().enumerate().map(datum).collect(),
            usage: Usage { prompt_tokens: answer.tokens, total_tokens: answer.tokens },
        };
        serde_json::to_vec(&reply).map_err(|e| Error::Internal(format!("reply: {e}")))
    });
    Ok((provenance, [(CONTENT_TYPE, "application/json")], json.await?).into_response())
}
