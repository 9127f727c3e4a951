//! `/v1/embeddings`: a model's prompts, and the caller's own.

mod support;

use serde_json::{Value, json};
use support::{Door, copy_of, embeddings, named, refusal};
use tempfile::TempDir;

/// A base with prompts, of which one is its default; its folder lives as long as the server.
fn door(default: Option<&str>) -> (Door, TempDir) {
    let folder = copy_of("bert/base");
    let prompts = json!({"query": "find: ", "document": "text: ", "clustering": "group: "});
    let config = json!({"prompts": prompts, "default_prompt_name": default});
    std::fs::write(folder.path().join("config_sentence_transformers.json"), config.to_string()).unwrap();
    (Door::open(&[format!("base={}", folder.path().display())], &[], &[]), folder)
}

async fn ask(door: &Door, fields: &Value) -> (u16, Value) {
    let mut body = json!({"model": "base", "input": "a mill"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    door.ask(body).await
}

async fn vectors(door: &Door, fields: &Value) -> Vec<Vec<f32>> {
    let (status, reply) = ask(door, fields).await;
    assert_eq!(status, 200, "{fields}: {reply}");
    embeddings(&reply)
}

/// Each of these bodies is read as this text by a base without prompts.
async fn assert_read_as(door: &Door, cases: Vec<(Value, &str)>) {
    let plain = Door::family("bert");
    for (fields, text) in cases {
        let expected = vectors(&plain, &json!({"input": text})).await;
        assert_eq!(vectors(door, &fields).await, expected, "{fields} is not '{text}'");
    }
}

#[tokio::test]
async fn a_prompt_is_put_before_the_text() {
    let (door, _folder) = door(None);
    let cases = vec![
        (json!({}), "a mill"),
        (json!({"prompt": "own: "}), "own: a mill"),
        (json!({"prompt": ""}), "a mill"),
        (json!({"prompt_name": "clustering"}), "group: a mill"),
        (json!({"input_type": "query"}), "find: a mill"),
        (json!({"input_type": "search_query"}), "find: a mill"),
        (json!({"input_type": "document"}), "text: a mill"),
        (json!({"input_type": "passage"}), "text: a mill"),
        (json!({"input_type": "search_document"}), "text: a mill"),
        (json!({"input_type": "clustering"}), "group: a mill"),
        (json!({"task": "query"}), "find: a mill"),
    ];
    assert_read_as(&door, cases).await;
}

#[tokio::test]
async fn the_default_prompt_is_used_unless_another_is_asked_for() {
    let (door, _folder) = door(Some("document"));
    let cases = vec![
        (json!({}), "text: a mill"),
        (json!({"prompt": null, "prompt_name": null, "input_type": null, "task": null}), "text: a mill"),
        (json!({"prompt": ""}), "a mill"),
        (json!({"prompt_name": "query"}), "find: a mill"),
        (json!({"task": "clustering"}), "group: a mill"),
    ];
    assert_read_as(&door, cases).await;
}

/// As encode_query and encode_document of sentence-transformers, for which every model has these two prompts.
#[tokio::test]
async fn queries_and_documents_are_never_read_with_the_default() {
    let folder = copy_of("bert/base");
    let config = json!({"prompts": {"passage": "part: ", "own": "own: ", "none": null}, "default_prompt_name": "own"});
    std::fs::write(folder.path().join("config_sentence_transformers.json"), config.to_string()).unwrap();
    let door = Door::open(&[format!("base={}", folder.path().display())], &[], &[]);
    let cases = vec![
        (json!({}), "own: a mill"),
        (json!({"input_type": "query"}), "a mill"),
        (json!({"input_type": "document"}), "a mill"),
        (json!({"input_type": "passage"}), "part: a mill"),
        (json!({"prompt_name": "passage"}), "part: a mill"),
        (json!({"prompt_name": "query"}), "a mill"),
        (json!({"prompt_name": "none"}), "a mill"),
    ];
    assert_read_as(&door, cases).await;
}

#[tokio::test]
async fn prompt_goes_before_prompt_name_before_input_type_before_task() {
    let (door, _folder) = door(Some("document"));
    let cases = vec![
        (json!({"prompt": "own: ", "prompt_name": "query", "input_type": "document", "task": "query"}), "own: a mill"),
        (json!({"prompt_name": "clustering", "input_type": "query", "task": "query"}), "group: a mill"),
        (json!({"input_type": "query", "task": "clustering"}), "find: a mill"),
    ];
    assert_read_as(&door, cases).await;
}

#[tokio::test]
async fn a_kind_of_text_is_fine_for_a_model_without_prompts() {
    let cases = vec![(json!({"input_type": "query"}), "a mill"), (json!({"task": "search_document"}), "a mill")];
    assert_read_as(&Door::family("bert"), cases).await;
}

#[tokio::test]
async fn an_unknown_prompt_name_is_400_and_the_known_ones_are_listed() {
    let (door, _folder) = door(None);
    let error = refusal(ask(&door, &json!({"prompt_name": "poem"})).await, 400);
    assert_eq!(error["param"], "prompt_name");
    let message = error["message"].as_str().unwrap();
    assert!(["poem", "query", "document", "clustering"].iter().all(|name| message.contains(name)), "{message}");
}

#[tokio::test]
async fn a_prompt_cannot_be_put_before_token_ids() {
    let (door, _folder) = door(Some("document"));
    for fields in [json!({"input": [5, 6], "prompt": "own: "}), json!({"input": [[5, 6]], "prompt_name": "query"})] {
        refusal(ask(&door, &fields).await, 400);
    }
    // The default is for text: token ids are taken as they are.
    let plain = Door::family("bert");
    let ids = json!({"input": [5, 6]});
    assert_eq!(vectors(&door, &ids).await, vectors(&plain, &ids).await);
}

#[tokio::test]
async fn prompts_count_as_tokens_and_against_the_limit() {
    let (door, _folder) = door(None);
    let usage = async |fields: Value| ask(&door, &fields).await.1["usage"]["prompt_tokens"].as_u64().unwrap();
    let bare = usage(json!({})).await;
    assert!(usage(json!({"prompt_name": "query"})).await > bare);
    let error = refusal(ask(&door, &json!({"prompt": "a very long prompt ".repeat(20)})).await, 400);
    assert_eq!(error["code"], "context_length_exceeded");
}

#[tokio::test]
async fn a_prompt_before_all_inputs_counts_for_each_of_them() {
    let limits = [("max_body_bytes", "10000"), ("max_buffered_bytes", "10000")];
    let door = Door::open(&[named("base", "bert/base")], &[], &limits);
    let body = |inputs: usize| json!({"model": "base", "input": vec!["a mill"; inputs], "prompt": "x ".repeat(1500), "truncate": true});
    assert_eq!(door.ask(body(3)).await.0, 200);
    let error = refusal(door.ask(body(4)).await, 400);
    assert_eq!(error["param"], "prompt");
    assert!(error["message"].as_str().unwrap().contains("4 inputs"), "{error}");
}
