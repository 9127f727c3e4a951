//! Random valid configurations of LoRA against the plain one that means the same: every rank spelled out for its module,
//! every scale multiplied into its tensors.

mod support;

use serde_json::{Map, Value, json};
use support::chance::Chance;
use support::tensors::{Stored, Tensors, change_tensors};
use support::{Door, copy_of, gap, named, read, texts};
use tempfile::TempDir;

/// The linear modules of the tiny BERT by their last parts, and their shapes `[out, in]`.
const MODULES: [(&str, [usize; 2]); 6] = [
    ("attention.self.query", [32, 32]),
    ("attention.self.key", [32, 32]),
    ("attention.self.value", [32, 32]),
    ("attention.output.dense", [32, 32]),
    ("intermediate.dense", [64, 32]),
    ("output.dense", [32, 64]),
];

/// What PEFT's patterns say of a name: the first that is it, or its end.
fn first(patterns: &[(String, usize)], name: &str, default: usize) -> usize {
    let fits = |(pattern, _): &&(String, usize)| name == pattern || name.ends_with(&format!(".{pattern}"));
    patterns.iter().find(fits).map_or(default, |(_, value)| *value)
}

fn patterns(chance: &mut Chance, names: &[String]) -> Vec<(String, usize)> {
    let mut patterns: Vec<(String, usize)> = Vec::new();
    for _ in 0..chance.below(4) {
        let name = chance.one(names);
        let parts: Vec<&str> = name.split('.').collect();
        let pattern = parts[chance.below(parts.len())..].join(".");
        if patterns.iter().all(|(known, _)| *known != pattern) {
            patterns.push((pattern, 1 + chance.below(5)));
        }
    }
    patterns
}

fn folder(config: &Value, tensors: Tensors) -> TempDir {
    let folder = copy_of("bert/lora-attention");
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    change_tensors(folder.path(), |all| *all = tensors);
    folder
}

/// A random adapter, and the plain one.
fn pair(chance: &mut Chance) -> (TempDir, TempDir, Value) {
    let count = 1 + chance.below(MODULES.len());
    let start = chance.below(MODULES.len());
    let modules: Vec<&(&str, [usize; 2])> = (start..start + count).map(|i| &MODULES[i % MODULES.len()]).collect();
    let names = |end: &str| (0..2).map(|layer| format!("encoder.layer.{layer}.{end}")).collect::<Vec<_>>();
    let all: Vec<String> = modules.iter().flat_map(|(end, _)| names(end)).collect();
    let (rank, alpha) = (1 + chance.below(4), 1 + chance.below(9));
    let (ranks, alphas) = (patterns(chance, &all), patterns(chance, &all));
    let by_root = chance.below(2) == 1;
    let (mut tensors, mut plain, mut spelled) = (Tensors::new(), Tensors::new(), Map::new());
    for (end, [outputs, inputs]) in modules {
        for name in names(end) {
            let (r, alpha) = (first(&ranks, &name, rank), first(&alphas, &name, alpha) as f32);
            let scale = if by_root { alpha / (r as f32).sqrt() } else { alpha / r as f32 };
            let a: Vec<f32> = (0..r * inputs).map(|_| 0.3 * chance.float()).collect();
            let b: Vec<f32> = (0..outputs * r).map(|_| 0.3 * chance.float()).collect();
            let scaled: Vec<f32> = b.iter().map(|x| x * scale).collect();
            let (a, b, scaled) = (
                Stored::f32(vec![r, *inputs], &a),
                Stored::f32(vec![*outputs, r], &b),
                Stored::f32(vec![*outputs, r], &scaled),
            );
            tensors.insert(format!("base_model.model.{name}.lora_A.weight"), a.clone());
            tensors.insert(format!("base_model.model.{name}.lora_B.weight"), b);
            plain.insert(format!("base_model.model.{name}.lora_A.weight"), a);
            plain.insert(format!("base_model.model.{name}.lora_B.weight"), scaled);
            spelled.insert(name, json!(r));
        }
    }
    let targets = match chance.below(4) {
        0 => Value::Null,
        1 => json!("all-linear"),
        2 => json!(format!(".*({})", all.join("|").replace('.', "\\."))),
        _ => json!(all),
    };
    let map = |patterns: &[(String, usize)]| -> Map<String, Value> {
        patterns.iter().map(|(pattern, value)| (pattern.clone(), json!(value))).collect()
    };
    let mut keys = vec![
        ("peft_type", json!("LORA")),
        ("r", json!(rank)),
        ("lora_alpha", if chance.below(2) == 1 { json!(alpha) } else { json!(alpha as f64) }),
        ("use_rslora", json!(by_root)),
        ("rank_pattern", json!(map(&ranks))),
        ("alpha_pattern", json!(map(&alphas))),
        ("target_modules", targets),
        ("lora_dropout", json!(0.1)),
        ("bias", json!("none")),
        ("a_key_of_next_year", Value::Null),
        ("init_lora_weights", chance.one(&[json!(true), json!(false), json!("gaussian"), json!("eva")]).clone()),
    ];
    let mut config = Map::new();
    while !keys.is_empty() {
        let (key, value) = keys.swap_remove(chance.below(keys.len()));
        config.insert(key.into(), value);
    }
    let config = Value::Object(config);
    // alpha / r is 1 where alpha_pattern is rank_pattern.
    let spelled =
        json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "rank_pattern": spelled, "alpha_pattern": spelled});
    (folder(&config, tensors), folder(&spelled, plain), config)
}

#[tokio::test]
async fn any_valid_configuration_means_what_it_says() {
    let texts = texts(&read("bert/golden.json"));
    let mut chance = Chance::new(2026);
    for case in 0..60 {
        let (random, plain, config) = pair(&mut chance);
        let adapters = [("random", &random), ("plain", &plain)];
        let adapters = adapters.map(|(name, folder)| format!("{name}={}", folder.path().display()));
        let door = Door::open(&[named("base", "bert/base")], &adapters, &[]);
        let (ours, meant) = (door.vectors("random", &texts[..4]).await, door.vectors("plain", &texts[..4]).await);
        assert!(gap(&ours, &meant) <= 1e-5, "case {case}: {config}");
        assert!(gap(&ours, &door.vectors("base", &texts[..4]).await) > 1e-3, "case {case}: {config}");
    }
}
