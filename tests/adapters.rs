//! What an adapter's files may say, and the refusals: each names the file and the cause.

mod support;

use serde_json::{Value, json};
use std::fs;
use support::changed::{Changed, assert_says};
use support::tensors::{Stored, Tensors};
use support::{Door, config, copy_of, fixture, gap, named, read, rows, texts};

/// The first tensor's name that ends so.
fn ending(tensors: &Tensors, end: &str) -> String {
    tensors.keys().find(|name| name.ends_with(end)).unwrap().clone()
}

#[test]
fn a_without_its_b_is_refused_and_named() {
    let mut lost = String::new();
    let broken = Changed::copy("bert/lora-attention").tensors(|tensors| {
        lost = ending(tensors, "lora_B.weight");
        tensors.remove(&lost);
    });
    assert_says(&broken.refusal("bert"), &["adapter_model.safetensors", &lost, "is missing"]);
}

#[test]
fn a_stray_tensor_is_refused_and_named() {
    for (name, cause) in [
        ("base_model.model.encoder.layer.0.attention.self.query.lora_magnitude_vector", "nothing reads"),
        ("base_model.model.encoder.layer.9.attention.self.query.lora_A.weight", "has no module"),
        ("base_model.model.classifier_of_mine.weight", "that adapters can change"),
    ] {
        let broken = Changed::copy("bert/lora-attention").tensors(|tensors| {
            tensors.insert(name.into(), Stored::f32(vec![4, 32], &[0.1; 128]));
        });
        assert_says(&broken.refusal("bert"), &["adapter_model.safetensors", name, cause]);
    }
}

#[test]
fn a_module_that_the_base_lacks_is_refused_and_named() {
    let broken = Changed::copy("bert/lora-attention").tensors(|tensors| {
        for half in ["A", "B"] {
            let from = format!("base_model.model.encoder.layer.0.attention.self.query.lora_{half}.weight");
            let tensor = tensors.remove(&from).unwrap();
            tensors.insert(from.replace("layer.0", "layer.7"), tensor);
        }
    });
    assert_says(&broken.refusal("bert"), &["encoder.layer.7.attention.self.query", "that adapters can change"]);
}

#[test]
fn a_hidden_size_that_does_not_fit_is_refused_at_load() {
    let adapter = named("wide", "minilm/minilm-stsb-r8-qv");
    let config = config(&[named("base", "bert/base")], &[adapter], &[]).unwrap();
    let refusal = Door::with(config).err().expect("it must not load").to_string();
    assert_says(&refusal, &["adapter_model.safetensors", "384", "32"]);
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let broken = Changed::copy("bert/lora-attention").tensors(|tensors| {
        let name = ending(tensors, "lora_A.weight");
        tensors.get_mut(&name).unwrap().set(7, f32::NAN);
    });
    assert_says(&broken.refusal("bert"), &["adapter_model.safetensors", "lora_A.weight", "not finite"]);
}

#[test]
fn what_the_configuration_says_is_there_must_be_there() {
    for (key, tensor) in [("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")] {
        let broken = Changed::copy("bert/lora-attention").config(|config| config[key] = json!(true));
        assert_says(&broken.refusal("bert"), &["adapter_model.safetensors", tensor, "is missing"]);
    }
}

#[test]
fn ranks_that_disagree_are_refused() {
    let broken = Changed::copy("bert/lora-attention").config(|config| config["r"] = json!(5));
    assert_says(&broken.refusal("bert"), &["lora_A.weight", "[4, 32]", "[5, 32]"]);
}

#[test]
fn target_modules_must_agree_with_the_tensors() {
    let outside = Changed::copy("bert/lora-attention").config(|config| config["target_modules"] = json!(["query"]));
    assert_says(&outside.refusal("bert"), &["adapter_config.json", "value", "does not name it"]);
    let more = Changed::copy("bert/lora-attention")
        .config(|config| config["target_modules"] = json!(["query", "value", "key"]));
    assert_says(&more.refusal("bert"), &["adapter_config.json", "self.key", "is missing"]);
}

#[tokio::test]
async fn all_spellings_of_target_modules_and_of_prefixes_are_the_same_adapter() {
    let golden = read("bert/golden.json");
    let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
    for targets in [json!(".*\\.(query|value)"), json!(null), json!("all-linear")] {
        let changed = Changed::copy("bert/lora-attention").config(|config| config["target_modules"] = targets);
        let ours = changed.door("bert").vectors("changed", &texts).await;
        assert!(gap(&ours, &rows(&golden["lora-attention"])) <= 1e-5);
    }
    for prefix in [
        "",
        "base_model.model.bert.",
        "base_model.model.base_model.model.",
        "base_model.model._orig_mod.",
        "0.auto_model.",
    ] {
        let changed = Changed::copy("bert/lora-attention").tensors(|tensors| {
            *tensors = std::mem::take(tensors)
                .into_iter()
                .map(|(name, tensor)| {
                    (name.replace("base_model.model.", prefix).replace("lora_A.", "lora_A.default."), tensor)
                })
                .collect();
        });
        let ours = changed.door("bert").vectors("changed", &texts).await;
        assert!(gap(&ours, &rows(&golden["lora-attention"])) <= 1e-5, "{prefix}");
    }
}

#[tokio::test]
async fn an_adapter_without_its_own_files_reads_as_its_base() {
    let golden = read("bert/golden.json");
    let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
    let bare = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(fixture("bert/lora-all").join(name), bare.path().join(name)).unwrap();
    }
    let bare = Changed { folder: bare };
    let ours = bare.door("bert").vectors("changed", &texts).await;
    assert!(gap(&ours, &rows(&golden["lora-all"])) <= 1e-5);
}

#[tokio::test]
async fn the_right_base_is_found_by_shapes_among_several() {
    let models = [named("bert", "bert/base"), named("qwen", "qwen3/base")];
    let door = Door::open(&models, &[named("x", "qwen3/lora-all"), named("bert:y", "bert/lora-all")], &[]);
    let (_, list) = door.get("/v1/models").await;
    let parents: Vec<&str> = list["data"].as_array().unwrap().iter().filter_map(|m| m["parent"].as_str()).collect();
    assert_eq!(parents, ["qwen", "bert"]);
}

#[tokio::test]
async fn one_adapter_name_on_two_bases_is_asked_for_with_its_base() {
    let models = [named("one", "bert/base"), named("two", "bert-sharded")];
    let door = Door::open(&models, &[named("one:x", "bert/lora-all"), named("two:x", "bert/lora-attention")], &[]);
    let (_, list) = door.get("/v1/models").await;
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["one", "two", "one:x", "two:x"]);
    let (status, refusal) = door.ask(json!({"model": "x", "input": "a"})).await;
    assert_eq!(status, 400);
    assert_says(refusal["error"]["message"].as_str().unwrap(), &["one:x", "two:x"]);
    assert!(gap(&door.vectors("one:x", ["a"]).await, &door.vectors("two:x", ["a"]).await) > 1e-2);
}

#[tokio::test]
async fn an_adapter_without_a_default_prompt_takes_none_from_its_base() {
    let base = copy_of("bert/base");
    let prompts = |default: Value| json!({"prompts": {"query": "query: "}, "default_prompt_name": default}).to_string();
    let file = "config_sentence_transformers.json";
    fs::write(base.path().join(file), prompts(json!("query"))).unwrap();
    let adapter = copy_of("bert/lora-all");
    fs::write(adapter.path().join(file), prompts(json!(null))).unwrap();
    let (base, adapter) = (format!("m={}", base.path().display()), format!("a={}", adapter.path().display()));
    let door = Door::open(&[base], &[adapter], &[]);
    let plain = Door::family("bert");
    assert_eq!(door.vectors("m", ["x"]).await, plain.vectors("base", ["query: x"]).await);
    assert_eq!(door.vectors("a", ["x"]).await, plain.vectors("lora-all", ["x"]).await);
}

/// What trainers write beside an adapter that no forward pass to the hidden states reads.
#[tokio::test]
async fn heads_and_settings_of_training_change_nothing() {
    let golden = read("bert/golden.json");
    let head = |name: &str, shape: Vec<usize>| {
        let elements = shape.iter().product();
        (format!("base_model.model.{name}"), Stored::f32(shape, &vec![0.5; elements]))
    };
    let changed = Changed::copy("bert/lora-attention")
        .tensors(|tensors| {
            tensors.extend([
                head("classifier.bias", vec![2]),
                head("classifier.modules_to_save.bias", vec![2]),
                head("classifier.modules_to_save.weight", vec![2, 32]),
                head("cls.predictions.bias", vec![384]),
                head("lm_head.weight", vec![390, 32]),
                head("qa_outputs.bias", vec![2]),
                head("pooler.dense.base_layer.bias", vec![32]),
            ]);
        })
        .config(|config| {
            config["modules_to_save"] = json!(["classifier", "cls.predictions"]);
            config["loftq_config"] = json!({"loftq_bits": 4});
            config["eva_config"] = json!({"rho": 2.0});
            config["lora_dtype"] = json!("bfloat16");
            config["lorap_emb_lr"] = json!(1e-6);
            config["alpha_pattern"] = json!({"key": -3});
        });
    let ours = changed.door("bert").vectors("changed", &texts(&golden)).await;
    assert!(gap(&ours, &rows(&golden["lora-attention"])) <= 1e-5);
}

/// The trainer's model had the body inside, so the configuration's names are longer than the body's own.
#[tokio::test]
async fn patterns_are_read_for_the_names_of_the_trainers_model() {
    let layer = |layer: usize| format!("bert.encoder.layer.{layer}.attention.self.query");
    let changed = |settings: Value| {
        Changed::copy("bert/lora-attention")
            .tensors(|tensors| {
                let all = std::mem::take(tensors).into_iter().filter(|(name, _)| name.contains("layer.1"));
                tensors.extend(all.map(|(name, tensor)| (name.replace("model.encoder", "model.bert.encoder"), tensor)));
            })
            .config(|config| {
                let settings = settings.as_object().unwrap().clone();
                config.as_object_mut().unwrap().extend(settings);
            })
    };
    for settings in [
        json!({"exclude_modules": [layer(0), layer(0).replace("query", "value")]}),
        json!({"exclude_modules": r"bert\.encoder\.layer\.0.*"}),
        json!({"target_modules": r"bert\.encoder\.layer\.1.*(query|value)"}),
        json!({"layers_to_transform": [1]}),
        json!({"layers_to_transform": 1, "layers_pattern": "layer"}),
    ] {
        let door = changed(settings).door("bert");
        assert!(gap(&door.vectors("changed", ["x"]).await, &door.vectors("base", ["x"]).await) > 1e-2);
    }
    for settings in [json!({}), json!({"exclude_modules": [layer(0)]}), json!({"layers_to_transform": [0, 1]})] {
        assert_says(&changed(settings).refusal("bert"), &["adapter_config.json", "layer.0.attention", "is missing"]);
    }
}

/// PEFT saves a copy of the base's embedding beside an update of it; only another one takes the base's place.
#[tokio::test]
async fn a_copy_of_the_bases_embedding_does_not_keep_an_adapter_from_blends() {
    let base = named("base", "gemma3/base");
    let door = Door::open(&[base], &[named("a", "peft/gemma3/lora-embedding")], &[]);
    let ask = json!({"model": "base", "input": ["x"], "adapters": [{"name": "a", "weight": 0.5}]});
    let (status, reply) = door.ask(ask).await;
    assert_eq!(status, 200, "{reply}");
}

/// A pattern also fits the name under which another form of the model fuses modules; these tell what must be there.
#[tokio::test]
async fn a_fused_name_is_not_asked_for_where_its_parts_are_excluded() {
    let only_output = |excluded: Value| {
        Changed::copy("qwen2/lora-all").tensors(|tensors| tensors.retain(|name, _| name.contains("o_proj"))).config(
            |config| {
                config["target_modules"] = json!(r".*self_attn\..*_proj");
                config["exclude_modules"] = excluded;
            },
        )
    };
    let door = only_output(json!(["q_proj", "k_proj", "v_proj"])).door("qwen2");
    assert!(gap(&door.vectors("changed", ["x"]).await, &door.vectors("base", ["x"]).await) > 1e-3);
    assert_says(
        &only_output(json!(null)).refusal("qwen2"),
        &["'base_model.model.layers.0.self_attn.q_proj.lora_A.weight'"],
    );
}
