//! The public door for tests: a configuration is loaded as `veneer serve` loads it, and asked through its router.
#![allow(dead_code, reason = "every test file uses its own part")]

pub mod chance;
pub mod changed;
pub mod tensors;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use futures_util::stream::poll_fn;
use http_body_util::BodyExt;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tower::ServiceExt;
use veneer::config::{Config, Flags};
use veneer::engine::{Admission, Workers};
use veneer::error::Error;
use veneer::http::{App, Serving};
use veneer::hub::{Hub, HubConfig};
use veneer::kernels::Device;

/// A file or folder of tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// `NAME=SOURCE` of a fixture folder.
pub fn named(name: &str, folder: &str) -> String {
    format!("{name}={}", fixture(folder).display())
}

/// A copy of a fixture folder, to be changed.
pub fn copy_of(name: &str) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
            if from.is_dir() {
                std::fs::create_dir(&to).unwrap();
                copy(&from, &to);
            } else {
                std::fs::copy(&from, &to).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture(name), folder.path());
    folder
}

/// The second halves of all updates set to zero, as they are before training.
pub fn untrain(adapter: &Path) {
    let path = adapter.join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let start = bytes.as_ptr() as usize;
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let halves = parsed.iter().filter(|(name, _)| name.contains("lora_B"));
    let places: Vec<_> = halves.map(|(_, half)| (half.data().as_ptr() as usize - start, half.data().len())).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|(place, length)| bytes[place..place + length].fill(0));
    std::fs::write(path, bytes).unwrap();
}

/// The files of a body.
const BODY: [&str; 5] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"];

/// A model's folder: the base's files under the row's. A module's folder with the file `body` is given the base's body.
pub fn assembled(base: &str, row: &str) -> TempDir {
    let folder = copy_of(&format!("{base}/base"));
    lay(&fixture(&format!("pipelines/{base}/{row}")), folder.path(), &fixture(&format!("{base}/base")));
    folder
}

/// Lays a row's files over a folder.
pub fn lay(row: &Path, whole: &Path, base: &Path) {
    let mut entries: Vec<_> = std::fs::read_dir(row).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let target = whole.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            lay(&path, &target, base);
        } else if path.file_name().unwrap() == "body" {
            for file in BODY {
                std::fs::copy(base.join(file), whole.join(file)).unwrap();
            }
        } else {
            std::fs::copy(path, target).unwrap();
        }
    }
}

/// A copy of the bert base whose numbers overflow on token id 300, and on no other.
pub fn broken_base() -> TempDir {
    let folder = copy_of("bert/base");
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let words = SafeTensors::deserialize(&bytes).unwrap().tensor("embeddings.word_embeddings.weight").unwrap();
    let place = words.data().as_ptr() as usize - bytes.as_ptr() as usize + 300 * words.shape()[1] * size_of::<f32>();
    // Two, so that already their sum is infinite.
    bytes[place..place + 8].copy_from_slice(&[f32::MAX.to_le_bytes(); 2].concat());
    std::fs::write(path, bytes).unwrap();
    folder
}

/// A request body that never ends, and what says that the server has begun to read it.
pub fn endless_body() -> (Body, oneshot::Receiver<()>) {
    let (begun, reading) = oneshot::channel();
    let mut begun = Some(begun);
    let stream = poll_fn(move |_| {
        // The first read says so; there may be no one to hear it.
        let _ = begun.take().map(|begun| begun.send(()));
        Poll::<Option<Result<Bytes, Infallible>>>::Pending
    });
    (Body::from_stream(stream), reading)
}

/// JSON of a fixture file.
pub fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// The texts of a golden.json.
pub fn texts(golden: &Value) -> Vec<String> {
    serde_json::from_value(golden["texts"].clone()).unwrap()
}

/// The kinds of adapters of a base in peft/, as the keys of its golden.json name them.
pub fn kinds(golden: &Value) -> Vec<String> {
    golden.as_object().unwrap().keys().filter(|key| !["texts", "base"].contains(&key.as_str())).cloned().collect()
}

/// Changes a JSON file.
pub fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut content = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut content);
    std::fs::write(path, content.to_string()).unwrap();
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
        // `max` would leave out NaN.
        let gap = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
        a.iter().zip(b).map(gap).fold(0.0, f32::max)
    };
    a.iter().zip(b).map(of_row).fold(0.0, f32::max)
}

/// The smallest cosine between rows of `a` and of `b`.
pub fn cosine(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let of_rows = |(a, b): (&Vec<f32>, &Vec<f32>)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    a.iter().zip(b).map(of_rows).fold(f64::INFINITY, f64::min)
}

/// A request of every text under the base and every adapter, interleaved, and which text and name each input is.
pub fn mixed(texts: &[String]) -> (Value, Vec<(&String, Option<&'static str>)>) {
    let names = || [None].into_iter().chain(ADAPTERS.map(Some));
    let pairs: Vec<_> = texts.iter().flat_map(|text| names().map(move |name| (text, name))).collect();
    let (inputs, adapters): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    let body = json!({"model": "base", "adapters": adapters, "input": inputs, "normalize": false, "truncate": true});
    (body, pairs)
}

/// The device that tests are asked to run on.
pub fn test_device() -> Option<String> {
    std::env::var("TEST_DEVICE").ok()
}

/// The GPU of a test that is of one, or none with a word why.
pub fn gpu() -> Option<String> {
    let name = test_device().unwrap_or_else(|| "emulated".into());
    match Device::named(&name) {
        Ok(_) => Some(name),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

/// How far a vector of f32 may be from what it is beside other texts. A GPU's cuBLASLt takes another algorithm for another
/// number of rows, which adds up in another order.
pub fn together_max() -> f32 {
    if test_device().is_some_and(|device| device.starts_with("cuda")) { 1e-5 } else { 1e-6 }
}

/// What the command line would give: models, adapters, keys. All tests run on the device that TEST_DEVICE names; without
/// it, as the configuration has it.
pub fn config(models: &[String], adapters: &[String], keys: &[(&str, &str)]) -> Result<Config, Error> {
    let device = test_device();
    // Where kernels are emulated, it takes long to find out how large a batch may be.
    let of_device = device.iter().flat_map(|device| [("device", device.as_str()), ("max_batch_tokens", "2048")]);
    // `veneer selftest` does so once, for all of them.
    let keys = of_device.chain([("self_test", "false")]).chain(keys.iter().copied());
    let keys = keys.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let flags = Flags { keys, models: models.to_vec(), adapters: adapters.to_vec(), base: None };
    Config::resolve(None, &BTreeMap::new(), &flags)
}

/// A server without a socket.
pub struct Door {
    router: Router,
    pub app: Arc<App>,
    workers: Option<Workers>,
}

/// Waits for the workers: a GPU's driver does not bear threads that use it while a process ends.
impl Drop for Door {
    fn drop(&mut self) {
        self.app.end();
        if let Some(workers) = self.workers.take() {
            let joined = workers.join();
            // A second panic would hide the first.
            assert!(std::thread::panicking() || joined.is_ok(), "{joined:?}");
        }
    }
}

impl Door {
    /// Loads; panics where that fails.
    pub fn open(models: &[String], adapters: &[String], keys: &[(&str, &str)]) -> Self {
        Self::with(config(models, adapters, keys).unwrap()).unwrap()
    }

    /// A server that is still loading.
    pub fn loading() -> Self {
        let app = Arc::new(App::new(config(&[], &[], &[]).unwrap()));
        Self { router: veneer::http::router(app.clone()), app, workers: None }
    }

    /// Loads what a configuration names.
    pub fn with(config: Config) -> Result<Self, Error> {
        let home = config.hub.hf_home.clone().into();
        let (endpoint, offline) = (config.hub.endpoint.clone(), config.hub.offline);
        let hub = Hub::new(HubConfig { home, token: None, endpoint, offline })?;
        let app = Arc::new(App::new(config));
        // Loading blocks, and must not on an async thread.
        let callers = tokio::runtime::Handle::try_current();
        let load = || {
            // As in the server, where answers are given from where callers wait.
            let _within = callers.as_ref().ok().map(|callers| callers.enter());
            Serving::load(&app.config, &hub)
        };
        let (serving, workers) = std::thread::scope(|scope| scope.spawn(load).join()).unwrap()?;
        app.ready(serving);
        veneer::telemetry::metrics();
        Ok(Self { router: veneer::http::router(app.clone()), app, workers: Some(workers) })
    }

    /// One family's base with its three adapters, under their fixture names.
    pub fn family(family: &str) -> Self {
        let adapters = ADAPTERS.map(|adapter| named(adapter, &format!("{family}/{adapter}")));
        Self::open(&[named("base", &format!("{family}/base"))], &adapters, &[])
    }

    /// Takes every place in the queue; whoever has an answer may leave its place a moment later.
    pub fn fill_queue(&self) -> Admission {
        let engine = &self.app.serving().unwrap().engine;
        let mut tries = std::iter::repeat_with(|| engine.admit(usize::MAX)).take(10_000_000);
        tries.find_map(Result::ok).expect("places in the queue become free")
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

    /// What a counter of the process stands at.
    pub async fn counter(&self, name: &str) -> u64 {
        let response = self.send(Request::get("/metrics").body(Body::empty()).unwrap()).await;
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.map_or(0, |count| count.parse().unwrap())
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

/// The folders of tests/fixtures with a base, the three adapters and golden vectors.
pub const FAMILIES: &[&str] = &[
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "mpnet",
    "qwen3",
    "modernbert",
    "qwen2",
    "qwen2-bidirectional",
    "qwen2-sliding",
    "mistral",
    "mistral-bidirectional",
    "llama",
    "llama-bidirectional",
    "eurobert",
    "gemma3",
    "gemma3-causal",
    "nomic_bert",
    "nomic-v1.5",
    "nomic-v2-moe",
    "gte",
    "gte-new",
    "jina-v2",
    "jina-v2-code",
    "jina_embeddings_v3",
    "jina-v3",
    "deberta",
    "deberta-v2",
    "deberta-v2-unshared",
    "albert",
    "t5",
    "t5-gated",
];

/// A reply's vectors.
pub fn embeddings(reply: &Value) -> Vec<Vec<f32>> {
    let data = reply["data"].as_array().unwrap();
    data.iter().map(|datum| serde_json::from_value(datum["embedding"].clone()).unwrap()).collect()
}

/// The `error` of a reply with this status; panics where it lacks one of its four keys.
pub fn refusal((status, reply): (u16, Value), expected: u16) -> Value {
    assert_eq!(status, expected, "{reply}");
    let error = reply["error"].as_object().unwrap_or_else(|| panic!("{expected} without an error: {reply}"));
    let keys: Vec<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    reply["error"].clone()
}

/// Status and JSON; null where the body is none.
pub async fn parts(response: Response<Body>) -> (u16, Value) {
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}
