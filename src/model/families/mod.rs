//! Architectures: each file turns one family's config.json into a [`Spec`]. Nothing after this asks which it was.

mod bert;
mod distilbert;
mod mpnet;
mod post_norm;
mod qwen3;
mod roberta;

use super::spec::{Activation, Norm, NormKind, Spec, Table};
use crate::error::{Error, Result};
use crate::folder::{Folder, typed};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A family's configuration: the keys of config.json that it understands.
trait Family: DeserializeOwned {
    /// What they mean; an error names the key that is not supported.
    fn spec(self) -> std::result::Result<Spec, String>;
}

type Reader = fn(Value) -> std::result::Result<Spec, String>;

/// By `model_type`.
const FAMILIES: [(&str, Reader); 7] = [
    ("bert", read::<bert::Config>),
    ("camembert", read::<roberta::Config>),
    ("distilbert", read::<distilbert::Config>),
    ("mpnet", read::<mpnet::Config>),
    ("qwen3", read::<qwen3::Config>),
    ("roberta", read::<roberta::Config>),
    ("xlm-roberta", read::<roberta::Config>),
];

/// The spec that a folder's config.json describes.
pub fn spec(folder: &Folder) -> Result<Spec> {
    let path = folder.require("config.json")?;
    let config: Value = folder.require_json("config.json")?;
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        return Err(Error::load(path, format!("model_type '{model_type}' is not known; known: {}", known.join(", "))));
    };
    read(config).map_err(|reason| Error::load(path, reason))
}

fn read<F: Family>(config: Value) -> std::result::Result<Spec, String> {
    let spec = typed::<F>(config)?.spec()?;
    spec.check()?;
    Ok(spec)
}

fn activation(key: &str, name: &str) -> std::result::Result<Activation, String> {
    Activation::parse(name).ok_or_else(|| format!("{key} '{name}' is not supported"))
}

fn layer_norm(path: impl Into<String>, eps: f64) -> Norm {
    Norm { path: path.into(), kind: NormKind::Layer, bias: true, eps }
}

fn rms_norm(path: impl Into<String>, eps: f64) -> Norm {
    Norm { path: path.into(), kind: NormKind::Rms, bias: false, eps }
}

fn table(path: &str, rows: usize) -> Table {
    Table { path: path.into(), rows }
}
