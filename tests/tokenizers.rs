//! Tokenizers whose files say other things than transformers builds of their class: its ids, or a refusal
//! (tests/fixtures/classes.py).

mod support;

use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use support::changed::assert_says;
use support::{Door, config, copy_of, edit_json, read, texts};
use tempfile::TempDir;
use veneer::text::Reading;

/// A family's base with keys of its tokenizer's files replaced; without a file where its keys are null.
fn changed(family: &str, tokenizer_config: &Value, tokenizer: &Value) -> TempDir {
    let folder = copy_of(&format!("{family}/base"));
    let lay = |file: &Path, keys: &Value| match keys {
        Value::Object(keys) => {
            edit_json(file, |content| content.as_object_mut().unwrap().extend(keys.clone()));
        }
        _ => fs::remove_file(file).unwrap(),
    };
    lay(&folder.path().join("tokenizer_config.json"), tokenizer_config);
    lay(&folder.path().join("tokenizer.json"), tokenizer);
    folder
}

fn ids(folder: &TempDir, texts: &[String]) -> Vec<Vec<u32>> {
    let door = Door::open(&[format!("m={}", folder.path().display())], &[], &[]);
    let served = door.app.serving().unwrap().registry.find("m").unwrap();
    let reading = Reading::default();
    texts.iter().map(|text| served.main().text.encode(text, &reading, "text").unwrap()).collect()
}

fn refusal(folder: &TempDir) -> String {
    let config = config(&[format!("m={}", folder.path().display())], &[], &[]).unwrap();
    Door::with(config).err().expect("it must not load").to_string()
}

#[test]
fn ids_are_those_of_the_class_whatever_the_file_says() {
    let golden = read("tokenizers.json");
    let (texts, mut wrong) = (texts(&golden), Vec::new());
    for row in golden["rows"].as_array().unwrap() {
        let folder = changed(row["family"].as_str().unwrap(), &row["tokenizer_config"], &row["tokenizer"]);
        let theirs: Vec<Vec<u32>> = serde_json::from_value(row["ids"].clone()).unwrap();
        for ((text, ours), theirs) in texts.iter().zip(ids(&folder, &texts)).zip(theirs) {
            if ours != theirs {
                wrong.push(format!("{} '{text}': {ours:?}, not {theirs:?}", row["name"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_cannot_be_built_is_refused_by_name() {
    let (none, pattern) = (json!({}), json!({"pre_tokenizer": {"type": "ByteLevel"}}));
    for (family, keys, content, says) in [
        ("bert", json!({"extra_special_tokens": ["hello"]}), &none, "extra_special_tokens names the token 'hello'"),
        ("bert", json!({"own_token": "hello"}), &none, "own_token names the token 'hello', which tokenizer.json"),
        ("bert", json!({"sep_token": null}), &none, "sep_token names no token, but texts are wrapped in it"),
        ("bert", json!({"cls_token": 3}), &none, "cls_token names no token"),
        ("bert", json!({"unk_token": null}), &none, "unk_token names no token"),
        (
            "bert",
            json!({"tokenizer_class": "T5Tokenizer"}),
            &none,
            "type 'WordPiece', but the tokenizer_class T5Tokenizer",
        ),
        (
            "bert",
            json!({"tokenizer_class": "XLNetTokenizerFast", "backend": null}),
            &none,
            "'XLNetTokenizer' is not supp",
        ),
        ("bert", json!({"added_tokens_decoder": {"a": {"content": "x"}}}), &none, "added_tokens_decoder: 'a' is no id"),
        ("qwen2", none.clone(), &pattern, "pre_tokenizer is not a pattern before bytes"),
    ] {
        println!("{family} {keys}");
        let refusal = refusal(&changed(family, &keys, content));
        assert_says(&refusal, &["tokenizer.json", says]);
    }
}

/// A class that is not built here, but whose file transformers 5 has written.
#[test]
fn what_transformers_has_built_is_read_as_it_is() {
    let says = json!({"tokenizer_class": "XLNetTokenizer", "backend": "tokenizers"});
    let (own, plain) = (changed("bert", &says, &json!({})), copy_of("bert/base"));
    let texts = ["How do I reset my password?".to_owned()];
    assert_eq!(ids(&own, &texts), ids(&plain, &texts));
}

/// Older versions wrote special tokens to a file of their own.
#[test]
fn an_older_list_of_special_tokens_counts() {
    let folder = copy_of("bert/base");
    let map = json!({"sep_token": {"content": "[MASK]", "lstrip": true}, "additional_special_tokens": ["the"]});
    fs::write(folder.path().join("special_tokens_map.json"), map.to_string()).unwrap();
    let says = json!({"sep_token": "[MASK]", "extra_special_tokens": ["the"]});
    let texts = ["reset the password".to_owned(), "bathe".to_owned()];
    let expected = ids(&changed("bert", &says, &json!({})), &texts);
    assert_eq!(ids(&folder, &texts), expected);
    assert_ne!(ids(&copy_of("bert/base"), &texts), expected);
    let listed = json!({"added_tokens_decoder": Map::new()});
    edit_json(&folder.path().join("tokenizer_config.json"), |config| {
        config.as_object_mut().unwrap().extend(listed.as_object().unwrap().clone());
    });
    assert_ne!(ids(&folder, &texts), expected);
}
