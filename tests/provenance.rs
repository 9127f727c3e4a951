//! Which bits made a vector: the headers of a reply, what `GET /v1/models` says, and `If-Match`.

mod support;

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use support::{ADAPTERS, Door, copy_of, edit_json, fixture, named, parts, refusal};

fn source(name: &str, folder: &Path) -> String {
    format!("{name}={}", folder.display())
}

/// The headers of an answer.
async fn headers(door: &Door, body: Value) -> HeaderMap {
    let response = door.send(Request::post("/v1/embeddings").body(Body::from(body.to_string())).unwrap()).await;
    assert_eq!(response.status(), 200, "{body}");
    response.headers().clone()
}

/// Generation and fingerprint of a name, the first empty for a base; the tag that follows from them is the reply's.
async fn bits(door: &Door, model: &str) -> (String, String) {
    let headers = headers(door, json!({"model": model, "input": "a"})).await;
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let (generation, fingerprint) = (text("x-veneer-generation"), text("x-veneer-fingerprint"));
    let tag = if generation.is_empty() { fingerprint.clone() } else { format!("{generation}.{fingerprint}") };
    assert_eq!(text("etag"), format!("\"{tag}\""));
    let (_, listed) = door.get(&format!("/v1/models/{model}")).await;
    assert_eq!(listed["fingerprint"], json!(fingerprint));
    assert_eq!(listed["generation"], if generation.is_empty() { Value::Null } else { json!(generation) });
    for digest in [&generation, &fingerprint].into_iter().filter(|digest| !digest.is_empty()) {
        assert!(digest.len() == 32 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
    }
    (generation, fingerprint)
}

async fn bits_of(base: &Path, adapter: &Path, keys: &[(&str, &str)]) -> [(String, String); 2] {
    let door = Door::open(&[source("m", base)], &[source("a", adapter)], keys);
    [bits(&door, "m").await, bits(&door, "a").await]
}

/// What is done to a folder.
type Change<'a> = &'a dyn Fn(&Path);

/// Flips the lowest bit of the last byte, which is of a weight.
fn change_a_weight(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn equal_bits_have_equal_headers_wherever_they_lie_and_whatever_lies_beside_them() {
    let (base, adapter) = (copy_of("bert/base"), copy_of("bert/lora-all"));
    for folder in [&base, &adapter] {
        fs::write(folder.path().join("README.md"), "read me").unwrap();
        fs::write(folder.path().join("data_config.json"), "{}").unwrap();
        fs::create_dir(folder.path().join("onnx")).unwrap();
        fs::write(folder.path().join("onnx/config.json"), "{}").unwrap();
    }
    fs::write(base.path().join("pytorch_model.bin"), "the same weights").unwrap();
    let [ours, theirs] = [
        bits_of(&fixture("bert/base"), &fixture("bert/lora-all"), &[]).await,
        bits_of(base.path(), adapter.path(), &[]).await,
    ];
    assert_eq!(ours, theirs);
    assert!(ours[0].0.is_empty() && !ours[1].0.is_empty());
}

#[tokio::test]
async fn a_changed_base_changes_every_fingerprint_and_no_generation() {
    let adapter = fixture("bert/lora-all");
    let before = bits_of(&fixture("bert/base"), &adapter, &[]).await;
    let prompts = |config: &mut Value| config["prompts"]["query"] = json!("query: ");
    // Written anew with other spaces: what counts are the bits, not what they mean.
    let pooling = |_: &mut Value| {};
    let changes: [Change; 4] = [
        &|base| change_a_weight(&base.join("model.safetensors")),
        &|base| edit_json(&base.join("config_sentence_transformers.json"), prompts),
        &|base| edit_json(&base.join("1_Pooling/config.json"), pooling),
        &|base| edit_json(&base.join("tokenizer_config.json"), |config| config["truncation_side"] = json!("left")),
    ];
    let mut seen = vec![before[0].1.clone()];
    for change in changes {
        let base = copy_of("bert/base");
        change(base.path());
        let after = bits_of(base.path(), &adapter, &[]).await;
        assert_eq!([&after[0].0, &after[1].0], [&before[0].0, &before[1].0]);
        assert!(!seen.contains(&after[0].1) && after[1].1 != before[1].1);
        seen.push(after[0].1.clone());
    }
    let half = bits_of(&fixture("bert/base"), &adapter, &[("dtype", "bfloat16")]).await;
    assert_eq!([&half[0].0, &half[1].0], [&before[0].0, &before[1].0]);
    assert!(!seen.contains(&half[0].1) && half[1].1 != before[1].1);
}

#[tokio::test]
async fn a_changed_adapter_changes_its_generation_and_not_its_base() {
    let base = fixture("bert/base");
    let before = bits_of(&base, &fixture("bert/lora-all"), &[]).await;
    let changes: [(bool, Change); 3] = [
        (false, &|adapter| change_a_weight(&adapter.join("adapter_model.safetensors"))),
        (false, &|adapter| edit_json(&adapter.join("adapter_config.json"), |config| config["lora_alpha"] = json!(3))),
        (true, &|adapter| {
            edit_json(&adapter.join("config_sentence_transformers.json"), |config| config["prompts"]["x"] = json!("x"))
        }),
    ];
    let mut seen = vec![before[1].0.clone()];
    for (is_pipeline, change) in changes {
        let adapter = copy_of("bert/lora-all");
        change(adapter.path());
        let after = bits_of(&base, adapter.path(), &[]).await;
        assert_eq!(after[0], before[0]);
        assert!(!seen.contains(&after[1].0));
        assert_eq!(after[1].1 != before[1].1, is_pipeline);
        seen.push(after[1].0.clone());
    }
}

#[tokio::test]
async fn what_an_adapter_brings_counts_only_where_it_is_used() {
    let (base, whole, bare) = (fixture("bert/base"), fixture("bert/lora-all"), tempfile::tempdir().unwrap());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(whole.join(name), bare.path().join(name)).unwrap();
    }
    let [of_base, of_bare] = bits_of(&base, bare.path(), &[]).await;
    assert_eq!(of_bare.1, of_base.1, "it is read and pooled as its base");
    let [_, of_whole] = bits_of(&base, &whole, &[]).await;
    assert!(of_whole.0 != of_bare.0 && of_whole.1 != of_bare.1);
    let [_, unused] = bits_of(&base, &whole, &[("pipeline", "base")]).await;
    assert_eq!(unused, of_bare);
    let [_, other_pooling] = bits_of(&base, bare.path(), &[("pipeline", "sentence-transformers")]).await;
    assert!(other_pooling.0 == of_bare.0 && other_pooling.1 != of_bare.1);
}

#[tokio::test]
async fn all_that_is_served_has_a_tag_of_its_own() {
    let beside = copy_of("bert/base");
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(fixture("bert/lora-attention").join(name), beside.path().join(name)).unwrap();
    }
    let models = [source("beside", beside.path()), named("jina", "jina-v3/base"), named("peft", "qwen3/lora-all")];
    let adapters = ADAPTERS.map(|adapter| format!("beside/base:{}", named(adapter, &format!("bert/{adapter}"))));
    let door = Door::open(&models, &adapters, &[]);
    let (_, list) = door.get("/v1/models").await;
    let mut seen = Vec::new();
    for model in list["data"].as_array().unwrap() {
        let bits = bits(&door, model["id"].as_str().unwrap()).await;
        assert_eq!(bits.0.is_empty(), model["parent"].is_null(), "{model}");
        assert!(!seen.contains(&bits), "{model}");
        seen.push(bits);
    }
    // Three bases, the adapter beside one, the one alone, three more, and the tasks of jina-embeddings-v3.
    assert!(seen.len() >= 10, "{list}");
    let alone = Door::open(&[named("base", "bert/base")], &[], &[]);
    assert_eq!(bits(&door, "beside/base").await, bits(&alone, "base").await, "the adapter is no part of its base");
}

#[tokio::test]
async fn several_names_in_one_request_have_a_tag_in_the_order_of_first_use() {
    let door = Door::family("bert");
    let tag = async |adapters: Value| {
        let input = vec!["a"; adapters.as_array().unwrap().len()];
        let headers = headers(&door, json!({"model": "base", "adapters": adapters, "input": input})).await;
        let text = |name: &str| headers[name].to_str().unwrap().to_owned();
        let both = format!("\"{}.{}\"", text("x-veneer-generation"), text("x-veneer-fingerprint"));
        assert_eq!(text("etag"), both);
        both
    };
    let one = bits(&door, "lora-all").await;
    assert_eq!(tag(json!(["lora-all", "lora-all"])).await, format!("\"{}.{}\"", one.0, one.1));
    let mixed = tag(json!(["lora-all", null])).await;
    assert_eq!(mixed, tag(json!(["lora-all", null, "lora-all", null])).await);
    let base = bits(&door, "base").await;
    let joined = |a: &str, b: &str| blake3::hash(format!("{a},{b}").as_bytes()).to_hex()[..32].to_owned();
    assert_eq!(mixed, format!("\"{}.{}\"", joined(&one.0, ""), joined(&one.1, &base.1)));
    for other in [json!([null, "lora-all"]), json!(["lora-all", "lora-attention"]), json!(["lora-all"])] {
        assert_ne!(mixed, tag(other).await);
    }
}

#[tokio::test]
async fn if_match_answers_only_from_the_bits_that_are_expected() {
    let door = Door::family("bert");
    let (generation, fingerprint) = bits(&door, "lora-all").await;
    let now = format!("\"{generation}.{fingerprint}\"");
    let ask = async |lines: &[&str]| {
        let mut request = Request::post("/a/lora-all/embeddings");
        for line in lines {
            request = request.header("If-Match", *line);
        }
        let response = door.send(request.body(Body::from(r#"{"input": "a"}"#)).unwrap()).await;
        let etag = response.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        (parts(response).await, etag)
    };
    let (in_list, in_lines) = (format!("\"a,b\" ,, {now}"), ["\"other\"", &now]);
    for lines in [&[now.as_str()][..], &["*"], &[" * "], &[&in_list], &in_lines, &[]] {
        let ((status, reply), etag) = ask(lines).await;
        assert_eq!((status, etag.as_ref()), (200, Some(&now)), "{lines:?}: {reply}");
    }
    // Held to before anything is queued: the full queue would be 429.
    let everything = door.fill_queue();
    let (weak, base) = (format!("W/{now}"), format!("\"{fingerprint}\""));
    for lines in [["\"other\""], [&weak], [&base], [""], ["\"*\""]] {
        let (reply, etag) = ask(&lines).await;
        let error = refusal(reply, 412);
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!((&error["param"], &error["code"]), (&json!("If-Match"), &json!("precondition_failed")));
        assert!(error["message"].as_str().unwrap().contains(&now[1..now.len() - 1]), "{error}");
        assert_eq!(etag.as_ref(), Some(&now));
    }
    drop(everything);
    for lines in [["other"], ["*, \"a\""], ["\"a\" \"b\""], ["\"a"], ["w/\"a\""]] {
        let error = refusal(ask(&lines).await.0, 400);
        assert_eq!(error["param"], "If-Match", "{lines:?}");
    }
}
