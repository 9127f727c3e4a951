//! The genuine all-MiniLM-L6-v2 with two trained adapters, against vectors of sentence-transformers + PEFT.

mod support;

use serde_json::{Value, json};
use std::process::Command;
use std::sync::OnceLock;
use support::{Door, cosine, embeddings, gap, gpu, named, read, rows, test_device};

const ADAPTERS: [&str; 2] = ["minilm-stsb-r8-qv", "minilm-debian-r16-all"];

/// The model, fetched where it is not there yet.
fn minilm(keys: &[(&str, &str)]) -> Door {
    let root = env!("CARGO_MANIFEST_DIR");
    static FETCHED: OnceLock<bool> = OnceLock::new();
    let fetch = || Command::new(format!("{root}/tests/fetch-model")).status().unwrap().success();
    assert!(*FETCHED.get_or_init(fetch), "tests/fetch-model failed");
    let adapters = ADAPTERS.map(|name| named(name, &format!("minilm/{name}")));
    Door::open(&[format!("minilm={root}/target/all-MiniLM-L6-v2")], &adapters, keys)
}

fn reference(name: &str) -> (Vec<String>, Vec<Vec<f32>>) {
    let file: Value = read(&format!("minilm/{name}.ref.json"));
    (serde_json::from_value(file["texts"].clone()).unwrap(), rows(&file["emb"]))
}

#[tokio::test]
async fn trained_adapters_are_within_1e5_of_the_oracle_alone_and_mixed() {
    let door = minilm(&[("dtype", "float32")]);
    let (mut inputs, mut adapters, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for name in ADAPTERS {
        let (texts, oracle) = reference(name);
        let (ours, base) = (door.vectors(name, &texts).await, door.vectors("minilm", &texts).await);
        let (error, effect) = (gap(&ours, &oracle), gap(&ours, &base));
        println!("{name:24} max|diff| {error:.1e}  |adapter - base| {effect:.2}");
        assert!(error <= 1e-5, "{name}: {error}");
        assert!(effect > 1e-2, "{name} does nothing");
        for (text, vector) in texts.into_iter().zip(oracle) {
            inputs.push(text.clone());
            adapters.push(Some(name));
            expected.push(vector);
            // A text of the base between them.
            expected.extend(door.vectors("minilm", [&text]).await);
            inputs.push(text);
            adapters.push(None);
        }
    }
    let (status, reply) = door.ask(json!({"model": "minilm", "input": inputs, "adapters": adapters})).await;
    assert_eq!(status, 200, "{reply}");
    assert!(gap(&embeddings(&reply), &expected) <= 1e-5);
}

#[tokio::test]
async fn fewer_bits_keep_a_trained_models_direction() {
    let dtypes = [("bfloat16", 0.9999), ("float16", 0.9999), ("int8", 0.995)];
    // Integers are for CPUs.
    for (dtype, least) in dtypes.into_iter().filter(|(dtype, _)| *dtype != "int8" || test_device().is_none()) {
        let door = minilm(&[("dtype", dtype)]);
        for name in ADAPTERS {
            let (texts, oracle) = reference(name);
            let cosine = cosine(&door.vectors(name, &texts).await, &oracle);
            println!("{name:24} {dtype:10} cosine {cosine:.7}");
            assert!(cosine >= least, "{name} {dtype}: {cosine}");
        }
    }
}

/// Attention makes this adapter's changes itself there, in other kernels than where there is none.
#[tokio::test]
async fn in_16_bits_on_a_gpu_a_base_is_the_same_with_a_trained_adapter_beside_it() {
    let Some(device) = gpu() else { return };
    let door = minilm(&[("device", &device), ("dtype", "bfloat16"), ("max_batch_tokens", "128")]);
    let (texts, oracle) = reference(ADAPTERS[0]);
    // Below 33 tokens there is another kernel.
    let texts = [1, 4].map(|times| [texts[0].as_str()].repeat(times).join(" "));
    // Always as many rows, as products take another algorithm for another number of them.
    let inputs = [&texts[0], &texts[1], &texts[0], &texts[1]];
    let ask = async |last: Option<&str>| {
        let body = json!({"model": "minilm", "input": inputs, "adapters": [null, null, last, last]});
        let (status, reply) = door.ask(body).await;
        assert_eq!(status, 200, "{reply}");
        embeddings(&reply)
    };
    let (alone, together) = (ask(None).await, ask(Some(ADAPTERS[0])).await);
    assert!(gap(&alone[..2], &together[..2]) <= 1e-6, "{}", gap(&alone[..2], &together[..2]));
    let cosine = cosine(&together[2..3], &oracle[..1]);
    assert!(cosine >= 0.9999, "{cosine}");
}

#[tokio::test]
async fn an_adapter_keeps_its_own_length_limit() {
    let door = minilm(&[("dtype", "float32")]);
    let (_, list) = door.get("/v1/models").await;
    let limit = |name: &str| {
        let found = list["data"].as_array().unwrap().iter().find(|model| model["id"] == name).unwrap();
        found["max_model_len"].as_u64().unwrap()
    };
    assert_eq!([limit("minilm"), limit(ADAPTERS[0]), limit(ADAPTERS[1])], [256, 256, 64]);
}
