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
pub mod tokenizers;

use super::spec::{Activation, Norm, NormKind, Spec, Table};
use crate::error::{Error, Result};
use crate::folder::{Folder, typed};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A family's configuration: the keys of config.json that it understands.
trait Family: DeserializeOwned {
    /// Whether it reads `is_causal`.
    const MAY_BE_CAUSAL: bool = false;
    /// Whether it stands for the code that comes with its checkpoints.
    const IS_REMOTE: bool = false;

    /// What they mean; an error names the key that is not supported.
    fn spec(self) -> std::result::Result<Spec, String>;
}

/// What tells an architecture.
struct Entry {
    model_type: &'static str,
    /// Where several share a `model_type`: what else config.json says. The first entry that fits is taken.
    marked: fn(&Value) -> bool,
    is_remote: bool,
    read: fn(Value) -> std::result::Result<Spec, String>,
}

const fn entry<F: Family>(model_type: &'static str) -> Entry {
    marked::<F>(model_type, |_| true)
}

const fn marked<F: Family>(model_type: &'static str, marked: fn(&Value) -> bool) -> Entry {
    Entry { model_type, marked, is_remote: F::IS_REMOTE, read: read::<F> }
}

/// All that are known, by `model_type`; where several share one, those that are marked come first.
const FAMILIES: &[Entry] = &[
    entry::<albert::Config>("albert"),
    marked::<jina_v2::Code>("bert", |config| {
        let origin = [&config["_name_or_path"], &config["auto_map"]["AutoModel"], &config["auto_map"]["AutoConfig"]];
        let code = origin.iter().any(|name| name.as_str().is_some_and(|name| name.contains("qk-post-norm")));
        config["position_embedding_type"] == "alibi" && code
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
    let mut config: Value = folder.require_json("config.json")?;
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(config) = config.as_object_mut() {
        config.values_mut().for_each(bound);
    }
    let Some(entry) = FAMILIES.iter().find(|entry| entry.model_type == model_type && (entry.marked)(&config)) else {
        let mut known: Vec<&str> = FAMILIES.iter().map(|entry| entry.model_type).collect();
        known.dedup();
        return Err(Error::load(path, format!("model_type '{model_type}' is not known; known: {}", known.join(", "))));
    };
    if let (Some(code), false) = (config["auto_map"]["AutoModel"].as_str(), entry.is_remote) {
        tracing::warn!(file = %path.display(), code, "code of the model's own is not run; it is read as '{model_type}'");
    }
    (entry.read)(config).map_err(|reason| Error::load(path, reason))
}

/// No size is that large, and products of sizes that are not stay within 64 bits.
fn bound(value: &mut Value) {
    const LARGEST: u64 = i32::MAX as u64;
    if value.as_u64().is_some_and(|number| number > LARGEST) {
        *value = LARGEST.into();
    }
}

/// Refuses what would change any architecture's vectors and none here reads.
fn refuse_unread(config: &Value, may_be_causal: bool) -> std::result::Result<(), String> {
    let whole = config["partial_rotary_factor"].as_f64().is_none_or(|share| share == 1.0);
    for (key, fine) in [
        ("is_causal", may_be_causal || config["is_causal"] != true),
        ("is_decoder", config["is_decoder"] != true),
        ("quantization_config", config["quantization_config"].is_null()),
        ("partial_rotary_factor", whole),
    ] {
        if !fine {
            return Err(format!("{key} = {} is not supported", config[key]));
        }
    }
    Ok(())
}

fn read<F: Family>(config: Value) -> std::result::Result<Spec, String> {
    refuse_unread(&config, F::MAY_BE_CAUSAL)?;
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

/// Which of so many layers slide, as `layer_types` says, else as `default` does.
fn sliding(
    types: Option<&Vec<String>>,
    layers: usize,
    default: impl Fn(usize) -> bool,
) -> std::result::Result<Vec<bool>, String> {
    let Some(types) = types else { return Ok((0..layers).map(default).collect()) };
    if types.len() != layers {
        return Err(format!("layer_types names {} layers, there are {layers}", types.len()));
    }
    let slides = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(format!("layer_types '{other}' is not supported")),
    };
    types.iter().map(slides).collect()
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
