//! Which model or adapter a request gets, what is listed, and who is counted.

mod support;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::{ADAPTERS, Door, config, embeddings, fixture, gap, named, parts, refusal, together_max};

/// One text, for which every adapter differs from the base.
const TEXT: &str = "How do I reset my password?";

/// A way to ask: a path, the header X-Adapter, and fields beside the input.
struct Way {
    path: &'static str,
    header: Option<&'static str>,
    fields: Value,
}

fn way(path: &'static str, header: Option<&'static str>, fields: Value) -> Way {
    Way { path, header, fields }
}

impl Way {
    async fn ask(&self, door: &Door) -> (u16, Value) {
        let mut body = json!({"input": TEXT});
        body.as_object_mut().unwrap().extend(self.fields.as_object().unwrap().clone());
        let mut request = Request::post(self.path);
        if let Some(header) = self.header {
            request = request.header("X-Adapter", header);
        }
        parts(door.send(request.body(Body::from(body.to_string())).unwrap()).await).await
    }

    fn shown(&self) -> String {
        format!("{} {:?} {}", self.path, self.header, self.fields)
    }
}

/// Ways that name the adapter lora-all and nothing else.
fn ways_to_lora_all() -> Vec<Way> {
    let v1 = "/v1/embeddings";
    vec![
        way(v1, None, json!({"model": "lora-all"})),
        way("/embeddings", None, json!({"model": "lora-all"})),
        way(v1, None, json!({"model": "base:lora-all"})),
        way(v1, None, json!({"model": "base", "adapter": "lora-all"})),
        way(v1, None, json!({"adapter": "lora-all"})),
        way(v1, None, json!({"model": "lora-all", "adapter": "lora-all"})),
        way(v1, None, json!({"model": "base:lora-all", "adapter": "lora-all"})),
        way(v1, Some("lora-all"), json!({"model": "base"})),
        way(v1, Some("lora-all"), json!({"model": "base", "adapter": "lora-all"})),
        way(v1, Some("lora-all"), json!({})),
        way("/a/lora-all/v1/embeddings", None, json!({"model": "base"})),
        way("/a/lora-all/v1/embeddings", None, json!({})),
        way("/a/lora-all/embeddings", Some("lora-all"), json!({"model": "lora-all", "adapter": "lora-all"})),
        way(v1, None, json!({"model": "base", "adapters": ["lora-all"]})),
        way(v1, None, json!({"model": "lora-all", "adapters": [null]})),
    ]
}

#[tokio::test]
async fn every_way_to_name_an_adapter_leads_to_it() {
    let door = Door::family("bert");
    let expected = embeddings(&door.ask(json!({"model": "lora-all", "input": TEXT})).await.1);
    let base = embeddings(&door.ask(json!({"model": "base", "input": TEXT})).await.1);
    assert!(gap(&expected, &base) > 1e-2);
    for way in ways_to_lora_all() {
        let (status, reply) = way.ask(&door).await;
        assert_eq!(status, 200, "{}: {reply}", way.shown());
        assert_eq!(embeddings(&reply), expected, "{}", way.shown());
        let named = if way.fields["adapters"][0] == "lora-all" { "base" } else { "lora-all" };
        assert_eq!(reply["model"], named, "{}", way.shown());
    }
}

#[tokio::test]
async fn one_request_may_name_an_adapter_for_each_input() {
    let door = Door::family("bert");
    let names = [Some("lora-all"), None, Some("rslora-patterns"), Some("base:lora-attention"), None];
    let (status, reply) = door.ask(json!({"model": "base", "input": vec![TEXT; 5], "adapters": names})).await;
    assert_eq!(status, 200, "{reply}");
    for (row, name) in embeddings(&reply).into_iter().zip(names) {
        let alone = embeddings(&door.ask(json!({"model": name.unwrap_or("base"), "input": TEXT})).await.1);
        assert!(gap(&[row], &alone) <= together_max(), "{name:?}");
    }
    for names in [json!([]), json!(["lora-all"]), json!([null, null, null])] {
        let reply = door.ask(json!({"model": "base", "input": [TEXT, TEXT], "adapters": names})).await;
        assert_eq!(refusal(reply, 400)["param"], "adapters");
    }
}

#[tokio::test]
async fn names_that_disagree_are_400() {
    let (door, v1) = (Door::family("bert"), "/v1/embeddings");
    for way in [
        way(v1, None, json!({"model": "lora-all", "adapter": "lora-attention"})),
        way(v1, None, json!({"model": "base:lora-all", "adapter": "lora-attention"})),
        way(v1, Some("lora-attention"), json!({"model": "lora-all"})),
        way(v1, Some("lora-attention"), json!({"model": "base", "adapter": "lora-all"})),
        way("/a/lora-all/v1/embeddings", None, json!({"model": "lora-attention"})),
        way("/a/lora-all/v1/embeddings", None, json!({"model": "base", "adapter": "lora-attention"})),
        way("/a/lora-all/embeddings", Some("lora-attention"), json!({"model": "base"})),
        way(v1, None, json!({"model": "lora-all", "adapters": ["lora-attention"]})),
    ] {
        let error = refusal(way.ask(&door).await, 400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("lora-all") && message.contains("lora-attention"), "{}: {error}", way.shown());
    }
}

#[tokio::test]
async fn a_request_that_names_nothing_is_400() {
    let door = Door::family("bert");
    for fields in [json!({}), json!({"model": null}), json!({"adapters": ["lora-all"]})] {
        let error = refusal(way("/v1/embeddings", None, fields).ask(&door).await, 400);
        assert_eq!(error["param"], "model");
    }
}

/// Ways that name what is not served.
fn ways_to_nothing() -> Vec<Way> {
    let v1 = "/v1/embeddings";
    vec![
        way(v1, None, json!({"model": "nobody"})),
        way(v1, None, json!({"model": ""})),
        way(v1, None, json!({"model": "base:nobody"})),
        way(v1, None, json!({"model": "nobody:lora-all"})),
        way(v1, None, json!({"model": "lora-all:lora-all"})),
        way(v1, None, json!({"model": "base", "adapter": "nobody"})),
        way(v1, None, json!({"adapter": "nobody"})),
        way(v1, Some("nobody"), json!({"model": "base"})),
        way("/a/nobody/v1/embeddings", None, json!({"model": "base"})),
        way("/a/nobody/embeddings", None, json!({})),
        way(v1, None, json!({"model": "base", "adapters": ["nobody"]})),
    ]
}

#[tokio::test]
async fn what_is_not_served_is_404_even_when_the_queue_is_full() {
    let door = Door::family("bert");
    let everything = door.fill_queue();
    for way in ways_to_nothing() {
        let error = refusal(way.ask(&door).await, 404);
        assert_eq!(error["code"], "model_not_found", "{}", way.shown());
        assert_eq!(error["type"], "invalid_request_error", "{}", way.shown());
    }
    drop(everything);
}

#[tokio::test]
async fn models_lists_bases_and_their_adapters() {
    let door = Door::family("bert");
    let (status, list) = door.get("/v1/models").await;
    assert_eq!((status, &list["object"]), (200, &json!("list")));
    let models = list["data"].as_array().unwrap();
    let ids: Vec<&str> = models.iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["base", ADAPTERS[0], ADAPTERS[1], ADAPTERS[2]]);
    for model in models {
        let id = model["id"].as_str().unwrap();
        let keys: Vec<&str> = model.as_object().unwrap().keys().map(String::as_str).collect();
        let named =
            ["id", "object", "created", "owned_by", "root", "parent", "max_model_len", "generation", "fingerprint"];
        assert_eq!(keys, named);
        assert_eq!(model["object"], "model");
        assert!(model["created"].as_u64().unwrap() > 1_700_000_000);
        assert_eq!(model["root"], fixture(&format!("bert/{id}")).display().to_string());
        assert_eq!(model["parent"], if id == "base" { Value::Null } else { json!("base") });
        assert_eq!(model["max_model_len"], 48, "{id}");
        assert_eq!(door.get(&format!("/v1/models/{id}")).await, (200, model.clone()));
    }
    let adapter = door.get("/v1/models/base:lora-all").await;
    assert_eq!((adapter.0, &adapter.1["id"]), (200, &json!("lora-all")));
    assert_eq!(refusal(door.get("/v1/models/nobody").await, 404)["code"], "model_not_found");
}

#[tokio::test]
async fn names_may_hold_slashes_encoded_or_not() {
    let (bases, adapters) = ([named("org/name", "bert/base")], [named("team/legal", "bert/lora-all")]);
    let door = Door::open(&bases, &adapters, &[]);
    for (path, id) in [
        ("/v1/models/org/name", "org/name"),
        ("/v1/models/org%2Fname", "org/name"),
        ("/v1/models/org%2fname", "org/name"),
        ("/v1/models/team%2Flegal", "team/legal"),
        ("/v1/models/org/name:team/legal", "team/legal"),
        ("/v1/models/org%2Fname%3Ateam%2Flegal", "team/legal"),
    ] {
        let (status, model) = door.get(path).await;
        assert_eq!((status, &model["id"]), (200, &json!(id)), "{path}: {model}");
    }
    for way in [
        way("/v1/embeddings", None, json!({"model": "org/name:team/legal"})),
        way("/v1/embeddings", None, json!({"model": "team/legal"})),
        way("/a/team%2Flegal/v1/embeddings", None, json!({"model": "org/name"})),
    ] {
        let (status, reply) = way.ask(&door).await;
        assert_eq!((status, &reply["model"]), (200, &json!("team/legal")), "{}: {reply}", way.shown());
    }
    assert_eq!(door.ask(json!({"model": "org/name", "input": "a"})).await.1["model"], "org/name");
}

#[tokio::test]
async fn every_listed_id_can_be_asked_for() {
    let bases = [named("one", "bert/base"), named("two", "bert-sharded")];
    let adapters = ["one", "two"].map(|base| format!("{base}:{}", named("legal", "bert/lora-all")));
    let door = Door::open(&bases, &adapters, &[]);
    let (_, list) = door.get("/v1/models").await;
    let models = list["data"].as_array().unwrap();
    let ids: BTreeSet<&str> = models.iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 4, "{list}");
    for model in models {
        let id = model["id"].as_str().unwrap();
        assert_eq!(door.get(&format!("/v1/models/{id}")).await, (200, model.clone()));
        let (status, reply) = door.ask(json!({"model": id, "input": TEXT})).await;
        assert_eq!((status, &reply["model"]), (200, &json!(id)), "{reply}");
    }
}

#[tokio::test]
async fn an_adapter_that_two_bases_have_is_400_unless_the_base_is_named() {
    let bases = [named("one", "bert/base"), named("two", "bert-sharded")];
    let adapters = ["one", "two"].map(|base| format!("{base}:{}", named("legal", "bert/lora-all")));
    let door = Door::open(&bases, &adapters, &[]);
    let error = refusal(door.ask(json!({"model": "legal", "input": TEXT})).await, 400);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("one:legal") && message.contains("two:legal"), "{error}");
    for way in ["one", "two"].map(|base| way("/v1/embeddings", Some("legal"), json!({"model": base}))) {
        assert_eq!(way.ask(&door).await.0, 200, "{}", way.shown());
    }
}

/// It would be taken for the adapter of another base.
#[test]
fn a_folder_whose_name_has_a_colon_is_no_adapters_name() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(fixture("mpnet/lora-all"), folder.path().join("one:legal")).unwrap();
    let bases = [named("one", "bert/base"), named("two", "mpnet/base")];
    let adapters = folder.path().display().to_string();
    let refused = Door::with(config(&bases, &[], &[("adapters", &adapters)]).unwrap()).err().unwrap().to_string();
    assert!(refused.contains("'one:legal' cannot be an adapter's name"), "{refused}");
}

async fn metrics(door: &Door) -> String {
    let reply = door.send(Request::get("/metrics").body(Body::empty()).unwrap()).await;
    assert_eq!(reply.status(), 200);
    let bytes = http_body_util::BodyExt::collect(reply.into_body()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn metrics_count_under_their_documented_names_by_adapter() {
    let door = Door::family("bert");
    for model in ["base", "lora-all", "nobody-at-all"] {
        door.ask(json!({"model": model, "input": TEXT})).await;
    }
    refusal(door.ask(json!({"model": "lora-all", "input": "too long ".repeat(99)})).await, 400);
    let text = metrics(&door).await;
    for name in [
        "veneer_requests_total{adapter=\"base\",status=\"200\"}",
        "veneer_requests_total{adapter=\"lora-all\",status=\"200\"}",
        "veneer_requests_total{adapter=\"lora-all\",status=\"400\"}",
        "veneer_tokens_total{adapter=\"lora-all\"}",
        "veneer_sequences_total{adapter=\"lora-all\"}",
        "te_request_count",
        "te_batch_next_tokens_count",
        "te_embed_duration_count",
    ] {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}\n{text}"));
        assert!(value.trim().parse::<f64>().unwrap() >= 1.0, "{name}{value}");
    }
    for name in ["te_queue_size", "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"]
    {
        assert!(text.lines().any(|line| line == format!("{name} 0")), "{name}\n{text}");
    }
    // What a caller makes up is no label.
    assert!(!text.contains("nobody-at-all"));
}

#[tokio::test]
async fn metrics_say_which_adapters_kubernetes_can_route_to() {
    let text = metrics(&Door::family("bert")).await;
    let line = text.lines().find(|line| line.starts_with("vllm:lora_requests_info{")).unwrap();
    let (labels, time) = line.rsplit_once(' ').unwrap();
    for label in ["max_lora=\"3\"", "running_lora_adapters=\"lora-attention,lora-all,rslora-patterns\""] {
        assert!(labels.contains(label), "{line}");
    }
    assert!(labels.contains("waiting_lora_adapters=\"\""), "{line}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((time.parse::<f64>().unwrap() - now).abs() < 60.0, "{line}");
}
