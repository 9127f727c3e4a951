//! Small batches on a GPU, whose kernels are asked for at once when they come again: the answers are the very same, and the
//! device is really asked so. Where there is no GPU it is emulated, as in tests/gpu.rs.

mod support;

use serde_json::json;
use support::{ADAPTERS, Door, embeddings, gap, named, read, rows, test_device, texts, together_max};
use tokio::sync::Mutex;
use veneer::kernels::Device;

const LAUNCHED: &str = "veneer_graphs_launched_total";

/// Launches are counted for the process: one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The device, or none with a word why.
fn device() -> Option<String> {
    let name = test_device().unwrap_or_else(|| "emulated:256".into());
    Device::named(&name).map_err(|reason| println!("skipped: {reason}")).is_ok().then_some(name)
}

/// A family's base there, with adapters by their folders.
fn door(family: &str, adapters: &[(&str, String)], device: &str) -> Door {
    let adapters: Vec<String> = adapters.iter().map(|(name, folder)| named(name, folder)).collect();
    let keys = [("device", device), ("max_batch_tokens", "8192")];
    Door::open(&[named("base", &format!("{family}/base"))], &adapters, &keys)
}

/// One text's vector, and how many graphs were launched for it.
async fn asked(door: &Door, model: &str, text: &str) -> (Vec<Vec<f32>>, u64) {
    let before = door.counter(LAUNCHED).await;
    let vectors = door.vectors(model, [text]).await;
    (vectors, door.counter(LAUNCHED).await - before)
}

#[tokio::test]
async fn a_text_of_the_same_length_again_is_a_graph_and_its_vector_the_very_same() {
    let Some(device) = device() else { return };
    let _alone = ALONE.lock().await;
    for family in
        ["bert", "mpnet", "qwen3", "modernbert", "gemma3", "jina-v2", "nomic-v2-moe", "deberta-v2", "t5-gated"]
    {
        let golden = read(&format!("{family}/golden.json"));
        let texts = texts(&golden);
        let door = door(family, &ADAPTERS.map(|name| (name, format!("{family}/{name}"))), &device);
        for name in ["base"].iter().chain(&ADAPTERS) {
            let oracle = rows(&golden[name]);
            for place in [2, 4, texts.len() - 1] {
                let (first, _) = asked(&door, name, &texts[place]).await;
                assert!(gap(&first, &oracle[place..=place]) <= 1e-5, "{family} {name} {place}");
                for round in 0..3 {
                    let (again, launched) = asked(&door, name, &texts[place]).await;
                    assert_eq!(again, first, "{family} {name} {place}, round {round}");
                    let is_at_once = match family {
                        // A router of experts is read on the host, and what it says comes again as the text does.
                        "nomic-v2-moe" => launched >= 1,
                        _ => launched == 1,
                    };
                    assert!(is_at_once, "{family} {name} {place}, round {round}: {launched} graphs");
                }
            }
        }
    }
}

#[tokio::test]
async fn one_graph_serves_any_text_of_a_length_and_any_adapter_of_the_same_ranks() {
    let Some(device) = device() else { return };
    let _alone = ALONE.lock().await;
    let kinds = ["fan-in-fan-out", "bert-several", "lora-attention"];
    let folders = ["peft/bert/fan-in-fan-out", "peft/bert-several/first", "bert/lora-attention"];
    let adapters: Vec<(&str, String)> = kinds.into_iter().zip(folders.map(String::from)).collect();
    let door = door("bert", &adapters, &device);
    let texts = ["the river by the mill", "the mill by the river", "by the mill the river", "by the river the mill"];
    let mut launched = Vec::new();
    let mut vectors = Vec::new();
    for (text, name) in texts.iter().flat_map(|text| kinds.map(|name| (text, name))) {
        let (vector, graphs) = asked(&door, name, text).await;
        vectors.extend(vector);
        launched.push(graphs);
    }
    // The same in one batch, which comes once, and so of kernels one by one.
    let inputs: Vec<&str> = texts.iter().flat_map(|text| [*text; 3]).collect();
    let names: Vec<&str> = texts.iter().flat_map(|_| kinds).collect();
    let before = door.counter(LAUNCHED).await;
    let body = json!({"model": "base", "adapters": names, "input": inputs, "normalize": false});
    let (status, reply) = door.ask(body).await;
    assert_eq!((status, door.counter(LAUNCHED).await), (200, before), "{reply}");
    assert!(gap(&embeddings(&reply), &vectors) <= together_max(), "{}", gap(&embeddings(&reply), &vectors));
    // Of the same words, and each adapter of rank 4 at the same modules: one list, which only the first does not find.
    assert_eq!(launched, [vec![0], vec![1; 11]].concat());
    for (place, vector) in vectors.iter().enumerate() {
        let same = |other: &&Vec<f32>| gap(std::slice::from_ref(*other), std::slice::from_ref(vector)) < 1e-3;
        assert_eq!(vectors.iter().filter(same).count(), 1, "{} {}", inputs[place], names[place]);
    }
}

#[tokio::test]
async fn large_batches_between_small_ones_are_no_graphs_and_change_nothing() {
    let Some(device) = device() else { return };
    let _alone = ALONE.lock().await;
    let golden = read("bert/golden.json");
    let texts = texts(&golden);
    let door = door("bert", &ADAPTERS.map(|name| (name, format!("bert/{name}"))), &device);
    // Texts whose adapters are on their way are batches of their own.
    for name in ADAPTERS {
        door.vectors(name, [&texts[2]]).await;
    }
    let long = &texts[texts.len() - 1];
    let body = |count: usize| {
        let names: Vec<&str> = (0..count).map(|place| ADAPTERS[place % 3]).collect();
        json!({"model": "base", "adapters": names, "input": vec![long; count], "normalize": false, "truncate": true})
    };
    for round in 0..4 {
        for count in [2, 40, 3] {
            let before = door.counter(LAUNCHED).await;
            let (status, reply) = door.ask(body(count)).await;
            assert_eq!(status, 200, "{reply}");
            let oracle: Vec<Vec<f32>> =
                (0..count).map(|place| rows(&golden[ADAPTERS[place % 3]])[texts.len() - 1].clone()).collect();
            assert!(gap(&embeddings(&reply), &oracle) <= 1e-5, "round {round}, {count} texts");
            let launched = door.counter(LAUNCHED).await - before;
            assert_eq!(launched, u64::from(count < 40 && round > 0), "round {round}, {count} texts");
        }
    }
}
