//! What PEFT can say beyond LoRA on linear modules, against vectors of sentence-transformers + PEFT
//! (tests/fixtures/peft_types.py).

mod support;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use support::tensors::change_tensors;
use support::{
    Door, config, copy_of, embeddings, fixture, gap, kinds, named, read, refusal, rows, test_device, texts,
    together_max,
};

/// Bases with adapters in tests/fixtures/peft.
const BASES: [&str; 8] = ["bert", "qwen2", "gemma3", "t5", "gte", "modernbert", "deberta-v2", "deberta-v2-unshared"];

#[tokio::test]
async fn every_kind_is_within_1e5_of_the_oracle_and_far_from_the_base() {
    let mut wrong = Vec::new();
    for base in BASES {
        let golden = read(&format!("peft/{base}/golden.json"));
        let texts = texts(&golden);
        let plain = rows(&golden["base"]);
        for kind in kinds(&golden) {
            let adapters = [named(&kind, &format!("peft/{base}/{kind}"))];
            let config = config(&[named("base", &format!("{base}/base"))], &adapters, &[]).unwrap();
            let door = match Door::with(config) {
                Ok(door) => door,
                Err(error) => {
                    wrong.push(format!("{base} {kind}: {error}"));
                    continue;
                }
            };
            let ours = door.vectors(&kind, &texts).await;
            let (error, effect) = (gap(&ours, &rows(&golden[&kind])), gap(&ours, &plain));
            println!("{base:8} {kind:16} max|diff| {error:.1e}  |adapter - base| {effect:.2}");
            if error > 1e-5 || effect <= 1e-2 || gap(&door.vectors("base", &texts).await, &plain) > 1e-5 {
                wrong.push(format!("{base} {kind}: {error:.1e}, effect {effect:.1e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// All of them at once, with the base between them.
#[tokio::test]
async fn a_batch_of_every_kind_is_as_each_alone() {
    for base in BASES {
        let golden = read(&format!("peft/{base}/golden.json"));
        let (texts, kinds) = (texts(&golden), kinds(&golden));
        assert!(kinds.len() >= if ["bert", "qwen2"].contains(&base) { 16 } else { 2 }, "{kinds:?}");
        let adapters: Vec<String> = kinds.iter().map(|kind| named(kind, &format!("peft/{base}/{kind}"))).collect();
        let door = Door::open(&[named("base", &format!("{base}/base"))], &adapters, &[]);
        let names: Vec<Option<&str>> = kinds.iter().map(|kind| Some(kind.as_str())).chain([None]).collect();
        let inputs: Vec<&String> = texts.iter().flat_map(|text| vec![text; names.len()]).collect();
        let by_input: Vec<Option<&str>> = texts.iter().flat_map(|_| names.clone()).collect();
        let body =
            json!({"model": "base", "adapters": by_input, "input": inputs, "normalize": false, "truncate": true});
        let (status, reply) = door.ask(body).await;
        assert_eq!(status, 200, "{reply}");
        let mixed = embeddings(&reply);
        for (place, name) in names.iter().enumerate() {
            let alone = door.vectors(name.unwrap_or("base"), &texts).await;
            let mixed: Vec<Vec<f32>> = mixed.iter().skip(place).step_by(names.len()).cloned().collect();
            let difference = gap(&mixed, &alone);
            assert!(difference <= together_max(), "{base} {name:?}: {difference:.1e}");
        }
    }
}

#[tokio::test]
async fn a_whole_embedding_beside_an_update_goes_before_the_bases() {
    let folder = copy_of("peft/gemma3/lora-embedding");
    let path = folder.path().join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let whole = whole.tensor("base_model.model.embed_tokens.base_layer.weight").unwrap();
    // The second half of the rows becomes 7.
    let (start, end) = (whole.data().as_ptr() as usize - bytes.as_ptr() as usize, whole.data().len());
    bytes[start + end / 2..start + end].chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&7f32.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
    let changed = format!("changed={}", folder.path().display());
    let adapters = [changed, named("plain", "peft/gemma3/lora-embedding")];
    let door = Door::open(&[named("base", "gemma3/base")], &adapters, &[]);
    let ids = |id: u32| serde_json::json!([[1, id, 1]]);
    assert_eq!(door.vectors("changed", ids(5)).await, door.vectors("plain", ids(5)).await);
    let high =
        door.app.serving().unwrap().registry.find("base").unwrap().main().target.model().vocabulary(None) as u32 - 1;
    assert!(gap(&door.vectors("changed", ids(high)).await, &door.vectors("plain", ids(high)).await) > 1e-2);
}

/// Blends against PEFT's, as one adapter alone, and beside others in one batch.
#[tokio::test]
async fn blends_are_the_weighted_sums_that_peft_makes() {
    for base in ["bert", "qwen2"] {
        let golden = read(&format!("peft/{base}/golden.json"));
        let texts = texts(&golden);
        let adapters: Vec<String> =
            kinds(&golden).iter().map(|kind| named(kind, &format!("peft/{base}/{kind}"))).collect();
        let door = Door::open(&[named("base", &format!("{base}/base"))], &adapters, &[]);
        let ask = async |adapters: Value| {
            let body =
                json!({"model": "base", "adapters": adapters, "input": texts, "normalize": false, "truncate": true});
            door.ask(body).await
        };
        for blend in read(&format!("peft/{base}/blends.json")).as_array().unwrap() {
            let (status, reply) = ask(blend["adapters"].clone()).await;
            assert_eq!(status, 200, "{reply}");
            let (ours, oracle) = (embeddings(&reply), rows(&blend["vectors"]));
            let error = gap(&ours, &oracle);
            println!("{base} {} max|diff| {error:.1e}", blend["adapters"]);
            assert!(error <= 1e-5, "{base} {}: {error}", blend["adapters"]);
            assert!(gap(&ours, &rows(&golden["base"])) > 1e-2);
        }
        let (_, reply) = ask(json!([{"name": "dora"}])).await;
        assert_eq!(embeddings(&reply), door.vectors("dora", &texts).await, "one at weight 1 is itself");
        for (adapters, reason) in [
            (json!([{"name": "dora", "weight": 0.5}]), "cannot be weighted or blended"),
            (json!([{"name": "loha"}, {"name": "ia3"}]), "'ia3' cannot be weighted"),
            (json!([{"name": "loha"}, {"name": "loha"}]), "twice"),
            (json!([{"name": "base"}]), "no adapter"),
            (json!([{"name": "loha", "wait": 1}]), "wait"),
            (json!([{"name": "loha", "weight": "1"}]), "weight"),
            (json!([{"name": "loha"}, null]), "adapters"),
        ] {
            let error = support::refusal(ask(adapters).await, 400);
            assert!(error["message"].as_str().unwrap().contains(reason), "{error}");
        }
        support::refusal(ask(json!([{"name": "nobody"}])).await, 404);
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused() {
    let folder = copy_of("peft/bert/resized-vocabulary");
    change_tensors(folder.path(), |tensors| tensors.retain(|name, _| !name.contains("word_embeddings")));
    let config = config(&[named("base", "bert/base")], &[format!("a={}", folder.path().display())], &[]).unwrap();
    let refusal = Door::with(config).err().expect("it must not load").to_string();
    assert!(refusal.contains("tokenizer.json") && refusal.contains("vocabulary ends at 384"), "{refusal}");
}

/// `adapter_model.bin` as torch.save writes it.
#[tokio::test]
async fn a_pickle_of_tensors_is_the_same_adapter() {
    for base in ["bert", "qwen2"] {
        let texts = texts(&read(&format!("peft/{base}/golden.json")));
        let adapters = [named("bin", &format!("peft/{base}-bin")), named("same", &format!("peft/{base}/lora-short"))];
        let door = Door::open(&[named("base", &format!("{base}/base"))], &adapters, &[]);
        assert_eq!(door.vectors("bin", &texts).await, door.vectors("same", &texts).await);
    }
    let texts = texts(&read("peft/bert/golden.json"));
    let adapters = [format!("bin={}", pickled("state-dict").keep().display()), named("same", "peft/bert/lora-short")];
    let door = Door::open(&[named("base", "bert/base")], &adapters, &[]);
    assert_eq!(door.vectors("bin", &texts).await, door.vectors("same", &texts).await);
}

#[test]
fn a_pickle_that_runs_code_or_that_only_torch_reads_is_refused_with_the_way_out() {
    // As a file of torch before 1.6 begins, with a pickle of a number.
    let before_zip = pickled("runs-code");
    let start = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    std::fs::write(before_zip.path().join("adapter_model.bin"), start).unwrap();
    for (folder, reason) in [
        (pickled("runs-code"), "tensors alone"),
        (before_zip, "no zip archive"),
        (pickled("strided"), "non-contiguous"),
    ] {
        let adapter = format!("a={}", folder.path().display());
        let config = config(&[named("base", "bert/base")], &[adapter], &[]).unwrap();
        let refusal = Door::with(config).err().expect("it must not load").to_string();
        for part in ["adapter_model.bin", reason, "safetensors.torch.save_file"] {
            assert!(refusal.contains(part), "{refusal}");
        }
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
        assert!(!std::path::Path::new("ran-code").exists());
    }
}

/// A copy of the adapter in a pickle, with another one in its place.
fn pickled(file: &str) -> tempfile::TempDir {
    let folder = copy_of("peft/bert-bin");
    std::fs::copy(fixture(&format!("peft/{file}.bin")), folder.path().join("adapter_model.bin")).unwrap();
    folder
}

#[tokio::test]
async fn a_weight_that_overflows_is_the_callers_error() {
    let door = Door::open(&[named("m", "bert/base")], &[named("a", "bert/lora-all")], &[]);
    let ask = async |weight: Value| {
        door.ask(json!({"model": "m", "input": "x", "adapters": [{"name": "a", "weight": weight}]})).await
    };
    for (weight, shown) in [(json!(1e30), "1e30"), (json!(-1000.5), "-1.0005e3")] {
        let error = refusal(ask(weight).await, 400);
        let says = format!("adapters[0].weight must be between -1000 and 1000, got {shown}.");
        assert_eq!((&error["message"], &error["param"]), (&json!(says), &json!("adapters")));
    }
    for weight in [1000.0, -1000.0] {
        assert_eq!(ask(json!(weight)).await.0, 200);
    }
}

/// PEFT saves adapters with names in sub-folders of these names.
#[tokio::test]
async fn a_checkpoint_of_several_adapters_is_served_whole() {
    for base in ["bert", "qwen2"] {
        let folder = copy_of(&format!("peft/{base}-several"));
        let of_base = fixture(&format!("{base}/base")).display().to_string();
        for kind in ["first", "second"] {
            support::edit_json(&folder.path().join(kind).join("adapter_config.json"), |config| {
                config["base_model_name_or_path"] = json!(of_base);
            });
        }
        let source = folder.path().display().to_string();
        let door = Door::open(std::slice::from_ref(&source), &[], &[]);
        let golden = read(&format!("peft/{base}-several/golden.json"));
        for kind in ["base", "first", "second"] {
            assert!(gap(&door.vectors(kind, texts(&golden)).await, &rows(&golden[kind])) <= 1e-5, "{base} {kind}");
        }
        let of_base = [named("base", &format!("{base}/base"))];
        let config = config(&of_base, &[format!("a={source}")], &[]).unwrap();
        let refusal = Door::with(config).err().expect("which one?").to_string();
        assert!(refusal.contains("first") && refusal.contains("--adapters"), "{refusal}");
    }
}

#[tokio::test]
async fn every_kind_lies_over_a_base_in_half_precision() {
    for base in ["bert", "qwen2"] {
        let golden = read(&format!("peft/{base}/golden.json"));
        let (texts, kinds) = (texts(&golden), kinds(&golden));
        let adapters: Vec<String> = kinds.iter().map(|kind| named(kind, &format!("peft/{base}/{kind}"))).collect();
        let door = Door::open(&[named("base", &format!("{base}/base"))], &adapters, &[("dtype", "float16")]);
        for kind in kinds {
            let found = support::cosine(&door.vectors(&kind, &texts).await, &rows(&golden[&kind]));
            println!("{base:8} {kind:20} float16, least cosine {found:.6}");
            // A GPU rounds what is between two products too.
            assert!(found >= if test_device().is_some() { 0.9995 } else { 0.9999 }, "{base} {kind}: {found}");
        }
    }
}
