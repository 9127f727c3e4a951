//! Pipelines of every kind against sentence-transformers (tests/fixtures/pipelines.py), and what is refused.

mod support;

use serde_json::{Map, Value, json};
use std::fs;
use support::{
    Door, assembled, config, copy_of, edit_json, embeddings, fixture, gap, lay, named, read, refusal, rows, texts,
    together_max,
};
use tempfile::TempDir;

fn open(folder: &TempDir) -> Door {
    Door::open(&[format!("m={}", folder.path().display())], &[], &[])
}

/// Vectors as the pipeline leaves them, of texts read as the oracle's arguments say.
async fn ask(door: &Door, texts: &[String], arguments: &Map<String, Value>) -> Vec<Vec<f32>> {
    let mut body = json!({"model": "m", "input": texts, "normalize": false, "truncate": true});
    body.as_object_mut().unwrap().extend(arguments.clone());
    let (status, reply) = door.ask(body).await;
    assert_eq!(status, 200, "{arguments:?}: {reply}");
    embeddings(&reply)
}

/// The largest |a - b| of the numbers that both have.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let width = a[0].len().min(b[0].len());
    let part = |rows: &[Vec<f32>]| rows.iter().map(|row| row[..width].to_vec()).collect::<Vec<_>>();
    gap(&part(a), &part(b))
}

#[tokio::test]
async fn every_pipeline_is_within_1e5_of_the_oracle_alone_and_packed() {
    let mut wrong = Vec::new();
    for base in ["bert", "qwen2"] {
        let golden = read(&format!("pipelines/{base}/golden.json"));
        let (texts, plain) = (texts(&golden), rows(&golden["base"]));
        let asked: Vec<(String, Map<String, Value>)> = serde_json::from_value(golden["asked"].clone()).unwrap();
        for (row, ways) in asked {
            let folder = assembled(base, &row);
            let door = open(&folder);
            let (mut error, mut effect, mut packed) = (0f32, 0f32, 0f32);
            for (way, arguments) in ways {
                let arguments = arguments.as_object().unwrap();
                let ours = ask(&door, &texts, arguments).await;
                let oracle = rows(&golden[format!("{row} {way}")]);
                error = error.max(gap(&ours, &oracle));
                effect = effect.max(difference(&ours, &plain));
                for (text, ours) in texts.iter().zip(ours) {
                    let alone = ask(&door, std::slice::from_ref(text), arguments).await;
                    // Vectors that are not of unit length: relative to their largest number.
                    let largest = ours.iter().fold(1f32, |largest, x| largest.max(x.abs()));
                    packed = packed.max(gap(&alone, &[ours]) / largest);
                }
            }
            println!("{base:6} {row:26} max|diff| {error:.1e}  |row - base| {effect:8.2}  packed {packed:.1e}");
            if error > 1e-5 || effect <= 1e-2 || packed > together_max() {
                wrong.push(format!("{base} {row}: {error:.1e} effect {effect} packed {packed:.1e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A PEFT adapter that brings a row's pipeline along.
fn adapter_with(row: &str) -> TempDir {
    let folder = copy_of("bert/lora-all");
    lay(&fixture(&format!("pipelines/bert/{row}")), folder.path(), &fixture("bert/base"));
    folder
}

#[tokio::test]
async fn pipelines_of_one_base_share_batches_and_keep_apart() {
    const ROWS: [&str; 8] = [
        "dense-on-tokens",
        "dense-residual",
        "layer-norm",
        "layers",
        "no-prompt-all",
        "router",
        "router-of-poolings",
        "truncate-dim",
    ];
    let folders = ROWS.map(adapter_with);
    let adapters: Vec<String> =
        ROWS.iter().zip(&folders).map(|(row, folder)| format!("{row}={}", folder.path().display())).collect();
    let base = assembled("bert", "layers");
    let door = Door::open(&[format!("m={}", base.path().display())], &adapters, &[]);
    let texts = texts(&read("pipelines/bert/golden.json"));
    for fields in [json!({}), json!({"input_type": "query"}), json!({"prompt": "some words: "})] {
        let fields = fields.as_object().unwrap();
        let mut expected = Vec::new();
        for row in ROWS {
            let mut fields = fields.clone();
            fields.insert("adapter".into(), json!(row));
            expected.push(ask(&door, &texts, &fields).await);
        }
        let inputs: Vec<String> = texts.iter().flat_map(|text| vec![text.clone(); ROWS.len()]).collect();
        let mut fields = fields.clone();
        fields.insert("adapters".into(), texts.iter().flat_map(|_| ROWS).collect());
        for (index, vector) in ask(&door, &inputs, &fields).await.into_iter().enumerate() {
            let (text, row) = (index / ROWS.len(), index % ROWS.len());
            let gap = gap(&[vector], &expected[row][text..=text]);
            assert!(gap <= together_max(), "{} '{}': {gap}", ROWS[row], texts[text]);
        }
    }
}

#[tokio::test]
async fn dimensions_go_on_top_of_truncate_dim() {
    let folder = assembled("bert", "truncate-dim");
    let door = open(&folder);
    let ask = async |dimensions: usize| {
        door.ask(json!({"model": "m", "input": "text", "dimensions": dimensions, "normalize": false})).await
    };
    let (whole, part) = (embeddings(&ask(20).await.1), embeddings(&ask(7).await.1));
    assert_eq!(whole[0][..7], part[0][..]);
    let error = refusal(ask(21).await, 400);
    assert_eq!(error["message"], "'dimensions' must be between 1 and 20, got 21.");
}

#[tokio::test]
async fn a_kind_of_text_without_a_route_is_400() {
    let (two, both) = (assembled("bert", "router"), assembled("bert", "router-no-default"));
    for (folder, fields, says) in [
        (&two, json!({"input_type": "poem"}), "The model has no route for 'poem'; it has: document, query."),
        (&both, json!({}), "The model reads texts by their kind: say it with 'input_type'; it has: document, query."),
        (&both, json!({"task": "poem"}), "The model has no route for 'poem'; it has: document, query."),
        (
            &two,
            json!({"input_type": "query", "task": "document"}),
            "'input_type' is 'query', but 'task' is 'document'.",
        ),
    ] {
        let mut body = json!({"model": "m", "input": "text"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert_eq!(refusal(open(folder).ask(body).await, 400)["message"], says);
    }
    let door = open(&two);
    let vectors = async |kind: &str| ask(&door, &["text".into()], json!({"task": kind}).as_object().unwrap()).await;
    assert_eq!(vectors("search_query").await, vectors("query").await);
    assert_eq!(vectors("passage").await.len(), vectors("search_document").await.len());
}

#[tokio::test]
async fn without_modules_json_there_are_no_prompts_and_no_settings() {
    let folder = copy_of("bert/base");
    let path = folder.path();
    fs::write(
        path.join("config_sentence_transformers.json"),
        r#"{"prompts": {"a": "b "}, "default_prompt_name": "a"}"#,
    )
    .unwrap();
    let listed = open(&folder);
    fs::remove_file(path.join("modules.json")).unwrap();
    let bare = open(&folder);
    assert_ne!(listed.vectors("m", ["text"]).await, bare.vectors("m", ["text"]).await);
    let max = async |door: &Door| door.get("/v1/models/m").await.1["max_model_len"].clone();
    assert_eq!((max(&listed).await, max(&bare).await), (json!(48), json!(64)));
}

/// The reason for which a folder is not loaded.
fn refused(folder: &TempDir) -> String {
    let config = config(&[format!("m={}", folder.path().display())], &[], &[]).unwrap();
    Door::with(config).err().expect("it must not load").to_string()
}

/// A module as an entry of modules.json.
fn module(class: &str, path: &str) -> Value {
    json!({"type": format!("sentence_transformers.models.{class}"), "path": path})
}

#[test]
fn modules_that_are_not_understood_are_refused_by_name() {
    let own = json!({"type": "pylate.models.Dense.Dense", "path": "2_Dense"});
    for (at, entry, says) in [
        (
            2,
            module("CNN", "2_CNN"),
            "module 'sentence_transformers.models.CNN' (path '2_CNN') is not supported here: its conv",
        ),
        (2, module("LSTM", "2_LSTM"), "its recurrence over tokens is not built"),
        (0, module("BoW", "0_BoW"), "it counts words; use a sparse index"),
        (0, module("Pooling", "1_Pooling"), "no Transformer or StaticEmbedding is before it"),
        (1, module("LayerNorm", "2_Dense"), "2_Dense/config.json: missing field `dimension`"),
        (1, module("WordEmbeddings", ""), "save its table as a StaticEmbedding"),
        (1, module("WordWeights", "2_W"), "fold the weights into the table"),
        (1, module("CLIPModel", ""), "save its text tower as a Transformer"),
        (1, module("Transformer", ""), "there is a body before it"),
        (2, module("Pooling", "1_Pooling"), "'token_embeddings' is pooled before it"),
        (2, module("WeightedLayerPooling", "2_W"), "'token_embeddings' is pooled before it"),
        (1, module("Dense", "2_Dense"), "nothing before it gives 'sentence_embedding'"),
        (1, module("SpladePooling", "1_S"), "it is not known"),
        (
            2,
            own,
            "'pylate.models.Dense.Dense' (path '2_Dense') is not supported here: it is not sentence-transformers' own",
        ),
        (2, module("Dense", "../outside"), "`../outside` leads out of the folder"),
        (2, module("Normalize", "/tmp"), "`/tmp` leads out of the folder"),
        (2, module("Dense", "nowhere"), "nowhere/config.json: there is no such file"),
        (2, module("Router", "nowhere"), "nowhere/config.json: there is no such file"),
    ] {
        let folder = assembled("bert", "activation-tanh");
        edit_json(&folder.path().join("modules.json"), |list| list.as_array_mut().unwrap().insert(at, entry.clone()));
        let refused = refused(&folder);
        assert!(refused.contains(says), "{entry}: '{says}' is not in: {refused}");
    }
}

/// Each key of a row's file at this value is refused with these words.
fn assert_refused(row: &str, file: &str, cases: &[(&str, Value, &str)]) {
    for (key, value, says) in cases {
        let folder = assembled("bert", row);
        edit_json(&folder.path().join(file), |content| content[key] = value.clone());
        let refused = refused(&folder);
        assert!(refused.contains(says), "{row} {key}: '{says}' is not in: {refused}");
    }
}

#[test]
fn settings_of_modules_that_are_not_reproduced_are_refused_by_name() {
    let function = |path: &str| ("activation_function", json!(path), "activation_function '");
    let cases = [
        function("torch.nn.Softmax"),
        function("torch.nn.functional.relu"),
        function("torch.nn.PReLU"),
        function("mine.ReLU"),
        ("activation_function", json!(null), "activation_function: invalid type: null"),
        ("module_input_name", json!("mine"), "from 'mine' to 'mine' is not supported"),
        ("module_input_name", json!("token_embeddings"), "nothing after it reads 'token_embeddings'"),
        ("use_residual", json!(true), "tensor 'residual.weight' is missing"),
    ];
    assert_refused("activation-tanh", "2_Dense/config.json", &cases);
    let cases = [
        ("module_output_name", json!("sentence_embedding"), "from 'token_embeddings' to 'sentence_embedding'"),
        ("in_features", json!(31), "linear.weight"),
    ];
    assert_refused("dense-on-tokens", "1_Dense/config.json", &cases);
    let unread = ("use_residual", json!(false), "tensors that nothing reads: residual.weight");
    assert_refused("dense-residual-projected", "2_Dense/config.json", &[unread]);
    assert_refused("layer-norm", "2_LayerNorm/config.json", &[("dimension", json!(31), "norm.weight")]);
    let cases = [
        ("layer_start", json!(3), "layer_start = 3, but num_hidden_layers is 2"),
        ("num_hidden_layers", json!(3), "layer_weights"),
    ];
    assert_refused("layers", "1_WeightedLayerPooling/config.json", &cases);
    let cases = [
        ("pooling_mode", json!("best"), "pooling_mode \"best\" is not known"),
        ("pooling_mode", json!([]), "pooling_mode = [] is not supported"),
        ("pooling_mode_best", json!(true), "pooling_mode_best = true is not supported"),
    ];
    assert_refused("activation-tanh", "1_Pooling/config.json", &cases);
    let cases = [
        ("types", json!({}), "route 'query' names 'query_0_Dense', which is not among the types"),
        ("structure", json!({"query": 3}), "invalid type"),
        ("parameters", json!({"default_route": "x"}), "default_route: there is no route 'x'"),
        ("parameters", json!({"mine": 1}), "unknown field `mine`"),
        ("parameters", json!({"route_mappings": {"(None, None)": "x"}}), "route_mappings: there is no route 'x'"),
        ("parameters", json!({"route_mappings": {"text": "query"}}), "route_mappings: 'text' is not understood"),
    ];
    assert_refused("router", "2_Router/router_config.json", &cases);
}

#[test]
fn settings_of_the_model_that_are_not_reproduced_are_refused_by_name() {
    let cases = [
        ("truncate_dim", json!(0), "truncate_dim = 0 leaves nothing of a vector"),
        ("truncate_dim", json!(-1), "truncate_dim: invalid value"),
        ("model_type", json!("SparseEncoder"), "model_type 'SparseEncoder' is not supported"),
        ("default_prompt_name", json!("none"), "default_prompt_name 'none' is not among the prompts"),
    ];
    assert_refused("truncate-dim", "config_sentence_transformers.json", &cases);
    let cases = [
        ("query_length", json!(32), "query_length = 32 is not supported"),
        ("document_length", json!(32), "document_length = 32 is not supported"),
        ("query_expansion", json!({"length": 8}), "query_expansion = "),
        ("processing_kwargs", json!({"text": {"max_length": 8}}), "processing_kwargs = "),
        ("tokenizer_args", json!({"from_slow": true}), "tokenizer_args = "),
        ("processor_kwargs", json!({"model_max_length": 0}), "processor_kwargs = "),
        ("model_args", json!({"output_attentions": true}), "model_args = "),
        ("config_kwargs", json!({"output_hidden_states": true}), "config_kwargs = "),
    ];
    assert_refused("prompts", "sentence_bert_config.json", &cases);
}

#[test]
fn an_adapters_own_pipeline_must_fit_its_base() {
    let folder = adapter_with("layer-norm");
    for name in ["config.json", "model.safetensors"] {
        let wide = fixture("pipelines/bert/layer-norm/4_LayerNorm").join(name);
        fs::copy(wide, folder.path().join("2_LayerNorm").join(name)).unwrap();
    }
    let door = |base: &str| {
        let adapter = format!("a={}", folder.path().display());
        Door::with(config(&[named("m", base)], &[adapter], &[]).unwrap()).err().expect("it must not load").to_string()
    };
    let refused = door("bert/base");
    assert!(refused.contains("2_LayerNorm") && refused.contains("dimension = 24"), "{refused}");
}

#[test]
fn no_adapter_lies_on_routes_with_bodies_of_their_own() {
    let folder = assembled("bert", "router-static");
    let base = format!("m={}", folder.path().display());
    let adapter = named("a", "bert/lora-all");
    let refused = Door::with(config(&[base], &[adapter], &[]).unwrap()).err().expect("it must not load").to_string();
    assert!(refused.contains("the routes of 'm' have bodies of their own"), "{refused}");
}
