//! What PEFT can say and is not served: each refusal names the file and what in it. `--nocapture` prints them all.

mod support;

use serde_json::{Value, json};
use support::changed::{Changed, assert_says};
use support::tensors::{Stored, Tensors};
use support::{Door, config, named};

/// Refused for what a key of adapter_config.json says: a fixture, the key, its value, what the message says beside.
fn said() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    const LORA: &str = "bert/lora-attention";
    vec![
        (LORA, "peft_type", json!("LOG_A"), "'LOG_A' is not supported; supported: LORA"),
        (LORA, "peft_type", json!("FOURIERFT"), "; merge it into its base with PEFT's merge_and_unload"),
        (LORA, "peft_type", json!("PREFIX_TUNING"), "cannot be merged: train an adapter of a supported type"),
        (LORA, "peft_type", json!("PROMPT_TUNING"), "cannot be merged: train an adapter of a supported type"),
        (LORA, "peft_type", json!("P_TUNING"), "cannot be merged: train an adapter of a supported type"),
        (LORA, "peft_type", json!("ADAPTION_PROMPT"), "cannot be merged: train an adapter of a supported type"),
        (LORA, "peft_type", json!("LILY"), "routes between updates, which cannot be merged"),
        (LORA, "peft_type", json!("POLY"), "routes between adapters, which cannot be merged"),
        (LORA, "peft_type", json!("XLORA"), "serve each of them, and blend them in requests"),
        (LORA, "peft_type", json!(null), "is missing"),
        (LORA, "bias", json!("all"), "is missing"),
        (LORA, "bias", json!("some"), "not supported; none, all and lora_only"),
        (LORA, "modules_to_save", json!(["LayerNorm"]), "is missing"),
        (LORA, "trainable_token_indices", json!([1, 2]), "is missing"),
        (LORA, "trainable_token_indices", json!({"word_embeddings": [-1]}), "-1"),
        (LORA, "layer_replication", json!([[0, 3]]), "[0, 3] is no range of 2 blocks"),
        (LORA, "layer_replication", json!([[0, 2], [1, 1]]), "[1, 1] is no range of 2 blocks"),
        (LORA, "modules_to_save", json!("all-linear"), "expected a sequence"),
        (LORA, "init_lora_weights", json!("loftq"), "its weights do not tell; merge it"),
        (LORA, "init_lora_weights", json!("lora_ga"), "its weights do not tell; merge it"),
        (LORA, "init_lora_weights", json!("corda"), "path_initial_model_for_weight_conversion, or merge it"),
        (LORA, "init_lora_weights", json!("pissa_niter_4"), "path_initial_model_for_weight_conversion, or merge it"),
        (LORA, "init_lora_weights", json!("nonsense"), "no initialization that is known; true where the base was left"),
        (LORA, "use_qalora", json!(true), "cannot be merged: train it as plain LoRA, with false"),
        (LORA, "target_parameters", json!(["a.weight"]), "merge_and_unload"),
        (LORA, "velora_config", json!({"scale": 1.0}), "merge_and_unload"),
        (LORA, "alora_invocation_tokens", json!([1]), "cannot be merged: train it as plain LoRA, with null"),
        (LORA, "megatron_config", json!({"a": 1}), "not one of transformers"),
        (LORA, "kasa_config", json!({"beta": 0.1}), "merge_and_unload"),
        (LORA, "arrow_config", json!({"top_k": 2}), "serve each of them, and blend them in requests"),
        (LORA, "use_bdlora", json!({"nblocks": 2}), "merge_and_unload"),
        (LORA, "monteclora_config", json!({"num_samples": 8}), "merge_and_unload"),
        (LORA, "a_key_of_next_year", json!({"on": true}), "remove it if only training reads it, else merge it"),
        (LORA, "r", json!(null), "must be a number, not null"),
        (LORA, "r", json!(0), "at least 1"),
        (LORA, "r", json!(-1), "-1"),
        (LORA, "r", json!(2.5), "2.5"),
        (LORA, "lora_alpha", json!(null), "must be a number, not null"),
        (LORA, "lora_alpha", json!("8"), "string"),
        (LORA, "rank_pattern", json!({"query": 0.5}), "expected a whole number from 1 on, found 0.5"),
        (LORA, "rank_pattern", json!({"query": -2}), "expected a whole number from 1 on"),
        (LORA, "rank_pattern", json!({"(": 2}), "'('"),
        (LORA, "alpha_pattern", json!({"query": "9"}), "expected a number"),
        (LORA, "target_modules", json!("("), "("),
        (LORA, "layers_to_transform", json!(["last"]), "expected numbers of layers"),
        ("peft/bert/oft", "num_cayley_neumann_terms", json!(1_000_000_000), "more than 256"),
        ("peft/bert/boft", "boft_block_num", json!(4), "one of boft_block_size and boft_block_num must be 0"),
        ("peft/bert/lokr", "decompose_factor", json!(0), "must not be 0"),
        ("peft/bert/vera", "save_projection", json!(false), "save_projection = true"),
        ("peft/bert/adalora", "rank_pattern", json!({"a.lora_E": 3}), "expected a list of true and false"),
    ]
}

#[test]
fn what_the_configuration_says_and_is_not_served_is_refused_by_name() {
    for (fixture, key, value, reason) in said() {
        let refusal = Changed::copy(fixture).config(|config| config[key] = value.clone()).refusal("bert");
        println!("{key} = {value}: {}", refusal.split_once(": ").map_or(&*refusal, |(_, reason)| reason));
        assert_says(&refusal, &["adapter_config.json", key, reason]);
    }
}

/// Sizes that no tensor has: none is reserved, and nothing overflows.
#[test]
fn sizes_that_are_absurd_are_refused() {
    for (fixture, key, value, tensor) in [
        ("bert/lora-attention", "r", json!(1_u64 << 63), "lora_A.weight"),
        ("bert/lora-attention", "rank_pattern", json!({"query": 1e300}), "query.lora_A.weight"),
        ("peft/bert/shira", "r", json!(1_u64 << 60), "shira_weight"),
        ("peft/bert/lokr", "r", json!(1_u64 << 63), "lokr_w"),
        ("peft/bert/loha", "r", json!(1_u64 << 63), "hada_w1_a"),
        ("peft/bert/hra", "r", json!(1_u64 << 63), "hra_u"),
        ("peft/bert/boft", "boft_block_size", json!(1_u64 << 63), "do not fit 32 inputs"),
        ("peft/bert/boft-butterfly", "boft_n_butterfly_factor", json!(70), "do not fit 32 inputs"),
    ] {
        let refusal = Changed::copy(fixture).config(|config| config[key] = value).refusal("bert");
        assert_says(&refusal, &["adapter_model.safetensors", tensor]);
    }
    let empty = Changed::copy("peft/bert/oft").tensors(|tensors| {
        tensors.values_mut().for_each(|tensor| *tensor = Stored::f32(vec![32, 0], &[]));
    });
    assert_says(&empty.refusal("bert"), &["oft_R.weight' of [32, 0] does not fit"]);
}

/// A pattern that takes exponential time is given up, not read as one that fits nothing.
#[test]
fn a_pattern_that_takes_too_long_is_refused() {
    let endless = json!({r"(x+x+)+y|(.*)*\2z|(?:.*.*.*)*\2#": 5});
    let slow = Changed::copy("bert/lora-attention").config(|config| config["alpha_pattern"] = endless);
    assert_says(&slow.refusal("bert"), &["adapter_model.safetensors", "(x+x+)+y", "query"]);
}

/// An embedding of the adapter's own with fewer rows: what any reader of its texts may give must be there.
#[test]
fn rows_for_every_token_and_position_must_be_there() {
    let own = |name: &'static str, rows: usize| {
        Changed::copy("bert/lora-attention").config(|config| config["modules_to_save"] = json!([name])).tensors(
            |tensors| {
                let own = Stored::f32(vec![rows, 32], &vec![0.1; 32 * rows]);
                drop(tensors.insert(format!("base_model.model.embeddings.{name}.weight"), own));
            },
        )
    };
    assert_says(&own("position_embeddings", 3).refusal("bert"), &["position_embeddings.weight", "[3, 32]", "[64, 32]"]);
    let few = own("word_embeddings", 10);
    // Its own tokenizer is the base's, which was found fit for the base.
    assert_says(&few.refusal("bert"), &["tokenizer.json", "it has token id 383", "ends at 10"]);
    std::fs::remove_file(few.folder.path().join("tokenizer.json")).unwrap();
    assert_says(&few.refusal("bert"), &["its base's tokenizer has token id 383", "ends at 10"]);
}

/// Of two modules with the same weights the forward pass runs one.
#[test]
fn an_embedding_under_two_names_is_changed_once() {
    let twice = Changed::copy("peft/t5/token-indices").tensors(|tensors: &mut Tensors| {
        let (a, b) = (Stored::f32(vec![4, 369], &[0.1; 1476]), Stored::f32(vec![32, 4], &[0.1; 128]));
        tensors.insert("base_model.model.encoder.embed_tokens.lora_embedding_A".into(), a);
        tensors.insert("base_model.model.encoder.embed_tokens.lora_embedding_B".into(), b);
    });
    let twice = twice.config(|config| config["target_modules"] = json!(["q", "v", "embed_tokens"]));
    assert_says(&twice.refusal("t5"), &["'shared'", "'embed_tokens'", "one module"]);
    let idle =
        Changed::copy("peft/t5/lora-shared").tensors(|tensors| tensors.retain(|name, _| name.contains("shared")));
    let idle = idle.config(|config| config["target_modules"] = json!(["shared"]));
    let config = config(&[named("base", "t5/base")], &[format!("a={}", idle.folder.path().display())], &[]).unwrap();
    let refusal = Door::with(config).err().expect("it changes nothing").to_string();
    assert_says(&refusal, &["changes no module that the forward pass runs"]);
}

/// Modules that the forward pass runs, and that adapters cannot change, or not so: each message says what to do.
#[test]
fn what_cannot_be_changed_is_refused_with_the_way_out() {
    let filled = |shape: [usize; 2]| Stored::f32(shape.to_vec(), &vec![0.1; shape[0] * shape[1]]);
    type Case = (&'static str, &'static str, &'static [(&'static str, [usize; 2])], Value, &'static [&'static str]);
    let cases: [Case; 5] = [
        (
            "t5",
            "modules-to-save",
            &[("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", [8, 4])],
            json!({"modules_to_save": ["relative_attention_bias", "final_layer_norm", "SelfAttention.k"]}),
            &["relative_attention_bias.weight", "that adapters can change", "merge_and_unload"],
        ),
        (
            "t5",
            "lora-shared",
            &[("encoder.embed_tokens.lora_embedding_A", [4, 369]), ("encoder.embed_tokens.lora_embedding_B", [32, 4])],
            json!({"ensure_weight_tying": true}),
            &["encoder.embed_tokens", "does not name it; name 'embed_tokens' there in place of 'shared'"],
        ),
        (
            "t5",
            "resized-vocabulary",
            &[],
            json!({"modules_to_save": ["shared"]}),
            &["another number of tokens", "'embed_tokens'", "in place of 'shared'"],
        ),
        (
            "deberta-v2-unshared",
            "bias-all",
            &[("encoder.conv.conv.weight", [32, 96])],
            json!({"modules_to_save": ["conv.conv"]}),
            &["encoder.conv.conv", "only the bias", "leave it out", "merge_and_unload"],
        ),
        (
            "qwen2",
            "other-names",
            &[
                ("layers.0.self_attn.q_proj.lora_A.weight", [4, 32]),
                ("layers.0.self_attn.q_proj.lora_B.weight", [32, 4]),
            ],
            json!({"target_modules": null}),
            &["'layers.0.self_attn.q_proj'", "'layers.0.self_attn.qkv_proj'", "are one module"],
        ),
    ];
    for (base, kind, added, settings, reasons) in cases {
        let broken = Changed::copy(&format!("peft/{base}/{kind}")).tensors(|tensors| {
            tensors.extend(added.iter().map(|(name, shape)| (format!("base_model.model.{name}"), filled(*shape))));
        });
        let broken =
            broken.config(|config| config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone()));
        let refusal = broken.refusal(base);
        println!("{refusal}");
        assert_says(&refusal, reasons);
    }
}

/// DeBERTa reads the weight of its relative positions past whatever lies over it, and so does PEFT's model.
#[tokio::test]
async fn an_update_of_relative_positions_changes_nothing() {
    let changed = Changed::copy("deberta-v2/lora-attention").tensors(|tensors| {
        let (a, b) = (Stored::f32(vec![4, 16], &[0.3; 64]), Stored::f32(vec![32, 4], &[0.3; 128]));
        tensors.insert("base_model.model.encoder.rel_embeddings.lora_embedding_A".into(), a);
        tensors.insert("base_model.model.encoder.rel_embeddings.lora_embedding_B".into(), b);
    });
    let changed =
        changed.config(|config| config["target_modules"].as_array_mut().unwrap().push("rel_embeddings".into()));
    let door = changed.door("deberta-v2");
    let plain = Door::family("deberta-v2");
    assert_eq!(door.vectors("changed", ["some text"]).await, plain.vectors("lora-attention", ["some text"]).await);
}
