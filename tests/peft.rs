//! What PEFT can say beyond LoRA on linear modules, against vectors of sentence-transformers + PEFT
//! (tests/fixtures/peft_types.py).

mod support;

use safetensors::SafeTensors;
use serde_json::json;
use support::{Door, copy_of, embeddings, gap, named, read, rows, texts};

/// Base folder and kind of adapter.
const ROWS: [(&str, &str); 6] = [
    ("bert", "lora-embedding"),
    ("bert", "lora-bias"),
    ("bert", "dora"),
    ("qwen2", "lora-bias"),
    ("qwen2", "dora"),
    ("gemma3", "lora-embedding"),
];

#[tokio::test]
async fn every_kind_is_within_1e5_of_the_oracle_alone_and_mixed() {
    for (family, kind) in ROWS {
        let golden = read(&format!("peft/{family}/golden.json"));
        let texts = texts(&golden);
        let adapters = [named(kind, &format!("peft/{family}/{kind}")), named("other", &format!("{family}/lora-all"))];
        let door = Door::open(&[named("base", &format!("{family}/base"))], &adapters, &[]);
        let (oracle, base) = (rows(&golden[kind]), rows(&golden["base"]));
        let ours = door.vectors(kind, &texts).await;
        let (error, effect) = (gap(&ours, &oracle), gap(&ours, &base));
        println!("{family:10} {kind:16} max|diff| {error:.1e}  |adapter - base| {effect:.2}");
        assert!(error <= 1e-5 && effect > 1e-2, "{family} {kind}: {error}, {effect}");
        assert!(gap(&door.vectors("base", &texts).await, &base) <= 1e-5, "{family}: the base changed");
        let inputs: Vec<&String> = texts.iter().flat_map(|text| [text; 3]).collect();
        let names: Vec<_> = texts.iter().flat_map(|_| [Some(kind), None, Some("other")]).collect();
        let body = json!({"model": "base", "adapters": names, "input": inputs, "normalize": false, "truncate": true});
        let (status, reply) = door.ask(body).await;
        assert_eq!(status, 200, "{reply}");
        let mixed: Vec<Vec<f32>> = embeddings(&reply).into_iter().step_by(3).collect();
        assert!(gap(&mixed, &ours) <= 1e-6, "{family} {kind}: mixed is not alone");
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
    let high = door.app.serving().unwrap().registry.find("base").unwrap().target.model.vocabulary(None) as u32 - 1;
    assert!(gap(&door.vectors("changed", ids(high)).await, &door.vectors("plain", ids(high)).await) > 1e-2);
}
