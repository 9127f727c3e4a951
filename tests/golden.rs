//! Vectors against those of sentence-transformers + PEFT (tests/fixtures), for every family and adapter.

mod support;

use serde_json::{Value, json};
use support::{ADAPTERS, Door, FAMILIES, embeddings, fixture, gap, named, read, rows};

fn texts(golden: &Value) -> Vec<String> {
    serde_json::from_value(golden["texts"].clone()).unwrap()
}

#[tokio::test]
async fn every_family_and_adapter_is_within_1e5_of_the_oracle() {
    for family in FAMILIES {
        let (door, golden) = (Door::family(family), read(&format!("{family}/golden.json")));
        let base = rows(&golden["base"]);
        for name in ["base"].into_iter().chain(ADAPTERS) {
            let (ours, oracle) = (door.vectors(name, texts(&golden)).await, rows(&golden[name]));
            let (error, effect) = (gap(&ours, &oracle), gap(&ours, &base));
            println!("{family:12} {name:16} max|diff| {error:.1e}  |adapter - base| {effect:.2}");
            assert!(error <= 1e-5, "{family} {name}: {error}");
            assert!(name == "base" || effect > 1e-2, "{family} {name} does nothing");
        }
    }
}

#[tokio::test]
async fn token_ids_are_the_oracles() {
    for family in FAMILIES {
        let (door, golden) = (Door::family(family), read(&format!("{family}/golden.json")));
        let by_id = door.vectors("lora-all", &golden["token_ids"]).await;
        assert_eq!(by_id, door.vectors("lora-all", texts(&golden)).await, "{family}");
    }
}

#[tokio::test]
async fn alone_is_together_and_mixed_is_separate() {
    for family in FAMILIES {
        let (door, golden) = (Door::family(family), read(&format!("{family}/golden.json")));
        let texts = texts(&golden);
        // Every text under every adapter and the base, interleaved, in one request and so in one batch.
        let names = [None, Some("lora-attention"), Some("lora-all"), Some("rslora-patterns")];
        let inputs: Vec<&String> = texts.iter().flat_map(|text| [text; 4]).collect();
        let adapters: Vec<_> = texts.iter().flat_map(|_| names).collect();
        let body =
            json!({"model": "base", "adapters": adapters, "input": inputs, "normalize": false, "truncate": true});
        let (status, reply) = door.ask(body).await;
        assert_eq!(status, 200, "{reply}");
        for (row, (text, name)) in embeddings(&reply).into_iter().zip(inputs.iter().zip(&adapters)) {
            let alone = door.vectors(name.unwrap_or("base"), [text]).await;
            let gap = gap(&[row], &alone);
            assert!(gap <= 1e-6, "{family} {name:?} {text:?}: {gap}");
        }
    }
}

#[tokio::test]
async fn the_base_is_bit_identical_before_and_after_adapters_were_used() {
    for family in FAMILIES {
        let (door, golden) = (Door::family(family), read(&format!("{family}/golden.json")));
        let before = door.vectors("base", texts(&golden)).await;
        for name in ADAPTERS {
            door.vectors(name, texts(&golden)).await;
        }
        assert_eq!(before, door.vectors("base", texts(&golden)).await, "{family}");
    }
}

#[tokio::test]
async fn shards_are_the_same_model() {
    let golden = read("bert/golden.json");
    let whole = Door::open(&[named("m", "bert/base")], &[], &[]);
    let sharded = Door::open(&[named("m", "bert-sharded")], &[], &[]);
    assert_eq!(whole.vectors("m", texts(&golden)).await, sharded.vectors("m", texts(&golden)).await);
}

#[tokio::test]
async fn a_folder_that_holds_only_a_peft_checkpoint_is_a_model() {
    for family in FAMILIES {
        let golden = read(&format!("{family}/golden.json"));
        let door = Door::open(&[fixture(&format!("{family}/lora-all")).display().to_string()], &[], &[]);
        let ours = door.vectors("lora-all", texts(&golden)).await;
        assert!(gap(&ours, &rows(&golden["lora-all"])) <= 1e-5, "{family}");
        // Its base is served beside it.
        assert!(gap(&door.vectors("base", texts(&golden)).await, &rows(&golden["base"])) <= 1e-5, "{family}");
    }
}
