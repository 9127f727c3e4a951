//! `/v1/embeddings`: what an input may be, how it is read, and what its vector looks like.

mod support;

use axum::http::Request;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::{Door, broken_base, copy_of, embeddings, fixture, gap, parts, refusal, together_max};
use tempfile::TempDir;
use tokenizers::Tokenizer;

/// Tokens that the bert fixture reads at most.
const TOKENS_MAX: usize = 48;
const DIMENSIONS: usize = 32;
const VOCABULARY: u32 = 384;

/// Longer than the model reads, of words that differ.
const LONG: &str = "The court found that the contract was void, because the seller had not signed the second page. The \
                    engine stops when the oil is cold, and we'll turn left at the mill. Two readers asked for a book.";

/// Token ids by the tokenizer alone, whole.
fn ids(text: &str, special: bool) -> Vec<u32> {
    let mut tokenizer = Tokenizer::from_file(fixture("bert/base/tokenizer.json")).unwrap();
    tokenizer.with_truncation(None).unwrap().with_padding(None);
    tokenizer.encode(text, special).unwrap().get_ids().to_vec()
}

/// The reply to the base, where these fields stand beside it.
async fn reply(door: &Door, fields: Value) -> Value {
    let (status, reply) = ask(door, fields.clone()).await;
    assert_eq!(status, 200, "{fields}: {reply}");
    reply
}

async fn ask(door: &Door, fields: Value) -> (u16, Value) {
    let mut body = json!({"model": "base"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    door.ask(body).await
}

async fn vectors(door: &Door, fields: Value) -> Vec<Vec<f32>> {
    embeddings(&reply(door, fields).await)
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|v| v * v).sum::<f32>().sqrt()
}

/// A base of its own; what was changed about its folder lives as long as the server.
fn changed_base(file: &str, content: &Value) -> (Door, TempDir) {
    let folder = copy_of("bert/base");
    std::fs::write(folder.path().join(file), content.to_string()).unwrap();
    (Door::open(&[format!("base={}", folder.path().display())], &[], &[]), folder)
}

/// A base that leaves its vectors unnormalized.
fn unnormalized() -> (Door, TempDir) {
    let modules: Value = support::read("bert/base/modules.json");
    changed_base("modules.json", &json!(modules.as_array().unwrap()[..2]))
}

#[tokio::test]
async fn all_four_forms_of_input_give_the_same_vector() {
    let door = Door::family("bert");
    let ids = ids("Veneer", true);
    let text = vectors(&door, json!({"input": "Veneer"})).await;
    assert_eq!(text.len(), 1);
    assert_eq!(text, vectors(&door, json!({"input": ["Veneer"]})).await);
    assert_eq!(text, vectors(&door, json!({"input": ids})).await);
    assert_eq!(text, vectors(&door, json!({"input": [ids]})).await);
    assert!(gap(&text, &vectors(&door, json!({"input": "varnish"})).await) > 1e-3);
}

#[tokio::test]
async fn base64_is_the_floats_bit_by_bit() {
    let door = Door::family("bert");
    let floats = vectors(&door, json!({"input": ["one", "two"], "encoding_format": "float"})).await;
    let packed = reply(&door, json!({"input": ["one", "two"], "encoding_format": "base64"})).await;
    for (floats, datum) in floats.iter().zip(packed["data"].as_array().unwrap()) {
        let bytes: Vec<u8> = floats.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(STANDARD.decode(datum["embedding"].as_str().unwrap()).unwrap(), bytes);
    }
}

#[tokio::test]
async fn unknown_fields_are_ignored_and_null_is_absent() {
    let door = Door::family("bert");
    let plain = reply(&door, json!({"input": "a text"})).await;
    let mut body = json!({"input": "a text", "user": "u-1", "unknown": {"deep": [1, null]}});
    let nullable = "adapter adapters encoding_format dimensions output_dimension output_dtype normalize prompt \
                    prompt_name input_type task truncate truncate_prompt_tokens truncation_side add_special_tokens \
                    user";
    for field in nullable.split_whitespace() {
        body[field] = Value::Null;
    }
    let nulls = reply(&door, body).await;
    assert_eq!((&plain["data"], &plain["usage"]), (&nulls["data"], &nulls["usage"]));
    assert!(plain["data"][0]["embedding"].is_array());
    refusal(ask(&door, json!({"input": null})).await, 400);
}

#[tokio::test]
async fn any_content_type_or_none_will_do() {
    let door = Door::family("bert");
    for kind in
        [None, Some("application/json"), Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("?")]
    {
        let mut request = Request::post("/v1/embeddings");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let request = request.body(r#"{"model": "base", "input": "a"}"#.into()).unwrap();
        let (status, reply) = parts(door.send(request).await).await;
        assert_eq!(status, 200, "{kind:?}: {reply}");
    }
}

#[tokio::test]
async fn dimensions_truncate_and_then_renormalize() {
    let (door, _folder) = unnormalized();
    let whole = vectors(&door, json!({"input": "a text", "normalize": false})).await;
    let cut = vectors(&door, json!({"input": "a text", "normalize": false, "dimensions": 5})).await;
    assert_eq!(cut, [whole[0][..5].to_vec()]);
    let unit = vectors(&door, json!({"input": "a text", "dimensions": 5})).await;
    let expected: Vec<f32> = cut[0].iter().map(|v| v / length(&cut[0])).collect();
    assert!(gap(&unit, &[expected]) <= 1e-6);
    assert_eq!(unit, vectors(&door, json!({"input": "a text", "output_dimension": 5})).await);
    let all = vectors(&door, json!({"input": "a text", "dimensions": DIMENSIONS})).await;
    assert_eq!(all, vectors(&door, json!({"input": "a text"})).await);
}

#[tokio::test]
async fn dimensions_out_of_range_or_that_differ_are_400() {
    let door = Door::family("bert");
    for fields in [
        json!({"dimensions": 0}),
        json!({"dimensions": DIMENSIONS + 1}),
        json!({"dimensions": 4, "output_dimension": 5}),
    ] {
        let mut body = json!({"input": "a"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert_eq!(refusal(ask(&door, body).await, 400)["param"], "dimensions", "{fields}");
    }
}

#[tokio::test]
async fn vectors_are_normalized_unless_asked_not_to() {
    let (door, _folder) = unnormalized();
    let asked = vectors(&door, json!({"input": "a text", "normalize": true})).await;
    let raw = vectors(&door, json!({"input": "a text", "normalize": false})).await;
    assert_eq!(asked, vectors(&door, json!({"input": "a text"})).await);
    assert!((length(&asked[0]) - 1.0).abs() < 1e-6);
    assert!((length(&raw[0]) - 1.0).abs() > 1e-3);
}

#[tokio::test]
async fn quantized_types_are_the_floats_in_256_levels_or_their_signs() {
    let door = Door::family("bert");
    let floats = vectors(&door, json!({"input": "a text"})).await.remove(0);
    let of = async |dtype: &str, format: &str| {
        let fields = json!({"input": "a text", "output_dtype": dtype, "encoding_format": format});
        reply(&door, fields).await["data"][0]["embedding"].clone()
    };
    let level = |v: &f32| ((v + 1.0) * 127.5) as i64;
    let levels: Vec<i64> = floats.iter().map(level).collect();
    let signed = |bytes: &[i64]| bytes.iter().map(|byte| byte - 128).collect::<Vec<_>>();
    assert_eq!(of("uint8", "float").await, json!(levels));
    assert_eq!(of("int8", "float").await, json!(signed(&levels)));
    let eight = |chunk: &[f32]| chunk.iter().fold(0, |byte, v| byte << 1 | i64::from(*v >= 0.0));
    let signs: Vec<i64> = floats.chunks(8).map(eight).collect();
    assert_eq!(signs.len(), DIMENSIONS / 8);
    assert_eq!(of("ubinary", "float").await, json!(signs));
    assert_eq!(of("binary", "float").await, json!(signed(&signs)));
    for (dtype, bytes) in
        [("uint8", &levels), ("int8", &signed(&levels)), ("ubinary", &signs), ("binary", &signed(&signs))]
    {
        let packed: Vec<u8> = bytes.iter().map(|byte| *byte as u8).collect();
        assert_eq!(of(dtype, "base64").await, json!(STANDARD.encode(packed)), "{dtype}");
    }
    assert_eq!(of("float", "float").await, of("float32", "float").await);
}

#[tokio::test]
async fn an_empty_string_is_embedded_as_its_specials() {
    let door = Door::family("bert");
    let empty = reply(&door, json!({"input": ""})).await;
    assert_eq!(empty["usage"]["prompt_tokens"], 2);
    assert_eq!(embeddings(&empty), vectors(&door, json!({"input": ids("", true)})).await);
}

#[tokio::test]
async fn empty_lists_are_400() {
    let door = Door::family("bert");
    for (input, param) in [(json!([]), "input"), (json!([[]]), "input"), (json!([[5], []]), "input[1]")] {
        assert_eq!(refusal(ask(&door, json!({"input": input})).await, 400)["param"], param, "{input}");
    }
}

#[tokio::test]
async fn up_to_2048_inputs_come_back_in_their_order() {
    let door = Door::family("bert");
    let inputs: Vec<[usize; 2]> = (0..2049).map(|i| [5 + i / 64, 100 + i % 64]).collect();
    let many = reply(&door, json!({"input": inputs[..2048]})).await;
    let data = many["data"].as_array().unwrap();
    assert!(data.len() == 2048 && data.iter().enumerate().all(|(i, datum)| datum["index"] == i));
    let together = embeddings(&many);
    for index in [0, 1, 777, 2047] {
        let alone = vectors(&door, json!({"input": inputs[index]})).await;
        assert!(gap(&alone, &together[index..=index]) <= together_max(), "{index}");
        assert!(gap(&alone, &together[index ^ 1..=index ^ 1]) > 1e-4, "{index}");
    }
    assert_eq!(refusal(ask(&door, json!({"input": inputs})).await, 400)["param"], "input");
}

#[tokio::test]
async fn too_long_is_refused_in_the_words_that_clients_match_on() {
    let door = Door::family("bert");
    let whole = ids(LONG, true);
    assert!(whole.len() > TOKENS_MAX + 5);
    for input in [json!(LONG), json!(["a", LONG]), json!(whole), json!([whole])] {
        let error = refusal(ask(&door, json!({"input": input})).await, 400);
        let requested = whole.len();
        let message = format!(
            "This model's maximum context length is {TOKENS_MAX} tokens, however you requested {requested} tokens \
             ({requested} in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
        );
        assert_eq!(error["message"], message);
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("context_length_exceeded"), &json!("invalid_request_error"))
        );
    }
    // Exactly as long as the model reads is not too long.
    assert_eq!(reply(&door, json!({"input": whole[..TOKENS_MAX]})).await["usage"]["prompt_tokens"], TOKENS_MAX);
}

#[tokio::test]
async fn text_is_cut_between_its_specials() {
    let door = Door::family("bert");
    let (whole, bare) = (ids(LONG, true), ids(LONG, false));
    let (first, last) = (whole[0], whole[whole.len() - 1]);
    let kept = |words: &[u32]| [&[first], words, &[last]].concat();
    let start = |tokens: usize| kept(&bare[..tokens - 2]);
    let end = |tokens: usize| kept(&bare[bare.len() - (tokens - 2)..]);
    for (fields, expected) in [
        (json!({"truncate": true}), start(TOKENS_MAX)),
        (json!({"truncate": "END"}), start(TOKENS_MAX)),
        (json!({"truncate": "START"}), end(TOKENS_MAX)),
        (json!({"truncate": true, "truncation_side": "right"}), start(TOKENS_MAX)),
        (json!({"truncate": true, "truncation_side": "left"}), end(TOKENS_MAX)),
        (json!({"truncate_prompt_tokens": 10}), start(10)),
        (json!({"truncate_prompt_tokens": 10, "truncation_side": "left"}), end(10)),
        (json!({"truncate_prompt_tokens": -1}), start(TOKENS_MAX)),
        (json!({"truncate_prompt_tokens": 1000}), start(TOKENS_MAX)),
        (json!({"truncate_prompt_tokens": 10, "add_special_tokens": false}), bare[..10].to_vec()),
    ] {
        let mut body = fields.clone();
        body["input"] = json!(LONG);
        let cut = reply(&door, body).await;
        assert_eq!(cut["usage"]["prompt_tokens"], expected.len(), "{fields}");
        assert_eq!(embeddings(&cut), vectors(&door, json!({"input": expected})).await, "{fields}");
    }
}

#[tokio::test]
async fn token_ids_are_cut_as_they_are() {
    let door = Door::family("bert");
    let whole = ids(LONG, true);
    for (fields, expected) in [
        (json!({"truncate": true}), &whole[..TOKENS_MAX]),
        (json!({"truncate": "START"}), &whole[whole.len() - TOKENS_MAX..]),
        (json!({"truncate_prompt_tokens": 7}), &whole[..7]),
        (json!({"truncate_prompt_tokens": 7, "truncation_side": "left"}), &whole[whole.len() - 7..]),
    ] {
        let mut body = fields.clone();
        body["input"] = json!(whole);
        assert_eq!(vectors(&door, body).await, vectors(&door, json!({"input": expected})).await, "{fields}");
    }
}

#[tokio::test]
async fn what_is_short_enough_is_not_cut() {
    let door = Door::family("bert");
    let whole = reply(&door, json!({"input": "a short text"})).await;
    let asked = reply(&door, json!({"input": "a short text", "truncate": true, "truncation_side": "left"})).await;
    assert_eq!((&whole["data"], &whole["usage"]), (&asked["data"], &asked["usage"]));
    refusal(ask(&door, json!({"input": LONG, "truncate": false})).await, 400);
    refusal(ask(&door, json!({"input": LONG, "truncate": "NONE"})).await, 400);
    refusal(ask(&door, json!({"input": LONG, "truncation_side": "left"})).await, 400);
}

#[tokio::test]
async fn specials_are_added_to_text_and_not_to_token_ids_unless_asked() {
    let door = Door::family("bert");
    let (whole, bare) = (ids("a text", true), ids("a text", false));
    let (with, without) = (vectors(&door, json!({"input": whole})).await, vectors(&door, json!({"input": bare})).await);
    assert!(gap(&with, &without) > 1e-3);
    assert_eq!(with, vectors(&door, json!({"input": "a text"})).await);
    assert_eq!(with, vectors(&door, json!({"input": bare, "add_special_tokens": true})).await);
    assert_eq!(without, vectors(&door, json!({"input": "a text", "add_special_tokens": false})).await);
}

#[tokio::test]
async fn a_token_id_beyond_the_vocabulary_is_400_and_named() {
    let door = Door::family("bert");
    reply(&door, json!({"input": [VOCABULARY - 1]})).await;
    for (input, param) in [(json!([2, VOCABULARY, 3]), "input"), (json!([[2], [VOCABULARY]]), "input[1]")] {
        let error = refusal(ask(&door, json!({"input": input})).await, 400);
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(&VOCABULARY.to_string()), "{error}");
    }
}

#[tokio::test]
async fn an_element_of_the_wrong_kind_is_400_and_named() {
    let (door, mut misnamed) = (Door::family("bert"), Vec::new());
    for (input, param) in [
        (json!(["a", 5]), "input[1]"),
        (json!([5, "a"]), "input[1]"),
        (json!([5, [6]]), "input[1]"),
        (json!([[5], 6]), "input[1]"),
        (json!(["a", "b", null]), "input[2]"),
        (json!(["a", {"text": "b"}]), "input[1]"),
        (json!([5, -1]), "input[1]"),
        (json!([5, 4294967296u64]), "input[1]"),
        (json!([[5], [6, "a"]]), "input[1][1]"),
    ] {
        let error = refusal(ask(&door, json!({"input": input})).await, 400);
        if error["param"] != param {
            misnamed.push(format!("{input} is wrong at {param}: {error}"));
        }
    }
    assert!(misnamed.is_empty(), "{misnamed:#?}");
}

#[tokio::test]
async fn usage_counts_tokens_and_every_reply_has_its_own_id() {
    let door = Door::family("bert");
    let texts = ["", "Veneer", "How do I reset my password?"];
    let tokens: usize = texts.iter().map(|text| ids(text, true).len()).sum();
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let reply = reply(&door, json!({"input": texts})).await;
        assert_eq!(reply["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        assert_eq!((&reply["object"], &reply["data"][2]["object"]), (&json!("list"), &json!("embedding")));
        assert!(reply["created"].as_u64().unwrap() > 1_700_000_000);
        seen.insert(reply["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn a_vector_that_is_not_finite_is_500_and_never_null() {
    let folder = broken_base();
    let door = Door::open(&[format!("base={}", folder.path().display())], &[], &[]);
    for format in ["float", "base64"] {
        let error = refusal(ask(&door, json!({"input": [[5], [300]], "encoding_format": format})).await, 500);
        assert_eq!(error["type"], "server_error");
    }
    reply(&door, json!({"input": [[5], [299]]})).await;
}

/// What is short in JSON is not in memory.
#[tokio::test]
async fn lists_are_read_no_further_than_any_may_be() {
    let door = Door::family("bert");
    let list = |element: &str| vec![element; (1 << 20) + 1].join(",");
    for body in [
        format!(r#"{{"model": "base", "input": [{}]}}"#, list("[]")),
        format!(r#"{{"model": "base", "input": "a", "adapters": [{}]}}"#, list("null")),
    ] {
        let error = refusal(door.post("/v1/embeddings", body).await, 400);
        assert!(error["message"].as_str().unwrap().contains("more than 1048576 elements"), "{error}");
    }
}
