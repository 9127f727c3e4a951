//! The HTTP face: routes, layers and what handlers share. Nothing outside this folder names axum or a status code.

mod body;
mod embed;
mod error;
mod etag;
mod health;
mod metrics;
mod models;
mod names;
mod offload;
mod openai;
mod output;
mod serving;

pub use embed::{Call, Input, embed};
pub use etag::Expected;
pub use names::{Names, Several, Share};
pub use offload::threads_max;
pub use serving::Serving;

use crate::config::Config;
use crate::error::{Error, Result};
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use error::openai_error;
use offload::Threads;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;

/// What every handler shares.
pub struct App {
    /// The configuration.
    pub config: Config,
    serving: OnceLock<Serving>,
    draining: AtomicBool,
    requests: Semaphore,
    /// A permit for each byte of the bodies that may be held at once.
    body_bytes: Semaphore,
    threads: Threads,
}

impl App {
    /// An app that is still loading.
    pub fn new(config: Config) -> Self {
        let requests = Semaphore::new(config.limits.max_concurrent_requests.min(Semaphore::MAX_PERMITS));
        let body_bytes = Semaphore::new(config.limits.max_buffered_bytes.min(Semaphore::MAX_PERMITS));
        let threads = Threads::new(config.server.tokenizer_threads);
        Self { config, serving: OnceLock::new(), draining: AtomicBool::new(false), requests, body_bytes, threads }
    }

    /// Loading is done.
    pub fn ready(&self, serving: Serving) {
        if !serving.registry.is_on_cpu() {
            self.threads.are_alone();
        }
        // A second call would be a bug of ours; the first keeps serving.
        let first = self.serving.set(serving).is_ok();
        debug_assert!(first, "ready once");
    }

    /// From here on new work is refused.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// From here on nothing is begun, and what waits is refused.
    pub fn end(&self) {
        self.drain();
        if let Some(serving) = self.serving.get() {
            serving.engine.end();
        }
    }

    /// What is served, or why nothing is.
    pub fn serving(&self) -> Result<&Serving> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::Unavailable("shutting down"));
        }
        self.serving.get().ok_or(Error::Unavailable("loading"))
    }

    /// Embedding requests under way.
    fn running(&self) -> usize {
        self.config.limits.max_concurrent_requests.saturating_sub(self.requests.available_permits())
    }
}

/// Every path and what answers it.
fn routes() -> Vec<(&'static str, MethodRouter<Arc<App>>)> {
    vec![
        ("/v1/embeddings", post(openai::embeddings)),
        ("/embeddings", post(openai::embeddings)),
        ("/a/{adapter}/v1/embeddings", post(openai::embeddings)),
        ("/a/{adapter}/embeddings", post(openai::embeddings)),
        ("/v1/models", get(models::list)),
        ("/v1/models/{*id}", get(models::one)),
        ("/health", get(health::health)),
        ("/metrics", get(metrics::metrics)),
    ]
}

/// The paths that the server answers, in axum's notation.
pub fn paths() -> Vec<&'static str> {
    routes().into_iter().map(|(path, _)| path).collect()
}

/// The whole service.
pub fn router(app: Arc<App>) -> Router {
    let routes = routes().into_iter().fold(Router::new(), |router, (path, method)| router.route(path, method));
    let layers = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(TraceLayer::new_for_http().make_span_with(span).on_failure(()))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn_with_state(app.clone(), authorize));
    routes
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(layers)
        .with_state(app)
}

/// After the drain's deadline, for what is said to those who are cut off.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until `shutdown` is done and the requests under way are answered, or the drain's deadline has passed: what waits
/// then is refused.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (told, mut drained) = tokio::sync::watch::channel(());
    let deadline = Duration::from_secs(app.config.server.drain_timeout_s);
    let signal = async move {
        shutdown.await;
        drop(told);
    };
    let serving = axum::serve(listener, router(app.clone())).with_graceful_shutdown(signal).into_future();
    let mut serving = std::pin::pin!(serving);
    let cut_off = async {
        // The sender is dropped once shutdown begins.
        while drained.changed().await.is_ok() {}
        tokio::time::sleep(deadline).await;
    };
    tokio::select! {
        ended = &mut serving => return ended,
        () = cut_off => {}
    }
    tracing::warn!(seconds = deadline.as_secs(), "drain timed out, requests under way are cut off");
    app.end();
    tokio::time::timeout(LAST_WORDS, serving).await.unwrap_or(Ok(()))
}

fn span<B>(request: &axum::http::Request<B>) -> tracing::Span {
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    tracing::info_span!("request", method = %request.method(), path = request.uri().path(), id)
}

/// Lets through who knows the API key, and everyone where there is none, and to /health.
async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let key = app.config.server.api_key.as_bytes();
    let header = request.headers().get("authorization").map(|value| value.as_bytes());
    // The scheme's case does not matter (RFC 9110, section 11.1).
    let scheme = header.and_then(|value| value.split_at_checked("Bearer ".len()));
    let given = scheme.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map_or(&[][..], |(_, key)| key);
    if key.is_empty() || request.uri().path() == "/health" || bool::from(given.ct_eq(key)) {
        return next.run(request).await;
    }
    openai_error(&Error::Unauthorized)
}
