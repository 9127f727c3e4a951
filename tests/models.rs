//! What a model's files may say, and the refusals: each names the file and the cause.

mod support;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use support::{Door, config, copy_of, edit_json, embeddings, fixture, gap, read, rows};
use tempfile::TempDir;

/// A copy of a fixture model with a JSON file changed.
fn changed(family: &str, file: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let folder = copy_of(&format!("{family}/base"));
    edit_json(&folder.path().join(file), change);
    folder
}

fn refusal(folder: &TempDir) -> String {
    let config = config(&[format!("m={}", folder.path().display())], &[], &[]).unwrap();
    let refusal = Door::with(config).err().expect("it must not load").to_string();
    assert_eq!(refusal.lines().count(), 1, "{refusal}");
    refusal
}

#[test]
fn what_a_configuration_says_and_we_do_not_do_is_refused_by_name() {
    for (family, key, value, says) in [
        ("bert", "model_type", json!("gpt9"), "gpt9"),
        ("bert", "model_type", json!(null), "known: albert, bert, camembert"),
        ("bert", "position_embedding_type", json!("relative_key"), "relative_key"),
        ("bert", "is_decoder", json!(true), "is_decoder"),
        ("bert", "hidden_act", json!("mish"), "mish"),
        ("bert", "hidden_size", json!("wide"), "hidden_size"),
        ("bert", "num_attention_heads", json!(0), "heads"),
        ("bert", "num_attention_heads", json!(5), "5 heads"),
        ("bert", "vocab_size", json!(100), "embeddings.word_embeddings.weight"),
        ("bert", "num_hidden_layers", json!(1), "encoder.layer.1"),
        ("bert", "num_hidden_layers", json!(3), "encoder.layer.2"),
        ("roberta", "max_position_embeddings", json!(2), "max_position_embeddings"),
        ("qwen2-sliding", "sliding_window", json!(null), "sliding_window"),
        ("qwen2-sliding", "sliding_window", json!(0), "sliding_window"),
        ("qwen3", "rope_parameters", json!({"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
        ("llama", "rope_parameters", json!({"rope_type": "llama3"}), "factor"),
        ("gte", "rope_parameters", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("gte-new", "logn_attention_scale", json!(true), "logn_attention_scale"),
        ("gte-new", "position_embedding_type", json!("absolute"), "position_embedding_type"),
        ("nomic-v1.5", "rotary_emb_fraction", json!(0.5), "rotary_emb_fraction"),
        ("nomic-v1.5", "rotary_scaling_factor", json!(2), "rotary_scaling_factor"),
        ("nomic-v1.5", "activation_function", json!("glu"), "glu"),
        ("nomic-v2-moe", "moe_top_k", json!(9), "9 of 8 experts"),
        ("gemma3", "attn_logit_softcapping", json!(50.0), "attn_logit_softcapping"),
        ("jina-v2", "feed_forward_type", json!("swiglu"), "swiglu"),
        ("jina-v3", "lora_rank", json!(0), "lora_rank"),
        ("jina-v3", "lora_adaptations", json!(["one"]), "lora_A"),
        ("deberta", "talking_head", json!(true), "talking_head"),
        ("deberta", "embedding_size", json!(16), "embedding_size"),
        ("deberta-v2-unshared", "conv_kernel_size", json!(2), "conv_kernel_size"),
        ("albert", "num_hidden_groups", json!(9), "num_hidden_groups"),
        ("t5", "dense_act_fn", json!("mish"), "mish"),
        ("t5", "is_decoder", json!(true), "is_decoder"),
        ("t5", "relative_attention_num_buckets", json!(1), "1 buckets"),
        ("t5", "relative_attention_max_distance", json!(1), "up to 1 tokens"),
        ("distilbert", "is_causal", json!(true), "is_causal"),
        ("eurobert", "is_causal", json!(true), "is_causal"),
        ("gemma3", "is_causal", json!(false), "is_causal"),
        ("bert", "quantization_config", json!({"bits": 4}), "quantization_config"),
        ("bert", "layer_norm_eps", json!(-1.0), "epsilon"),
        ("bert", "intermediate_size", json!(0), "no width"),
        ("bert", "max_position_embeddings", json!(u64::MAX), "not supported"),
        ("llama", "max_position_embeddings", json!(1_000_000_000_000u64), "not supported"),
        ("roberta", "pad_token_id", json!(u64::MAX), "max_position_embeddings"),
        ("nomic-v2-moe", "num_experts", json!(1u64 << 62), "experts.mlp.w1"),
        ("nomic-v1.5", "n_inner", json!(u64::MAX), "fc12"),
        ("qwen2", "rope_scaling", json!({"rope_type": "linear", "factor": 4.0}), "rope_scaling beside rope_parameters"),
        ("qwen2", "rope_parameters", json!({"full_attention": {"rope_theta": 1e4}}), "by kind of layer"),
        ("llama", "rope_parameters", json!({"rope_type": "ntk", "factor": 2.0}), "ntk"),
        ("gte-new", "rope_scaling", json!({"type": "ntk", "factor": 2.0, "mixed_b": 0.1}), "mixed_b"),
        ("modernbert", "rope_scaling", json!({"rope_type": "linear", "factor": 8.0}), "rope_scaling"),
        ("gemma3", "rope_scaling", json!({"rope_type": "linear", "factor": 8.0}), "rope_scaling"),
        ("modernbert", "layer_types", json!(["full_attention"]), "layer_types names 1 layers, there are 4"),
        ("qwen2-sliding", "layer_types", json!(["full_attention", "chunked_attention", "full_attention"]), "chunked"),
        ("deberta", "pos_att_type", json!(["c2p", "p2c", "p2p"]), "pos_att_type"),
        ("qwen3", "num_key_value_heads", json!(3), "3 key heads"),
    ] {
        println!("{family} {key} {value}");
        let refusal = refusal(&changed(family, "config.json", |config| config[key] = value));
        assert!(refusal.contains(says), "'{says}' is not in: {refusal}");
    }
}

/// Vectors of a folder's model for the texts of a family, and those of the oracle for the family.
async fn compared(folder: &TempDir, family: &str) -> f32 {
    let golden = read(&format!("{family}/golden.json"));
    let door = Door::open(&[format!("m={}", folder.path().display())], &[], &[]);
    gap(&door.vectors("m", &golden["texts"]).await, &rows(&golden["base"]))
}

#[tokio::test]
async fn older_spellings_and_defaults_mean_the_same() {
    let llama3 = json!({"rope_type": "llama3", "type": "llama3", "factor": 8.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 32});
    for (family, keys, without) in [
        ("qwen3", json!({"rope_theta": 1e4, "rope_scaling": {}}), &["rope_parameters"][..]),
        ("llama", json!({"rope_theta": 1e4, "rope_scaling": llama3}), &["rope_parameters"]),
        (
            "modernbert",
            json!({"global_rope_theta": 1.6e5, "local_rope_theta": 1e4, "global_attn_every_n_layers": 3}),
            &["rope_parameters", "layer_types"],
        ),
        ("modernbert", json!({}), &["rope_parameters", "layer_types"]),
        ("gemma3", json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "hidden_act": "relu"}), &["rope_parameters"]),
        ("gemma3", json!({}), &["rope_parameters", "hidden_activation"]),
        ("qwen2", json!({"use_sliding_window": false}), &["layer_types", "sliding_window", "hidden_act"]),
        ("qwen2-sliding", json!({}), &["layer_types"]),
        ("deberta-v2", json!({}), &["layer_norm_eps"]),
        ("jina_embeddings_v3", json!({}), &["layer_norm_eps"]),
        ("mpnet", json!({"pad_token_id": 3}), &[]),
        ("t5", json!({}), &["feed_forward_proj", "dense_act_fn", "is_gated_act"]),
    ] {
        let folder = changed(family, "config.json", |config| {
            let config = config.as_object_mut().unwrap();
            without.iter().for_each(|key| drop(config.remove(*key)));
            config.extend(keys.as_object().unwrap().clone());
        });
        let gap = compared(&folder, family).await;
        assert!(gap <= 1e-5, "{family} {keys} without {without:?}: {gap}");
    }
}

#[tokio::test]
async fn a_window_that_is_absent_is_the_default_and_null_is_none() {
    let with = |window: Option<Value>| {
        changed("mistral", "config.json", |config| {
            let config = config.as_object_mut().unwrap();
            config.remove("sliding_window");
            config.extend(window.map(|window| ("sliding_window".to_owned(), window)));
        })
    };
    let [absent, null, default] = [with(None), with(Some(Value::Null)), with(Some(json!(4096)))];
    let gaps =
        [compared(&absent, "mistral").await, compared(&null, "mistral").await, compared(&default, "mistral").await];
    assert!(gaps[0] > 1e-2 && gaps.iter().all(|gap| *gap == gaps[0]), "{gaps:?}");
}

/// Rewrites a base's weights under other names.
fn renamed(family: &str, rename: impl Fn(&str) -> Vec<String>) -> TempDir {
    let folder = copy_of(&format!("{family}/base"));
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = stored.iter().collect();
    let tensors = tensors.iter().flat_map(|(name, tensor)| rename(name).into_iter().map(move |name| (name, tensor)));
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    folder
}

#[tokio::test]
async fn what_other_classes_and_versions_save_beside_the_body_is_no_hindrance() {
    let own = renamed("t5", |name| vec![name.replace("shared.", "encoder.embed_tokens.")]);
    let both = renamed("t5", |name| {
        let tied = name.starts_with("shared.").then(|| "encoder.embed_tokens.weight".to_owned());
        [name.to_owned()].into_iter().chain(tied).collect()
    });
    assert!(compared(&own, "t5").await <= 1e-5 && compared(&both, "t5").await <= 1e-5);
    for (family, beside) in [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama", "score.weight"),
        ("nomic-v1.5", "encoder.layers.0.attn.rotary_emb.inv_freq"),
        ("bert", "bert.embeddings.position_ids"),
    ] {
        let first = std::cell::Cell::new(true);
        let folder = renamed(family, |name| {
            let extra = first.replace(false).then(|| beside.to_owned());
            [name.to_owned()].into_iter().chain(extra).collect()
        });
        assert!(!first.get() && compared(&folder, family).await <= 1e-5, "{family} {beside}");
    }
}

#[test]
fn modules_that_are_not_reproduced_are_refused_by_name() {
    let lstm = json!({"idx": 3, "name": "3", "path": "3_LSTM", "type": "sentence_transformers.models.LSTM"});
    let refused = refusal(&changed("bert", "modules.json", |modules| modules.as_array_mut().unwrap().push(lstm)));
    assert!(refused.contains("modules.json") && refused.contains("LSTM"), "{refused}");
    for (key, value, says) in [("in_features", json!(31), "linear.weight"), ("bias", json!(true), "linear.bias")] {
        let refused = refusal(&changed("gemma3", "2_Dense/config.json", |dense| dense[key] = value));
        assert!(refused.contains("2_Dense") && refused.contains(says), "'{says}' is not in: {refused}");
    }
    let swapped = refusal(&changed("gemma3", "modules.json", |modules| modules.as_array_mut().unwrap().swap(2, 3)));
    assert!(swapped.contains("it takes 64 numbers, but what stands before it gives 32"), "{swapped}");
    let outside = refusal(&changed("bert", "modules.json", |modules| modules[1]["path"] = json!("../1_Pooling")));
    assert!(outside.contains("leads out"), "{outside}");
    let unknown =
        refusal(&changed("roberta", "1_Pooling/config.json", |pooling| pooling["pooling_mode"] = json!("best")));
    assert!(unknown.contains("best"), "{unknown}");
}

#[test]
fn files_that_are_missing_or_broken_are_named() {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let folder = copy_of("bert/base");
        fs::remove_file(folder.path().join(file)).unwrap();
        assert!(refusal(&folder).contains(file), "{file}");
        fs::write(folder.path().join(file), "{ \"not\": what it was").unwrap();
        assert!(refusal(&folder).contains(file), "{file}");
    }
}

#[test]
fn a_vocabulary_that_the_model_has_no_rows_for_is_refused() {
    let folder = copy_of("bert/base");
    fs::copy(fixture("minilm/minilm-stsb-r8-qv/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    assert!(refusal(&folder).contains("vocabulary ends at 384"));
}

#[tokio::test]
async fn several_pooling_modes_are_concatenated_in_the_fixed_order() {
    let both = changed("bert", "1_Pooling/config.json", |pooling| pooling["pooling_mode_cls_token"] = json!(true));
    let plain = |folder: &TempDir| {
        let modules = folder.path().join("modules.json");
        let mut list: Value = serde_json::from_slice(&fs::read(&modules).unwrap()).unwrap();
        list.as_array_mut().unwrap().pop();
        fs::write(modules, list.to_string()).unwrap();
    };
    plain(&both);
    let cls = changed("bert", "1_Pooling/config.json", |pooling| {
        *pooling = json!({"pooling_mode": ["cls"], "embedding_dimension": 32});
    });
    plain(&cls);
    let (both, cls) = (open(&both).vectors("m", ["some words"]).await, open(&cls).vectors("m", ["some words"]).await);
    assert_eq!((both[0].len(), cls[0].len()), (64, 32));
    assert_eq!(both[0][..32], cls[0][..]);
    assert_ne!(both[0][32..], cls[0][..]);
}

/// Vectors of unit length.
async fn unit(door: &Door, text: &str) -> Vec<Vec<f32>> {
    let (status, reply) = door.ask(json!({"model": "m", "input": text, "truncate": true})).await;
    assert_eq!(status, 200, "{reply}");
    embeddings(&reply)
}

fn open(folder: &TempDir) -> Door {
    Door::open(&[format!("m={}", folder.path().display())], &[], &[])
}

#[tokio::test]
async fn a_list_of_pooling_modes_keeps_its_order() {
    let with = |modes: Value| changed("roberta", "1_Pooling/config.json", |pooling| pooling["pooling_mode"] = modes);
    let (one, other) = (open(&with(json!(["mean", "cls"]))), open(&with(json!(["cls", "mean"]))));
    let (one, other) = (one.vectors("m", ["a text"]).await, other.vectors("m", ["a text"]).await);
    assert_eq!((&one[0][..32], &one[0][32..]), (&other[0][32..], &other[0][..32]));
    assert_ne!(one, other);
}

#[tokio::test]
async fn a_causal_model_without_modules_json_is_read_at_its_last_token() {
    let folder = changed("qwen3", "config.json", |config| config["architectures"] = json!(["Qwen3ForCausalLM"]));
    fs::remove_file(folder.path().join("modules.json")).unwrap();
    let golden = read("qwen3/golden.json");
    let ours = unit(&open(&folder), golden["texts"][2].as_str().unwrap()).await;
    assert!(gap(&ours, &rows(&golden["base"])[2..3]) <= 1e-5);
    fs::write(folder.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    assert!(refusal(&folder).contains("chat template"));
}

#[tokio::test]
async fn a_transformer_in_a_folder_of_its_own_is_found_there() {
    let folder = changed("mpnet", "modules.json", |modules| modules[0]["path"] = json!("0_Transformer"));
    let inner = folder.path().join("0_Transformer");
    fs::create_dir(&inner).unwrap();
    let files =
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"];
    for name in files {
        fs::rename(folder.path().join(name), inner.join(name)).unwrap();
    }
    let golden = read("mpnet/golden.json");
    let ours = open(&folder).vectors("m", &golden["texts"]).await;
    assert!(gap(&ours, &rows(&golden["base"])) <= 1e-5);
}

#[test]
fn settings_of_the_transformer_that_are_not_reproduced_are_refused() {
    for (key, value) in [
        ("tokenizer_args", json!({"sp_model_kwargs": {"alpha": 0.1}})),
        ("config_args", json!({"hidden_act": "relu"})),
        ("modality_config", json!({"text": {"method": "forward", "method_output_name": ["hidden_states", 1]}})),
        ("transformer_task", json!("fill-mask")),
    ] {
        let refused = refusal(&changed("roberta", "sentence_bert_config.json", |settings| settings[key] = value));
        assert!(refused.contains("sentence_bert_config.json") && refused.contains(key), "{refused}");
    }
}

#[tokio::test]
async fn settings_under_an_older_file_name_are_read() {
    let folder = copy_of("roberta/base");
    fs::remove_file(folder.path().join("sentence_bert_config.json")).unwrap();
    let settings = json!({"max_seq_length": 9, "do_lower_case": true});
    fs::write(folder.path().join("sentence_roberta_config.json"), settings.to_string()).unwrap();
    let door = open(&folder);
    let (_, model) = door.get("/v1/models/m").await;
    assert_eq!(model["max_model_len"], 9);
    assert_eq!(door.vectors("m", ["LOUD Words"]).await, door.vectors("m", ["loud words"]).await);
}

#[tokio::test]
async fn tokenizer_config_goes_over_the_tokenizers_normalizer() {
    let cased = changed("bert", "tokenizer_config.json", |config| config["do_lower_case"] = json!(false));
    let (cased, uncased) = (open(&cased), open(&copy_of("bert/base")));
    assert_eq!(uncased.vectors("m", ["LOUD"]).await, uncased.vectors("m", ["loud"]).await);
    assert_ne!(cased.vectors("m", ["LOUD"]).await, cased.vectors("m", ["loud"]).await);
}

#[tokio::test]
async fn the_tokenizers_truncation_side_is_the_default() {
    let left = changed("bert", "tokenizer_config.json", |config| config["truncation_side"] = json!("left"));
    let (left, right) = (open(&left), open(&copy_of("bert/base")));
    let text = format!("password {}", "reset my ".repeat(60));
    let ask = |side: &str| json!({"model": "m", "input": text, "truncate": true, "truncation_side": side});
    let from_right = embeddings(&right.ask(ask("left")).await.1);
    assert_eq!(unit(&left, &text).await, from_right);
    assert_ne!(unit(&left, &text).await, unit(&right, &text).await);
    assert_eq!(embeddings(&left.ask(ask("right")).await.1), unit(&right, &text).await);
}
