//! Holds the router, its requests and its replies to openapi.yaml.

mod support;

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use support::{Door, broken_base, endless_body, named};
use tokio::task::JoinSet;

/// The four ways to one operation.
const EMBEDDINGS: [&str; 4] =
    ["/v1/embeddings", "/embeddings", "/a/{adapter}/v1/embeddings", "/a/{adapter}/embeddings"];

/// What is served where nothing else is said: the names of the contract's examples.
fn door(keys: &[(&str, &str)]) -> Door {
    Door::open(&[named("minilm", "bert/base")], &[named("legal", "bert/lora-all")], keys)
}

/// A documented path with the names of what is served.
fn url(path: &str) -> String {
    path.replace("{adapter}", "legal").replace("{id}", "minilm")
}

fn get(path: &str) -> Request<Body> {
    Request::get(url(path)).body(Body::empty()).unwrap()
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(url(path)).body(body.into()).unwrap()
}

/// openapi.yaml.
struct Contract(Value);

impl Contract {
    fn read() -> Self {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")).unwrap();
        Self(serde_saphyr::from_str(&text).unwrap())
    }

    /// The node, or the one that it refers to.
    fn follow<'a>(&'a self, node: &'a Value) -> &'a Value {
        match node["$ref"].as_str() {
            Some(place) => self.0.pointer(&place[1..]).unwrap_or_else(|| panic!("{place} leads nowhere")),
            None => node,
        }
    }

    /// Method, path and status of every documented reply.
    fn replies(&self) -> BTreeSet<(String, String, u16)> {
        let mut replies = BTreeSet::new();
        for (path, item) in self.0["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
                let statuses = operation["responses"].as_object().unwrap().keys();
                replies.extend(statuses.map(|status| (method.clone(), path.clone(), status.parse().unwrap())));
            }
        }
        replies
    }

    /// What holds a value to a schema.
    fn validator(&self, schema: &Value) -> Validator {
        let document = json!({"allOf": [schema], "components": self.0["components"]});
        jsonschema::validator_for(&document).unwrap()
    }

    fn check(&self, schema: &Value, value: &Value, what: &str) {
        let errors: Vec<String> =
            self.validator(schema).iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{what}: {errors:?}\n{value}");
    }

    fn check_headers(&self, documented: &Value, headers: &HeaderMap, what: &str) {
        for (name, header) in documented.as_object().unwrap() {
            let header = self.follow(header);
            let Some(text) = headers.get(name) else {
                assert_eq!(header["required"], false, "{what} lacks {name}");
                continue;
            };
            let text = text.to_str().unwrap();
            let value = match header["schema"]["type"].as_str() {
                Some("integer") => json!(text.parse::<u64>().unwrap()),
                _ => json!(text),
            };
            self.check(&header["schema"], &value, &format!("{what}, {name}"));
        }
    }
}

/// The contract, and which of its replies have been seen.
struct Witness {
    contract: Contract,
    seen: BTreeSet<(String, String, u16)>,
}

impl Witness {
    fn new() -> Self {
        Self { contract: Contract::read(), seen: BTreeSet::new() }
    }

    /// Holds a reply to what is documented of an operation and a status; returns its body.
    async fn sees(&mut self, (method, path): (&str, &str), status: u16, reply: Response<Body>) -> Value {
        let what = format!("{method} {path} {status}");
        let (head, body) = reply.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(head.status.as_u16(), status, "{what}: {text}");
        let documented = &self.contract.0["paths"][path][method]["responses"][status.to_string()];
        assert!(documented.is_object(), "{what} is not documented");
        let documented = self.contract.follow(documented);
        self.contract.check_headers(&documented["headers"], &head.headers, &what);
        let (kind, content) = documented["content"].as_object().unwrap().iter().next().unwrap();
        assert!(head.headers["content-type"].to_str().unwrap().starts_with(kind), "{what}");
        let value = if kind == "application/json" { serde_json::from_str(&text).unwrap() } else { json!(text) };
        self.contract.check(&content["schema"], &value, &what);
        self.seen.insert((method.to_owned(), path.to_owned(), status));
        value
    }

    async fn asks(&mut self, door: &Door, operation: (&str, &str), status: u16, request: Request<Body>) -> Value {
        let reply = door.send(request).await;
        self.sees(operation, status, reply).await
    }

    /// What a server answers when all is well with it, and when the request is not.
    async fn embeddings_of(&mut self, door: &Door, path: &str) {
        let operation = ("post", path);
        let mut body = json!({"model": "legal", "input": ["one", "two"]});
        for (format, dtype) in [("float", "float"), ("base64", "float"), ("float", "int8"), ("float", "ubinary")] {
            body["encoding_format"] = json!(format);
            body["output_dtype"] = json!(dtype);
            let reply = self.asks(door, operation, 200, post(path, body.to_string())).await;
            assert_eq!(reply["data"][1]["embedding"].is_string(), format == "base64", "{reply}");
        }
        let too_long = json!({"model": "legal", "input": "word ".repeat(100)}).to_string();
        for body in ["", "{", "[]", r#"{"model": "legal"}"#, r#"{"input": 1}"#, &too_long] {
            self.asks(door, operation, 400, post(path, body.to_owned())).await;
        }
        self.asks(door, operation, 404, post(path, r#"{"model": "none", "input": "a"}"#)).await;
        self.asks(door, operation, 405, get(path)).await;
        let expecting = Request::post(url(path)).header("If-Match", "\"other bits\"");
        self.asks(door, operation, 412, expecting.body(r#"{"model": "legal", "input": "a"}"#.into()).unwrap()).await;
        let everything = door.fill_queue();
        self.asks(door, operation, 429, post(path, r#"{"model": "legal", "input": "a"}"#)).await;
        drop(everything);
    }

    /// A deadline of a second, waited for on all paths at once.
    async fn deadlines(&mut self) {
        let (door, mut replies) = (Arc::new(door(&[("request_timeout_s", "1")])), JoinSet::new());
        for path in EMBEDDINGS {
            let door = door.clone();
            replies.spawn(async move { (path, door.send(post(path, endless_body().0)).await) });
        }
        while let Some(reply) = replies.join_next().await {
            let (path, reply) = reply.unwrap();
            self.sees(("post", path), 504, reply).await;
        }
    }
}

#[test]
fn the_documented_paths_are_those_that_are_served() {
    let contract = Contract::read();
    let documented: BTreeSet<String> = contract.0["paths"].as_object().unwrap().keys().cloned().collect();
    let served = veneer::http::paths().into_iter().map(|path| path.replace("{*", "{")).collect();
    assert_eq!(documented, served);
}

#[tokio::test]
async fn documented_methods_are_answered_and_others_refused() {
    let (door, mut witness) = (door(&[]), Witness::new());
    let replies = witness.contract.replies();
    for (method, path) in replies.iter().map(|(method, path, _)| (method, path)).collect::<BTreeSet<_>>() {
        // HEAD is GET without a body, and is answered wherever GET is.
        for other in ["get", "post", "put", "patch", "delete", "options"] {
            let request =
                Request::builder().method(other.to_uppercase().as_str()).uri(url(path)).body(Body::empty()).unwrap();
            let reply = door.send(request).await;
            if other == method {
                assert!(![404, 405].contains(&reply.status().as_u16()), "{method} {path}: {}", reply.status());
            } else {
                witness.sees((method, path), 405, reply).await;
            }
        }
    }
}

#[tokio::test]
async fn every_documented_reply_is_given_as_documented() {
    let (mut witness, open) = (Witness::new(), door(&[]));
    let (locked, small) = (door(&[("api_key", "secret")]), door(&[("max_body_bytes", "16")]));
    let (loading, draining) = (Door::loading(), door(&[]));
    draining.app.drain();
    let folder = broken_base();
    let broken = format!("minilm={}", folder.path().display());
    let broken = Door::open(&[broken], &[named("legal", "bert/lora-all")], &[]);

    let valid = r#"{"model": "legal", "input": [[300]]}"#;
    for path in EMBEDDINGS {
        witness.embeddings_of(&open, path).await;
        for (door, status) in [(&locked, 401), (&small, 413), (&broken, 500), (&loading, 503), (&draining, 503)] {
            witness.asks(door, ("post", path), status, post(path, valid)).await;
        }
    }
    witness.deadlines().await;
    for path in ["/v1/models", "/v1/models/{id}", "/health", "/metrics"] {
        witness.asks(&open, ("get", path), 200, get(path)).await;
        witness.asks(&open, ("get", path), 405, post(path, "")).await;
        let locked_status = if path == "/health" { 200 } else { 401 };
        witness.asks(&locked, ("get", path), locked_status, get(path)).await;
        let unready_status = if path == "/metrics" { 200 } else { 503 };
        witness.asks(&loading, ("get", path), unready_status, get(path)).await;
        witness.asks(&draining, ("get", path), unready_status, get(path)).await;
    }
    witness.asks(&open, ("get", "/v1/models/{id}"), 404, get("/v1/models/none")).await;
    let bases = [named("a", "bert/base"), named("b", "bert-sharded")];
    let twice = Door::open(&bases, &["a", "b"].map(|base| format!("{base}:{}", named("x", "bert/lora-all"))), &[]);
    witness.asks(&twice, ("get", "/v1/models/{id}"), 400, get("/v1/models/x")).await;

    assert_eq!(witness.seen, witness.contract.replies());
}

#[tokio::test]
async fn examples_are_answered() {
    let (door, contract) = (door(&[]), Contract::read());
    let content = &contract.0["components"]["requestBodies"]["Embedding"]["content"]["application/json"];
    let examples = content["examples"].as_object().unwrap();
    assert!(examples.len() >= 10);
    for (name, example) in examples {
        contract.check(&content["schema"], &example["value"], name);
        let (status, reply) = door.ask(example["value"].clone()).await;
        assert_eq!(status, 200, "{name}: {reply}");
    }
}

/// Fields that are right beside a model and an input.
fn right_fields() -> Value {
    json!([
        {"input": ""}, {"input": ["a"]}, {"input": [5]}, {"input": [[5, 6], [7]]}, {"input": vec!["a"; 2048]},
        {"adapter": "legal"}, {"adapters": ["legal"]}, {"adapters": [null]}, {"model": null, "adapter": "legal"},
        {"encoding_format": "float"}, {"encoding_format": "base64"}, {"encoding_format": null},
        {"output_dtype": "float"}, {"output_dtype": "float32"}, {"output_dtype": "int8"}, {"output_dtype": "uint8"},
        {"output_dtype": "binary"}, {"output_dtype": "ubinary", "normalize": false}, {"output_dtype": null},
        {"dimensions": 1}, {"output_dimension": 1}, {"dimensions": null, "output_dimension": null},
        {"normalize": true}, {"normalize": false}, {"normalize": null}, {"prompt": "p "}, {"prompt": null},
        {"prompt_name": null}, {"input_type": "query"}, {"task": "search_document"}, {"input_type": null},
        {"truncate": true}, {"truncate": false}, {"truncate": "NONE"}, {"truncate": "START"}, {"truncate": "END"},
        {"truncate": null}, {"truncate_prompt_tokens": 3}, {"truncate_prompt_tokens": -1},
        {"truncate_prompt_tokens": null}, {"truncation_side": "left"}, {"truncation_side": "right"},
        {"truncation_side": null}, {"add_special_tokens": true}, {"add_special_tokens": false},
        {"user": "u"}, {"user": {"any": "thing"}}, {"unknown": [1, "x"]}
    ])
}

/// Fields that are wrong whatever stands beside them.
fn wrong_fields() -> Value {
    json!([
        {"input": null}, {"input": 1}, {"input": true}, {"input": {}}, {"input": []}, {"input": [[]]},
        {"input": [[5], []]}, {"input": ["a", 5]}, {"input": [5, "a"]}, {"input": [5, [5]]}, {"input": [[5], 5]},
        {"input": ["a", null]}, {"input": [-1]}, {"input": [1.5]}, {"input": [4294967296u64]}, {"input": [["a"]]},
        {"input": [[5, null]]}, {"input": [[[5]]]}, {"input": vec!["a"; 2049]}, {"model": 1}, {"model": ["legal"]},
        {"adapter": 1}, {"adapter": ["legal"]}, {"adapters": "legal"}, {"adapters": [1]},
        {"encoding_format": "hex"}, {"encoding_format": 1}, {"output_dtype": "int4"}, {"output_dtype": []},
        {"output_dtype": "int8", "normalize": false}, {"output_dtype": "uint8", "normalize": false},
        {"dimensions": 0}, {"dimensions": -1}, {"dimensions": "8"}, {"dimensions": 1.5}, {"output_dimension": 0},
        {"normalize": "true"}, {"normalize": 1}, {"prompt": 1}, {"prompt_name": ["p"]}, {"input_type": 1},
        {"task": {}}, {"truncate": "yes"}, {"truncate": "start"}, {"truncate": 1}, {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": -2}, {"truncate_prompt_tokens": "3"}, {"truncate_prompt_tokens": true},
        {"truncation_side": "LEFT"}, {"truncation_side": true}, {"add_special_tokens": "no"}
    ])
}

#[tokio::test]
async fn the_request_schema_and_the_server_agree() {
    let (door, contract) = (door(&[]), Contract::read());
    let schema = contract.validator(&json!({"$ref": "#/components/schemas/EmbeddingRequest"}));
    let mut disagreements = Vec::new();
    for (table, right) in [(right_fields(), true), (wrong_fields(), false)] {
        for fields in table.as_array().unwrap() {
            let mut body = json!({"model": "minilm", "input": "a"});
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let (status, reply) = door.ask(body.clone()).await;
            if schema.is_valid(&body) != right || status != if right { 200 } else { 400 } {
                let shown: String = fields.to_string().chars().take(80).collect();
                disagreements.push(format!(
                    "{shown}: schema {}, server {status} {}",
                    schema.is_valid(&body),
                    reply["error"]
                ));
            }
        }
    }
    assert!(disagreements.is_empty(), "{disagreements:#?}");
}
