//! Vectors against those of sentence-transformers + PEFT (tests/fixtures), for every family and adapter.

mod support;

use serde_json::Value;
use support::{ADAPTERS, Door, FAMILIES, embeddings, fixture, gap, mixed, named, read, rows, texts, together_max};

/// One line a family: the largest difference to the oracle for the base and for each adapter, how far the adapters move
/// vectors at least, and the largest difference between a text alone and in a mixed batch.
#[tokio::test]
async fn every_family_and_adapter_is_within_1e5_of_the_oracle_alone_and_packed() {
    println!("{:22} {:>8} {:>8} {:>8} {:>8}  {:>6}  {:>8}", "", "base", "attn", "all", "patterns", "effect", "packed");
    let mut wrong = Vec::new();
    for family in FAMILIES {
        let (door, golden) = (Door::family(family), read(&format!("{family}/golden.json")));
        let base = rows(&golden["base"]);
        let (mut errors, mut effect) = (Vec::new(), f32::INFINITY);
        for name in ["base"].into_iter().chain(ADAPTERS) {
            let (ours, oracle) = (door.vectors(name, texts(&golden)).await, rows(&golden[name]));
            errors.push(gap(&ours, &oracle));
            if name != "base" {
                effect = effect.min(gap(&ours, &base));
            }
        }
        let packed = packed(&door, &golden).await;
        let cells: Vec<String> = errors.iter().map(|error| format!("{error:8.1e}")).collect();
        println!("{family:22} {}  {effect:6.2}  {packed:8.1e}", cells.join(" "));
        if errors.iter().any(|error| *error > 1e-5) || effect <= 1e-2 || packed > together_max() {
            wrong.push(format!("{family}: {} effect {effect} packed {packed:.1e}", cells.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// The largest difference between a text alone and the same in one batch with every text under every adapter and the
/// base, interleaved.
async fn packed(door: &Door, golden: &Value) -> f32 {
    let texts = texts(golden);
    let (body, pairs) = mixed(&texts);
    let (status, reply) = door.ask(body).await;
    assert_eq!(status, 200, "{reply}");
    let mut largest = 0f32;
    for (row, (text, name)) in embeddings(&reply).into_iter().zip(pairs) {
        let alone = door.vectors(name.unwrap_or("base"), [text]).await;
        largest = largest.max(gap(&[row], &alone));
    }
    largest
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
