//! Refusals: their shape, their words, and what surrounds them: keys, ids of requests, when to come back.

mod support;

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use support::{Door, endless_body, named, parts, refusal};

const VALID: &str = r#"{"model": "base", "input": "a"}"#;

fn base(keys: &[(&str, &str)]) -> Door {
    Door::open(&[named("base", "bert/base")], &[], keys)
}

fn post(body: impl Into<Body>) -> Request<Body> {
    Request::post("/v1/embeddings").body(body.into()).unwrap()
}

/// The `error`, and the headers beside it.
async fn refused(reply: Response<Body>, status: u16) -> (Value, HeaderMap) {
    let headers = reply.headers().clone();
    assert_eq!(headers["content-type"], "application/json");
    (refusal(parts(reply).await, status), headers)
}

/// Seconds of the header Retry-After.
fn retry_after(headers: &HeaderMap) -> u64 {
    headers["retry-after"].to_str().unwrap().parse().unwrap()
}

fn assert_kind(error: &Value, kind: &str, code: impl Into<Value>, param: impl Into<Value>) {
    let (code, param) = (code.into(), param.into());
    assert_eq!((&error["type"], &error["code"], &error["param"]), (&json!(kind), &code, &param), "{error}");
}

#[tokio::test]
async fn a_wrong_type_is_400_that_names_the_field_and_the_place() {
    let door = base(&[]);
    for (body, param, part) in [
        (r#"{"input": 5}"#, "input", "integer `5`"),
        (r#"{"input": {"text": "a"}}"#, "input", "expected a string, a list of strings"),
        (r#"{"input": "a", "dimensions": "8"}"#, "dimensions", "string \"8\""),
        (r#"{"input": "a", "encoding_format": "hex"}"#, "encoding_format", "`hex`"),
        (r#"{"input": "a", "normalize": "yes"}"#, "normalize", "boolean"),
        (r#"{"input": "a", "adapters": [null, 5]}"#, "adapters[1]", "integer `5`"),
        (r#"{"input": "a", "truncate": "MIDDLE"}"#, "truncate", "MIDDLE"),
        (r#"{"input": [[5], [6, "a"]]}"#, "input[1][1]", "string \"a\""),
    ] {
        let (error, _) = refused(door.send(post(body)).await, 400).await;
        assert_kind(&error, "invalid_request_error", Value::Null, param);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part) && message.contains(param), "{message}");
        assert!(message.contains("line 1 column") || param == "truncate", "{message}");
    }
}

#[tokio::test]
async fn a_body_that_is_no_json_is_400_that_says_where() {
    let door = base(&[]);
    let bodies: [&[u8]; 6] = [
        b"",
        b"{\"model\": \"base\", \"input\": \"a\"",
        b"{\"model\": \"base\",\n \"input\": a}",
        b"model=base&input=a",
        b"[\"a\"]",
        b"{\"model\": \"base\", \"input\": \"\xff\xfe\"}",
    ];
    for body in bodies {
        let (error, _) = refused(door.send(post(body.to_vec())).await, 400).await;
        assert_eq!((&error["type"], &error["code"]), (&json!("invalid_request_error"), &Value::Null), "{error}");
        assert!(error["message"].as_str().unwrap().contains("line "), "{error}");
    }
    let (error, _) = refused(door.send(post(format!("{VALID} {VALID}"))).await, 400).await;
    assert!(error["message"].as_str().unwrap().contains("column 33"), "{error}");
}

#[tokio::test]
async fn a_missing_input_is_400() {
    let (error, _) = refused(base(&[]).send(post(r#"{"model": "base"}"#)).await, 400).await;
    assert_kind(&error, "invalid_request_error", Value::Null, "input");
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_answered_in_json() {
    let door = base(&[]);
    for path in ["/", "/v1", "/v1/embedding", "/v1/embeddings/", "/v1/models/", "/a/base"] {
        let (error, _) = refused(door.send(Request::get(path).body(Body::empty()).unwrap()).await, 404).await;
        assert_kind(&error, "invalid_request_error", "unknown_url", Value::Null);
        assert!(error["message"].as_str().unwrap().contains(path), "{error}");
    }
    for (method, path, allowed) in
        [("GET", "/v1/embeddings", "POST"), ("DELETE", "/a/base/embeddings", "POST"), ("POST", "/v1/models", "GET")]
    {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let (error, headers) = refused(door.send(request).await, 405).await;
        assert_kind(&error, "invalid_request_error", "method_not_allowed", Value::Null);
        assert!(headers["allow"].to_str().unwrap().contains(allowed), "{headers:?}");
    }
}

#[tokio::test]
async fn a_path_that_is_no_text_is_400_in_json() {
    let door = base(&[]);
    for request in [
        Request::get("/v1/models/%FF").body(Body::empty()).unwrap(),
        Request::post("/a/%FF/v1/embeddings").body(Body::from(VALID)).unwrap(),
    ] {
        let reply = door.send(request).await;
        assert!(reply.headers().contains_key("x-request-id"));
        let (error, _) = refused(reply, 400).await;
        assert_eq!(error["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413_in_json() {
    let door = base(&[("max_body_bytes", &VALID.len().to_string())]);
    assert_eq!(parts(door.send(post(VALID)).await).await.0, 200);
    let (error, _) = refused(door.send(post(format!("{VALID} "))).await, 413).await;
    assert_kind(&error, "invalid_request_error", "request_too_large", Value::Null);
    // The limit holds for what is sent, whatever Content-Length says.
    let chunks = [VALID, " "].map(Ok::<_, std::convert::Infallible>);
    let unsized_body = Body::from_stream(futures_util::stream::iter(chunks));
    refused(door.send(post(unsized_body)).await, 413).await;
}

#[tokio::test]
async fn the_body_limit_is_32_mib_unless_configured() {
    let door = base(&[]);
    let padded = |bytes: usize| format!("{VALID}{}", " ".repeat(bytes - VALID.len()));
    assert_eq!(parts(door.send(post(padded(32 << 20))).await).await.0, 200);
    refused(door.send(post(padded((32 << 20) + 1))).await, 413).await;
}

#[tokio::test]
async fn a_full_queue_is_429_until_there_is_room() {
    let door = base(&[]);
    let everything = door.fill_queue();
    let (error, headers) = refused(door.send(post(VALID)).await, 429).await;
    assert_kind(&error, "rate_limit_error", "rate_limit_exceeded", Value::Null);
    assert!(retry_after(&headers) >= 1);
    drop(everything);
    assert_eq!(parts(door.send(post(VALID)).await).await.0, 200);
}

#[tokio::test]
async fn more_requests_at_once_than_allowed_are_429_until_one_ends() {
    let door = Arc::new(base(&[("max_concurrent_requests", "1")]));
    let (body, reading) = endless_body();
    let first = tokio::spawn({
        let door = door.clone();
        async move { door.send(post(body)).await }
    });
    reading.await.unwrap();
    let (error, headers) = refused(door.send(post(VALID)).await, 429).await;
    assert_kind(&error, "rate_limit_error", "rate_limit_exceeded", Value::Null);
    assert!(retry_after(&headers) >= 1);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(parts(door.send(post(VALID)).await).await.0, 200);
}

#[tokio::test]
async fn loading_and_draining_are_503_with_retry_after() {
    let draining = base(&[]);
    assert_eq!(draining.get("/health").await, (200, json!({"status": "ok"})));
    draining.app.drain();
    for door in [Door::loading(), draining] {
        let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        for request in [post(VALID), get("/health"), get("/v1/models"), get("/v1/models/base")] {
            let (error, headers) = refused(door.send(request).await, 503).await;
            assert_eq!(error["type"], "server_error");
            assert!(retry_after(&headers) >= 1);
        }
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_504() {
    let door = base(&[("request_timeout_s", "1")]);
    let (error, _) = refused(door.send(post(endless_body().0)).await, 504).await;
    assert_eq!(error["type"], "server_error");
    assert_eq!(parts(door.send(post(VALID)).await).await.0, 200);
}

#[tokio::test]
async fn x_request_id_is_echoed_or_made_on_every_reply() {
    let (door, locked) = (base(&[]), base(&[("api_key", "secret")]));
    let mut made = std::collections::BTreeSet::new();
    for (door, path) in [
        (&door, "/v1/models"),
        (&door, "/v1/models/nobody"),
        (&door, "/v1/embeddings"),
        (&door, "/nowhere"),
        (&door, "/metrics"),
        (&locked, "/v1/models"),
    ] {
        let request = |id: &str| Request::get(path).header("x-request-id", id).body(Body::empty()).unwrap();
        let echoed = door.send(request("my id 1")).await;
        assert_eq!(echoed.headers()["x-request-id"], "my id 1", "{path}");
        let own = door.send(Request::get(path).body(Body::empty()).unwrap()).await;
        let own = own.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert!(!own.is_empty() && made.insert(own), "{path}");
    }
}

#[tokio::test]
async fn an_api_key_is_asked_for_everywhere_but_at_health() {
    let door = base(&[("api_key", "secret")]);
    let with = |path: &str, method: &str, key: Option<&str>| {
        let request = Request::builder().method(method).uri(path);
        let request = key.into_iter().fold(request, |request, key| request.header("authorization", key));
        request.body(Body::from(VALID)).unwrap()
    };
    let places = [("/v1/embeddings", "POST"), ("/embeddings", "POST"), ("/v1/models", "GET"), ("/metrics", "GET")];
    for (path, method) in places {
        assert_eq!(door.send(with(path, method, Some("Bearer secret"))).await.status(), 200, "{path}");
        let wrong = ["Bearer ", "Bearer secre", "Bearer secrets", "Bearer SECRET", "secret", "Basic secret", ""];
        for key in wrong.into_iter().map(Some).chain([None]) {
            let (error, _) = refused(door.send(with(path, method, key)).await, 401).await;
            assert_kind(&error, "invalid_request_error", "invalid_api_key", Value::Null);
        }
    }
    assert_eq!(door.send(with("/health", "GET", None)).await.status(), 200);
    // Without a key in the configuration anything will do.
    assert_eq!(base(&[]).send(with("/v1/embeddings", "POST", Some("Bearer anything"))).await.status(), 200);
}
