//! The public door for tests: a configuration is loaded as `veneer serve` loads it, and asked through its router.
#![allow(dead_code, reason = "every test file uses its own part")]

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tower::ServiceExt;
use veneer::config::{Config, Flags};
use veneer::error::Error;
use veneer::http::{App, Serving};
use veneer::hub::{Hub, HubConfig};

/// A file or folder of tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// `NAME=SOURCE` of a fixture folder.
pub fn named(name: &str, folder: &str) -> String {
    format!("{name}={}", fixture(folder).display())
}

/// JSON of a fixture file.
pub fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// Rows of numbers from JSON.
pub fn rows(value: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The largest |a - b|.
pub fn gap(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let of_row = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    a.iter().zip(b).map(of_row).fold(0.0, f32::max)
}

/// What the command line would give: models, adapters, keys.
pub fn config(models: &[String], adapters: &[String], keys: &[(&str, &str)]) -> Result<Config, Error> {
    let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let flags = Flags { keys, models: models.to_vec(), adapters: adapters.to_vec(), base: None };
    Config::resolve(None, &BTreeMap::new(), &flags)
}

/// A server without a socket.
pub struct Door {
    router: Router,
    pub app: Arc<App>,
}

impl Door {
    /// Loads; panics where that fails.
    pub fn open(models: &[String], adapters: &[String], keys: &[(&str, &str)]) -> Self {
        Self::with(config(models, adapters, keys).unwrap()).unwrap()
    }

    /// Loads what a configuration names.
    pub fn with(config: Config) -> Result<Self, Error> {
        let home = config.hub.hf_home.clone().into();
        let (endpoint, offline) = (config.hub.endpoint.clone(), config.hub.offline);
        let hub = Hub::new(HubConfig { home, token: None, endpoint, offline })?;
        let app = Arc::new(App::new(config));
        // Loading blocks, and must not on an async thread.
        let load = || Serving::load(&app.config, &hub);
        let (serving, _worker) = std::thread::scope(|scope| scope.spawn(load).join()).unwrap()?;
        app.ready(serving);
        veneer::telemetry::metrics();
        Ok(Self { router: veneer::http::router(app.clone()), app })
    }

    /// One family's base with its three adapters, under their fixture names.
    pub fn family(family: &str) -> Self {
        let adapters = ADAPTERS.map(|adapter| named(adapter, &format!("{family}/{adapter}")));
        Self::open(&[named("base", &format!("{family}/base"))], &adapters, &[])
    }

    pub async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Status and JSON of a GET.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        parts(self.send(Request::get(path).body(Body::empty()).unwrap()).await).await
    }

    /// Status and JSON of a POST.
    pub async fn post(&self, path: &str, body: impl Into<Body>) -> (u16, Value) {
        parts(self.send(Request::post(path).body(body.into()).unwrap()).await).await
    }

    /// Status and JSON of an embedding request.
    pub async fn ask(&self, body: Value) -> (u16, Value) {
        self.post("/v1/embeddings", body.to_string()).await
    }

    /// Vectors as the pipeline leaves them; panics where the answer is not 200.
    pub async fn vectors(&self, model: &str, input: impl serde::Serialize) -> Vec<Vec<f32>> {
        let (status, reply) =
            self.ask(json!({"model": model, "input": input, "normalize": false, "truncate": true})).await;
        assert_eq!(status, 200, "{reply}");
        embeddings(&reply)
    }
}

/// The adapters that every family's fixtures have.
pub const ADAPTERS: [&str; 3] = ["lora-attention", "lora-all", "rslora-patterns"];

/// The families with fixtures.
pub const FAMILIES: [&str; 7] = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "qwen3"];

/// A reply's vectors.
pub fn embeddings(reply: &Value) -> Vec<Vec<f32>> {
    let data = reply["data"].as_array().unwrap();
    data.iter().map(|datum| serde_json::from_value(datum["embedding"].clone()).unwrap()).collect()
}

/// Status and JSON; null where the body is none.
pub async fn parts(response: Response<Body>) -> (u16, Value) {
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}
