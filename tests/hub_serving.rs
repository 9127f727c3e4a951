//! Serving from the Hub: ids instead of folders, through a stand-in for it.

mod hub_stand_in;
mod support;

use hub_stand_in::StandIn;
use serde_json::json;
use std::fs;
use support::{Door, config, copy_of, edit_json, embeddings, fixture, gap, read, rows};
use tempfile::TempDir;

/// A base repo, and an adapter repo whose adapter_config.json names it.
struct Scene {
    hub: StandIn,
    home: TempDir,
    _adapter: TempDir,
}

impl Scene {
    fn new() -> Self {
        let adapter = tempfile::tempdir().unwrap();
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            fs::copy(fixture("distilbert/lora-all").join(name), adapter.path().join(name)).unwrap();
        }
        let path = adapter.path().join("adapter_config.json");
        let text = fs::read_to_string(&path).unwrap().replace("../base", "org/base");
        fs::write(path, text).unwrap();
        let base = fixture("distilbert/base");
        let hub = StandIn::start(&[("org/base", "main", &base), ("org/adapter", "main", adapter.path())]);
        Self { hub, home: tempfile::tempdir().unwrap(), _adapter: adapter }
    }

    fn open(&self, models: &[&str], adapters: &[&str], offline: bool) -> Door {
        let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let home = self.home.path().to_str().unwrap();
        let offline = if offline { "true" } else { "false" };
        let keys = [("endpoint", self.hub.endpoint.as_str()), ("hf_home", home), ("offline", offline)];
        Door::with(config(&owned(models), &owned(adapters), &keys).unwrap()).unwrap()
    }
}

async fn assert_golden(door: &Door, model: &str, golden: &str) {
    let file = read("distilbert/golden.json");
    let texts: Vec<String> = serde_json::from_value(file["texts"].clone()).unwrap();
    assert!(gap(&door.vectors(model, texts).await, &rows(&file[golden])) <= 1e-5, "{model}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_repo_is_a_model_and_its_base_is_found() {
    let scene = Scene::new();
    let door = scene.open(&["org/adapter"], &[], false);
    assert_golden(&door, "org/adapter", "lora-all").await;
    assert_golden(&door, "org/base", "base").await;
    let (status, model) = door.get("/v1/models/org%2Fadapter").await;
    assert_eq!((status, model["parent"].as_str()), (200, Some("org/base")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_and_an_adapter_by_id_are_served_again_without_the_hub() {
    let scene = Scene::new();
    for offline in [false, true] {
        let before = scene.hub.requests().len();
        let door = scene.open(&["base=org/base@main"], &["a=org/adapter@main"], offline);
        assert_golden(&door, "a", "lora-all").await;
        assert_eq!(scene.hub.requests().len() == before, offline, "requests while offline is {offline}");
    }
}

/// sentence-transformers knows them by name, and their files do not say it.
#[tokio::test(flavor = "multi_thread")]
async fn the_instructor_models_are_pooled_without_their_prompts() {
    let (home, base) = (tempfile::tempdir().unwrap(), fixture("distilbert/base"));
    let hub = StandIn::start(&[("hkunlp/instructor-base", "main", &base), ("org/base", "main", &base)]);
    let keys = [("endpoint", hub.endpoint.as_str()), ("hf_home", home.path().to_str().unwrap())];
    let told = copy_of("distilbert/base");
    edit_json(&told.path().join("1_Pooling/config.json"), |pooling| pooling["include_prompt"] = json!(false));
    let models = ["a=hkunlp/instructor-base@main", "b=org/base", &format!("c={}", told.path().display())];
    let door = Door::with(config(&models.map(str::to_owned), &[], &keys).unwrap()).unwrap();
    let ask = async |model: &str| {
        let body = json!({"model": model, "input": "a text", "prompt": "Represent the sentence: "});
        embeddings(&door.ask(body).await.1)
    };
    assert_eq!(ask("a").await, ask("c").await);
    assert_ne!(ask("a").await, ask("b").await);
}
