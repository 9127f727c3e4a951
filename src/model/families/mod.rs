//! Architectures: each file turns one family's config.json into a [`Spec`]. Nothing after this asks which it was.

mod albert;
mod bert;
mod deberta;
mod decoder;
mod distilbert;
mod eurobert;
mod gemma3;
mod gte;
mod jina_v2;
mod jina_v3;
mod llama;
mod mistral;
mod modernbert;
mod mpnet;
mod nomic;
mod post_norm;
mod qwen;
mod roberta;
mod rope;
mod rotary_bert;
mod t5;

use super::spec::{Activation, Norm, NormKind, Spec, Table};
use crate::error::{Error, Result};
use crate::folder::{Folder, typed};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A family's configuration: the keys of config.json that it understands.
trait Family: DeserializeOwned {
    /// What they mean; an error names the key that is not supported.
    fn spec(self) -> std::result::Result<Spec, String>;
}

/// What tells an architecture.
struct Entry {
    model_type: &'static str,
    /// Where several share a `model_type`: what else config.json says. The first entry that fits is taken.
    marked: fn(&Value) -> bool,
    read: fn(Value) -> std::result::Result<Spec, String>,
}

const fn entry<F: Family>(model_type: &'static str) -> Entry {
    marked::<F>(model_type, |_| true)
}

const fn marked<F: Family>(model_type: &'static str, marked: fn(&Value) -> bool) -> Entry {
    Entry { model_type, marked, read: read::<F> }
}

/// All that are known, by `model_type`; where several share one, those that are marked come first.
const FAMILIES: &[Entry] = &[
    entry::<albert::Config>("albert"),
    marked::<jina_v2::Code>("bert", |config| {
        config["position_embedding_type"] == "alibi" && config.to_string().contains("jina-bert-v2-qk-post-norm")
    }),
    marked::<jina_v2::Config>("bert", |config| config["position_embedding_type"] == "alibi"),
    entry::<bert::Config>("bert"),
    entry::<roberta::Config>("camembert"),
    entry::<deberta::Deberta>("deberta"),
    entry::<deberta::DebertaV2>("deberta-v2"),
    entry::<distilbert::Config>("distilbert"),
    entry::<eurobert::Config>("eurobert"),
    entry::<gemma3::Config>("gemma3_text"),
    marked::<gte::Remote>("gte", |config| config.get("pack_qkv").is_some()),
    entry::<gte::Native>("gte"),
    entry::<jina_v3::Native>("jina_embeddings_v3"),
    entry::<llama::Config>("llama"),
    entry::<llama::Config>("llama_bidirec"),
    entry::<mistral::Config>("mistral"),
    entry::<modernbert::Config>("modernbert"),
    entry::<mpnet::Config>("mpnet"),
    entry::<gte::Remote>("new"),
    marked::<nomic::Remote>("nomic_bert", |config| config.get("n_embd").is_some()),
    entry::<nomic::Native>("nomic_bert"),
    entry::<qwen::Qwen2>("qwen2"),
    entry::<qwen::Qwen3>("qwen3"),
    entry::<roberta::Config>("roberta"),
    entry::<t5::Config>("t5"),
    marked::<jina_v3::Remote>("xlm-roberta", |config| config["position_embedding_type"] == "rotary"),
    entry::<roberta::Config>("xlm-roberta"),
];

/// The spec that a folder's config.json describes.
pub fn spec(folder: &Folder) -> Result<Spec> {
    let path = folder.require("config.json")?;
    let config: Value = folder.require_json("config.json")?;
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(entry) = FAMILIES.iter().find(|entry| entry.model_type == model_type && (entry.marked)(&config)) else {
        let mut known: Vec<&str> = FAMILIES.iter().map(|entry| entry.model_type).collect();
        known.dedup();
        return Err(Error::load(path, format!("model_type '{model_type}' is not known; known: {}", known.join(", "))));
    };
    (entry.read)(config).map_err(|reason| Error::load(path, reason))
}

fn read<F: Family>(config: Value) -> std::result::Result<Spec, String> {
    let spec = typed::<F>(config)?.spec()?;
    spec.check()?;
    Ok(spec)
}

/// Refuses keys that are there with another value than the one that is supported.
fn require(keys: &Map<String, Value>, supported: &[(&str, Value)]) -> std::result::Result<(), String> {
    let differs = |(key, value): &&(&str, Value)| keys.get(*key).is_some_and(|found| found != value);
    match supported.iter().find(differs) {
        Some((key, value)) => Err(format!("{key} = {} is not supported, only {value}", keys[*key])),
        None => Ok(()),
    }
}

fn activation(key: &str, name: &str) -> std::result::Result<Activation, String> {
    Activation::parse(name).ok_or_else(|| format!("{key} '{name}' is not supported"))
}

fn layer_norm(path: impl Into<String>, eps: f64) -> Norm {
    Norm { path: path.into(), kind: NormKind::Layer, bias: true, eps, less_one: false }
}

fn rms_norm(path: impl Into<String>, eps: f64) -> Norm {
    Norm { path: path.into(), kind: NormKind::Rms, bias: false, eps, less_one: false }
}

fn table(path: &str, rows: usize) -> Table {
    Table { path: path.into(), rows }
}
