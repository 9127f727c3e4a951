//! What is checked when an adapter or a base is loaded: how far it moves probes, and the vectors that its folder expects.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use support::{Door, config, copy_of, cosine, edit_json, fixture, named, read, untrain};
use tempfile::TempDir;
use veneer::registry::{PROBES, Report};

const FILE: &str = "veneer_golden.json";

fn source(name: &str, folder: &Path) -> String {
    format!("{name}={}", folder.display())
}

fn check(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_veneer")).arg("check").args(args).env_clear().output().unwrap()
}

/// What `veneer check` says of an adapter of the bert base, and what stands in its log.
fn said_of(adapter: &Path) -> (String, String) {
    let base = fixture("bert/base");
    let output = check(&["--model", base.to_str().unwrap(), "--adapter", adapter.to_str().unwrap()]);
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    (String::from_utf8(output.stdout).unwrap(), log)
}

/// Why a model with adapters does not load, in one line.
fn refused(models: &[String], adapters: &[String], keys: &[(&str, &str)]) -> String {
    let refusal = Door::with(config(models, adapters, keys).unwrap()).err().expect("it must not load").to_string();
    assert_eq!(refusal.lines().count(), 1, "{refusal}");
    refusal
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

/// An adapter's configuration and weights, and nothing else.
fn bare(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// A copy of a fixture folder of the family bert, with the vectors that the fixtures have for it.
fn with_golden(name: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let (folder, golden) = (copy_of(&format!("bert/{name}")), read("bert/golden.json"));
    let mut file = json!({"texts": golden["texts"], "vectors": golden[name]});
    change(&mut file);
    fs::write(folder.path().join(FILE), file.to_string()).unwrap();
    folder
}

fn report(door: &Door, name: &str) -> Report {
    door.app.serving().unwrap().registry.find(name).unwrap().report.clone()
}

#[test]
fn an_adapter_that_was_never_trained_is_warned_of() {
    let untrained = copy_of("bert/lora-all");
    untrain(untrained.path());
    let (said, log) = said_of(untrained.path());
    assert_says(&said, &["  warning: it moves none of them"]);
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("moves no probe sentence"), "{log}");
    assert!(warnings[0].contains("adapter=\"adapter\""), "{log}");

    let (said, log) = said_of(&fixture("bert/lora-all"));
    assert!(!said.contains("warning") && !log.contains("moves no probe"), "{said}{log}");
}

#[tokio::test]
async fn the_distance_is_that_between_the_vectors_of_base_and_adapter() {
    let adapter = bare("bert/lora-all");
    let door = Door::open(&[named("base", "bert/base")], &[source("a", adapter.path())], &[]);
    let effect = report(&door, "a").effect.unwrap();
    let (base, adapted) = (door.vectors("base", PROBES).await, door.vectors("a", PROBES).await);
    let each: Vec<f64> = (0..3).map(|i| 1.0 - cosine(&base[i..=i], &adapted[i..=i])).collect();
    let (smallest, largest) = (each.iter().copied().fold(2.0, f64::min), each.iter().copied().fold(0.0, f64::max));
    assert!((effect.moves.0 - smallest).abs() < 1e-6 && (effect.moves.1 - largest).abs() < 1e-6, "{each:?} {effect:?}");
    assert!(smallest > 1e-4 && smallest < largest);
    assert!(report(&door, "base").effect.is_none());
}

#[test]
fn check_reports_each_adapter_in_full() {
    let (said, _) = said_of(&fixture("bert/lora-attention"));
    let expected =
        ["adapter of base, 4 of ", "rank 4, ", " KiB\n", "LORA r=4 scale=", "overrides of the base: ", "  moves 3 "];
    assert_says(&said, &expected);
    assert_says(&said, &["\n  generation ", "\n  fingerprint "]);

    let jina = check(&["--model", fixture("jina-v3/base").to_str().unwrap()]);
    let said = String::from_utf8(jina.stdout).unwrap();
    assert!(jina.status.success());
    assert_says(&said, &["  base, 32 dimensions", "separation\n  adapter of base", "in the base's own checkpoint"]);
}

#[tokio::test]
async fn check_names_the_bits_that_replies_name() {
    let (said, _) = said_of(&fixture("bert/lora-all"));
    let door = Door::open(&[named("base", "bert/base")], &[named("adapter", "bert/lora-all")], &[]);
    let (_, model) = door.get("/v1/models/adapter").await;
    let line = |key: &str| format!("  {key} {}\n", model[key].as_str().unwrap());
    assert_says(&said, &[&line("generation"), &line("fingerprint")]);
}

#[test]
fn what_an_adapter_overrides_is_what_differs_from_its_base() {
    let overrides = |adapter: &Path| {
        let door = Door::open(&[named("base", "bert/base")], &[source("a", adapter)], &[]);
        report(&door, "a").effect.unwrap().overrides
    };
    assert!(overrides(bare("bert/lora-all").path()).is_empty());
    let changed = copy_of("bert/lora-all");
    let plain = overrides(changed.path());
    for (file, change, way) in [
        ("sentence_bert_config.json", json!({"max_seq_length": 9}), "maximum length"),
        ("config_sentence_transformers.json", json!({"prompts": {"x": "x: "}}), "prompts"),
        ("1_Pooling/config.json", json!({"embedding_dimension": 32, "pooling_mode": "max"}), "pipeline"),
    ] {
        let known = changed.path().join(file);
        fs::write(&known, change.to_string()).unwrap();
        assert!(overrides(changed.path()).contains(&way), "{way}");
    }
    edit_json(&changed.path().join("tokenizer_config.json"), |config| config["do_lower_case"] = json!(false));
    let now = overrides(changed.path());
    assert!(now.contains(&"tokenizer") && !plain.contains(&"tokenizer"), "{plain:?} {now:?}");
}

#[test]
fn expected_vectors_that_are_met_are_counted() {
    let (base, adapter) =
        (with_golden("base", |_| ()), with_golden("lora-all", |file| file["normalize"] = json!(true)));
    let door = Door::open(&[source("m", base.path())], &[source("a", adapter.path())], &[]);
    let texts = read("bert/golden.json")["texts"].as_array().unwrap().len();
    for name in ["m", "a"] {
        let golden = report(&door, name).golden.unwrap();
        assert!(golden.vectors == texts && golden.smallest > 0.999_999, "{golden:?}");
    }
    let check = check(&["--model", base.path().to_str().unwrap()]);
    let said = String::from_utf8(check.stdout).unwrap();
    assert_says(&said, &[&format!("{texts} expected vectors are met, smallest cosine ")]);
}

#[test]
fn an_expected_vector_that_is_missed_refuses_the_load_and_is_named() {
    let swapped = |file: &mut Value| file["vectors"][2] = file["vectors"][1].clone();
    let (base, models) = (with_golden("base", swapped), [named("m", "bert/base")]);
    let parts = [FILE, "texts[2]", "under 'm'", "cosine 0.", "golden_cosine_min = 0.999"];
    assert_says(&refused(&[source("m", base.path())], &[], &[]), &parts);
    let adapter = with_golden("lora-all", swapped);
    let parts = [FILE, "texts[2]", "under 'a'", "cosine 0."];
    assert_says(&refused(&models, &[source("a", adapter.path())], &[]), &parts);
    Door::open(&models, &[source("a", adapter.path())], &[("golden_cosine_min", "0")]);

    // The base's vectors are not the adapter's.
    let of_base = with_golden("lora-all", |file| file["vectors"] = read("bert/golden.json")["base"].clone());
    refused(&models, &[source("a", of_base.path())], &[]);
    let output = check(&["--model", base.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn lengths_count_where_vectors_are_not_normalized() {
    let doubled = |normalize: bool| {
        with_golden("base", |file| {
            file["normalize"] = json!(normalize);
            for element in file["vectors"][0].as_array_mut().unwrap() {
                *element = json!(element.as_f64().unwrap() * 2.0);
            }
        })
    };
    Door::open(&[source("m", doubled(true).path())], &[], &[]);
    let said = refused(&[source("m", doubled(false).path())], &[], &[]);
    assert_says(&said, &["texts[0]", "0.500000", "lengths"]);
    let as_they_are = with_golden("base", |file| file["normalize"] = json!(false));
    Door::open(&[source("m", as_they_are.path())], &[], &[]);
}

#[test]
fn expected_vectors_are_of_texts_with_the_prompt_that_is_named() {
    let prompt = |folder: &Path, text: &str| {
        edit_json(&folder.join("config_sentence_transformers.json"), |config| config["prompts"] = json!({"q": text}))
    };
    let folder = with_golden("base", |file| {
        let texts = file["texts"].as_array().unwrap();
        let (index, text) = texts.iter().enumerate().find(|(_, text)| text.as_str().unwrap().contains(' ')).unwrap();
        let (head, tail) = text.as_str().unwrap().split_once(' ').unwrap();
        let (head, tail) = (format!("{head} "), tail.to_owned());
        let vector = file["vectors"][index].clone();
        *file = json!({"texts": [tail], "vectors": [vector], "prompt_name": "q", "head": head});
    });
    let path = folder.path().join(FILE);
    let mut head = String::new();
    edit_json(&path, |file| head = file.as_object_mut().unwrap().remove("head").unwrap().as_str().unwrap().to_owned());
    prompt(folder.path(), &head);
    Door::open(&[source("m", folder.path())], &[], &[]);
    prompt(folder.path(), "another one ");
    assert_says(&refused(&[source("m", folder.path())], &[], &[]), &[FILE, "texts[0]"]);
    edit_json(&path, |file| file["prompt_name"] = json!("none"));
    assert_says(&refused(&[source("m", folder.path())], &[], &[]), &[FILE, "no prompt 'none'"]);
}

#[test]
fn a_file_of_expected_vectors_that_is_not_understood_is_refused_by_name() {
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 7] = [
        (|file| drop(file["vectors"].as_array_mut().unwrap().pop()), "expected one vector a text"),
        (|file| *file = json!({"texts": [], "vectors": []}), "at least one"),
        (|file| drop(file["vectors"][1].as_array_mut().unwrap().pop()), "vectors[1] has 31 numbers"),
        (|file| file["vectors"][1][3] = json!(1e39), "vectors[1][3]: number out of range"),
        (|file| file["vectors"][1] = json!(vec![0; 32]), "vectors[1] is all zeros"),
        (|file| file["vectors"][1][3] = json!(null), "vectors[1][3]"),
        (|file| file["cosine"] = json!(0.5), "unknown field `cosine`"),
    ];
    for (change, reason) in changes {
        let folder = with_golden("base", change);
        assert_says(&refused(&[source("m", folder.path())], &[], &[]), &[FILE, reason]);
    }
}

#[tokio::test]
async fn expected_vectors_belong_to_the_adapter_where_a_base_lies_beside_it_and_to_no_hash() {
    let adapter = bare("bert/lora-all");
    let beside = copy_of("bert/base");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(adapter.path().join(file), beside.path().join(file)).unwrap();
    }
    let without = Door::open(&[source("m", beside.path())], &[], &[]);
    let expected = without.vectors("m", ["a text"]).await;
    fs::write(beside.path().join(FILE), json!({"texts": ["a text"], "vectors": expected}).to_string()).unwrap();
    let door = Door::open(&[source("m", beside.path())], &[], &[]);
    assert!(report(&door, "m").golden.is_some() && report(&door, "m/base").golden.is_none());
    for name in ["m", "m/base"] {
        let path = format!("/v1/models/{name}");
        let (before, after) = (without.get(&path).await.1, door.get(&path).await.1);
        assert_eq!((&before["generation"], &before["fingerprint"]), (&after["generation"], &after["fingerprint"]));
    }
}

#[test]
fn the_limit_is_a_cosine() {
    for value in ["-0.1", "1.1", "NaN", "much"] {
        let refusal = config(&[], &[], &[("golden_cosine_min", value)]).unwrap_err().to_string();
        assert_says(&refusal, &["golden"]);
    }
    for value in ["0", "0.5", "1"] {
        config(&[], &[], &[("golden_cosine_min", value)]).unwrap();
    }
}

/// A folder of 30 adapters of the bert base, of which every fifth was never trained and every seventh has a tokenizer of
/// its own.
fn thirty() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..30 {
        let adapter = if number % 7 == 3 { copy_of("bert/lora-all") } else { bare("bert/lora-attention") };
        if number % 5 == 2 {
            untrain(adapter.path());
        }
        fs::rename(adapter.path(), folder.path().join(format!("a{number:02}"))).unwrap();
    }
    folder
}

/// Whether all adapters of a folder load on so many threads, what is said of them, and the log's lines about adapters.
fn loaded_on(threads: usize, folder: &Path) -> (bool, String, Vec<String>) {
    let (base, threads) = (fixture("bert/base"), threads.to_string());
    let names = ["--model", base.to_str().unwrap(), "--adapters", folder.to_str().unwrap(), "--threads", &threads];
    let output = check(&names);
    let (said, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    // Without the time, or as the reason why nothing is served.
    let lines = log.lines().filter_map(|line| match line.split_once(' ') {
        Some(("veneer:", _)) => Some(line.to_owned()),
        Some((_, rest)) => rest.contains(" adapter=").then(|| rest.trim_start().to_owned()),
        None => None,
    });
    (output.status.success(), said, lines.collect())
}

#[test]
fn adapters_come_in_order_whatever_the_number_of_threads() {
    let folder = thirty();
    let alone = loaded_on(1, folder.path());
    let (loads, _, log) = &alone;
    let expected: Vec<String> = (0..30)
        .flat_map(|number| {
            [(number % 5 == 2).then(|| format!("WARN a{number:02}")), Some(format!("INFO a{number:02}"))]
        })
        .flatten()
        .collect();
    let level_and_name = |line: &String| {
        let name = line.split("adapter=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        format!("{} {name}", line.split(' ').next().unwrap())
    };
    assert_eq!((*loads, log.iter().map(level_and_name).collect::<Vec<_>>()), (true, expected));
    for threads in [2, 3, 7] {
        assert_eq!(loaded_on(threads, folder.path()), alone, "on {threads} threads");
    }
}

#[test]
fn the_first_adapters_error_counts_whatever_the_number_of_threads() {
    let folder = thirty();
    // What is wrong with the 12th is found after all others are read, and that with the 10th after all are tried out.
    let config = folder.path().join("a12/adapter_config.json");
    edit_json(&config, |config| config["peft_type"] = json!("ROAD"));
    let golden = folder.path().join("a10").join(FILE);
    fs::write(&golden, json!({"texts": ["a"], "vectors": [vec![1.0; 32]]}).to_string()).unwrap();
    for (first, cause) in [(10, "a10/veneer_golden.json"), (12, "a12/adapter_config.json")] {
        let alone = loaded_on(1, folder.path());
        let (loads, said, log) = &alone;
        assert!(!loads && said.is_empty() && log.last().unwrap().contains(cause), "{log:?}");
        assert_eq!(log.iter().filter(|line| line.contains("adapter loaded")).count(), first);
        for threads in [2, 3, 7] {
            assert_eq!(loaded_on(threads, folder.path()), alone, "on {threads} threads");
        }
        let _ = fs::remove_file(&golden);
    }
    // The first that is wrong is told, though it is read after one behind it was found to be missing.
    let adapters = [source("wrong", &folder.path().join("a12")), source("lost", &folder.path().join("lost/lost/lost"))];
    assert_says(&refused(&[named("base", "bert/base")], &adapters, &[]), &["a12/adapter_config.json"]);
}
