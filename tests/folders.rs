//! Adapters and modules in unusual places of a folder, against sentence-transformers (tests/fixtures/folders.py).

mod support;

use serde_json::json;
use std::fs;
use std::path::Path;
use support::changed::assert_says;
use support::{Door, assembled, config, copy_of, edit_json, fixture, gap, lay, named, read, rows, texts};
use tempfile::TempDir;

const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
const WEIGHTS: [&str; 2] = ["config.json", "model.safetensors"];

fn copy(names: &[&str], from: &Path, to: &Path) {
    for name in names {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

/// The bert base, its body and an adapter of it in `0_Transformer`.
fn in_body(base: &Path) -> TempDir {
    let folder = copy_of("bert/base");
    let inner = folder.path().join("0_Transformer");
    fs::create_dir(&inner).unwrap();
    for name in WEIGHTS.iter().chain(&["tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"]) {
        fs::rename(folder.path().join(name), inner.join(name)).unwrap();
    }
    copy(&ADAPTER, &fixture("bert/lora-all"), &inner);
    edit_json(&folder.path().join("modules.json"), |modules| modules[0]["path"] = json!("0_Transformer"));
    edit_json(&inner.join("adapter_config.json"), |config| config["base_model_name_or_path"] = json!(base));
    folder
}

/// An adapter's folder as sentence-transformers saves it over a base with a row's pipeline.
fn saved_over(row: &str) -> TempDir {
    let folder = copy_of("bert/lora-all");
    lay(&fixture(&format!("pipelines/bert/{row}")), folder.path(), &fixture("bert/base"));
    fs::remove_file(folder.path().join("config.json")).unwrap();
    folder
}

fn model(folder: &TempDir) -> String {
    format!("m={}", folder.path().display())
}

fn refusal(models: &[String], adapters: &[String]) -> String {
    let refusal = Door::with(config(models, adapters, &[]).unwrap()).err().expect("it must not load").to_string();
    assert_eq!(refusal.lines().count(), 1, "{refusal}");
    refusal
}

async fn assert_golden(door: &Door, name: &str, key: &str) {
    let golden = read("folders/golden.json");
    let gap = gap(&door.vectors(name, texts(&golden)).await, &rows(&golden[key]));
    assert!(gap <= 1e-5, "{name} {key}: {gap}");
}

#[tokio::test]
async fn an_adapter_in_the_bodys_folder_is_served() {
    let folder = in_body(&fixture("bert/base"));
    let door = Door::open(&[model(&folder)], &[], &[]);
    assert_golden(&door, "m", "body").await;
    let plain = read("bert/golden.json");
    assert!(gap(&door.vectors("m/base", texts(&plain)).await, &rows(&plain["base"])) <= 1e-5);
    let door = Door::open(&[named("base", "bert/base")], &[model(&folder)], &[]);
    assert_golden(&door, "m", "body").await;
}

#[tokio::test]
async fn an_adapter_in_the_bodys_folder_lies_over_the_base_that_it_names() {
    let folder = in_body(&fixture("bert/base"));
    for name in WEIGHTS {
        fs::remove_file(folder.path().join("0_Transformer").join(name)).unwrap();
    }
    assert_golden(&Door::open(&[model(&folder)], &[], &[]), "m", "body-alone").await;
    // Its own reading is there too.
    edit_json(&folder.path().join("0_Transformer/sentence_bert_config.json"), |config| {
        config["max_seq_length"] = json!(5);
    });
    let door = Door::open(&[model(&folder)], &[], &[]);
    let served = door.app.serving().unwrap().registry.find("m").unwrap();
    assert_eq!(served.main().text.tokens_max(), 5);
}

#[test]
fn an_adapter_that_would_be_left_out_is_refused() {
    let folder = in_body(&fixture("bert/base"));
    copy(&ADAPTER, &fixture("bert/lora-all"), folder.path());
    assert_says(&refusal(&[model(&folder)], &[]), &["0_Transformer/adapter_config.json", "another adapter is in"]);
    let folder = assembled("bert", "router-first");
    for body in ["query_0_Transformer", "document_0_Transformer"] {
        copy(&ADAPTER, &fixture("bert/lora-all"), &folder.path().join("0_Router").join(body));
        let says = ["_0_Transformer/adapter_config.json", "several bodies of a Router", "merge_and_unload"];
        assert_says(&refusal(&[model(&folder)], &[]), &says);
    }
}

#[tokio::test]
async fn an_adapters_pipeline_reads_the_layers_that_its_base_gives() {
    let (base, adapter) = (assembled("bert", "layers"), saved_over("layers"));
    let door = Door::open(&[format!("base={}", base.path().display())], &[model(&adapter)], &[]);
    assert_golden(&door, "m", "saved").await;
    edit_json(&adapter.path().join("adapter_config.json"), |config| {
        config["base_model_name_or_path"] = json!(base.path());
    });
    assert_golden(&Door::open(&[model(&adapter)], &[], &[]), "m", "saved").await;
    // A base that does not give them.
    let door = Door::open(&[named("base", "bert/base")], &[model(&adapter)], &[]);
    let plain = read("bert/golden.json");
    assert!(gap(&door.vectors("m", texts(&plain)).await, &rows(&plain["lora-all"])) > 1e-3);
}

#[test]
fn a_pipeline_must_fit_the_blocks_that_an_adapter_repeats() {
    let base = assembled("bert", "layers");
    let base = format!("base={}", base.path().display());
    let adapter = named("a", "peft/bert/layer-replication");
    let says = ["adapter_config.json", "layer_replication", "1_WeightedLayerPooling", "num_hidden_layers = 2"];
    let refused = refusal(std::slice::from_ref(&base), std::slice::from_ref(&adapter));
    assert_says(&refused, &says);
    let keys = [("pipeline", "base")];
    let refused = Door::with(config(&[base], &[adapter], &keys).unwrap()).err().expect("it must not load").to_string();
    assert_says(&refused, &says);
}

#[tokio::test]
async fn adapters_beside_and_below_each_other_are_all_served() {
    let ids = async |door: &Door| {
        let (_, list) = door.get("/v1/models").await;
        let data = list["data"].as_array().unwrap().clone();
        data.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect::<Vec<String>>()
    };
    let door = Door::open(&[named("m", "folders/several")], &[], &[]);
    assert_eq!(ids(&door).await[1..], ["m", "second"]);
    assert_golden(&door, "m", "first").await;
    assert_golden(&door, "second", "second").await;
    // What a trainer has left on its way.
    let trained = copy_of("folders/several");
    fs::write(trained.path().join("second/trainer_state.json"), "{}").unwrap();
    let base = fixture("bert/base");
    edit_json(&trained.path().join("adapter_config.json"), |config| config["base_model_name_or_path"] = json!(base));
    assert_eq!(ids(&Door::open(&[model(&trained)], &[], &[])).await[1..], ["m"]);
    let whole = fixture("folders/several").display().to_string();
    let door = Door::open(&[named("base", "bert/base")], &[], &[("adapters", &whole)]);
    assert_eq!(ids(&door).await, ["base", "several", "second"]);
    assert_golden(&door, "several", "first").await;
}

#[tokio::test]
async fn of_two_modules_with_one_name_the_last_runs() {
    let folder = assembled("bert", "activation-tanh");
    edit_json(&folder.path().join("modules.json"), |modules| {
        for module in modules.as_array_mut().unwrap().iter_mut().filter(|module| module["idx"] != json!(0)) {
            module["name"] = json!("1");
        }
        modules.as_array_mut().unwrap().swap(1, 2);
    });
    assert_golden(&Door::open(&[model(&folder)], &[], &[]), "m", "one-name").await;
}
