//! A sentence-transformers folder: what its modules.json lists, or what is made of a folder without one.

use super::pipeline::{Dense, Pipeline, Step};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::Pooling;
use candle_core::Device;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::sync::Arc;

/// A folder's modules: where its body lies, and what follows it.
pub struct Modules {
    /// The folder of the body's files.
    pub folder: Folder,
    /// What the body is.
    pub body: Body,
    /// What follows.
    pub pipeline: Pipeline,
}

/// What gives the hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// A transformer, as its config.json describes it.
    Transformer,
    /// A row a token and nothing more (sentence-transformers' `StaticEmbedding`, model2vec).
    Static,
}

impl Modules {
    /// As the folder's modules.json says; none where it has no such file.
    pub fn of(folder: &Folder, device: &Device) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Module {
            #[serde(rename = "type")]
            class: String,
            path: String,
        }
        let Some(modules) = folder.json::<Vec<Module>>("modules.json")? else { return Ok(None) };
        let fail = |reason: String| Error::load(folder.path().join("modules.json"), reason);
        let (mut body, mut pipeline) = (None, Pipeline { poolings: Vec::new(), steps: Vec::new() });
        for Module { class, path } in &modules {
            let pooled = !pipeline.poolings.is_empty();
            match class.rsplit('.').next().unwrap_or_default() {
                "Transformer" if body.is_none() => body = Some((folder.subfolder(path)?, Body::Transformer)),
                "StaticEmbedding" if body.is_none() => {
                    body = Some((folder.subfolder(path)?, Body::Static));
                    pipeline.poolings = vec![Pooling::Mean];
                }
                "Pooling" if body.is_some() && !pooled => pipeline.poolings = poolings(&folder.subfolder(path)?)?,
                "Dense" if pooled => {
                    let dense = Dense::load(&folder.subfolder(path)?, device)?;
                    pipeline.steps.push(Step::Dense(Arc::new(dense)));
                }
                "Normalize" if pooled => pipeline.steps.push(Step::Normalize),
                "Dropout" => {}
                _ => {
                    let known = "understood: Transformer and Pooling, or StaticEmbedding, then Dense and Normalize";
                    return Err(fail(format!("module '{class}' (path '{path}') is not supported here; {known}")));
                }
            }
        }
        match body {
            Some((folder, body)) if !pipeline.poolings.is_empty() => Ok(Some(Self { folder, body, pipeline })),
            _ => Err(fail("it must list a Transformer and a Pooling module, or a StaticEmbedding".into())),
        }
    }

    /// What sentence-transformers makes of a folder without modules.json: mean pooling, or the last token of a causal
    /// language model. Where it would apply a chat template, the folder is refused.
    pub fn bare(folder: &Folder) -> Result<Self> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            architectures: Vec<String>,
            is_causal: Option<bool>,
        }
        let config: Config = folder.require_json("config.json")?;
        let tokenizer: Map<String, Value> = folder.json("tokenizer_config.json")?.unwrap_or_default();
        if tokenizer.contains_key("chat_template") || folder.file("chat_template.jinja")?.is_some() {
            let reason = "it has a chat template and no modules.json, so texts would be read as chat messages, which is \
                          not supported; save it with sentence-transformers";
            return Err(Error::load(folder.path().join("modules.json"), reason));
        }
        let generates = config.architectures.first().is_some_and(|name| name.ends_with("ForCausalLM"));
        let pooling = if generates && config.is_causal != Some(false) { Pooling::LastToken } else { Pooling::Mean };
        let pipeline = Pipeline { poolings: vec![pooling], steps: Vec::new() };
        Ok(Self { folder: folder.clone(), body: Body::Transformer, pipeline })
    }
}

const MODES: [(&str, &str, Pooling); 6] = [
    ("cls", "pooling_mode_cls_token", Pooling::Cls),
    ("max", "pooling_mode_max_tokens", Pooling::Max),
    ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
    ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
    ("weightedmean", "pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
    ("lasttoken", "pooling_mode_lasttoken", Pooling::LastToken),
];

/// The modes of a Pooling module, in the order of concatenation. Since sentence-transformers 5.4 that is the order in
/// which `pooling_mode` names them; the older flags have a fixed one.
fn poolings(folder: &Folder) -> Result<Vec<Pooling>> {
    let config: Map<String, Value> = folder.require_json("config.json")?;
    let fail = |reason: String| Error::load(folder.path().join("config.json"), reason);
    if config.get("include_prompt").and_then(Value::as_bool) == Some(false) {
        return Err(fail("include_prompt = false is not supported".into()));
    }
    let named: Vec<&Value> = match config.get("pooling_mode") {
        None => Vec::new(),
        Some(Value::Array(names)) => names.iter().collect(),
        Some(name) => vec![name],
    };
    let chosen = named.into_iter().map(|name| {
        let known = MODES.iter().find(|(mode, ..)| name == mode);
        known.map(|(.., pooling)| *pooling).ok_or_else(|| fail(format!("pooling_mode {name} is not known")))
    });
    let mut chosen: Vec<Pooling> = chosen.collect::<Result<_>>()?;
    if chosen.is_empty() {
        let set = |key: &str| config.get(key).and_then(Value::as_bool) == Some(true);
        chosen.extend(MODES.iter().filter(|(_, key, _)| set(key)).map(|(.., pooling)| *pooling));
    }
    Ok(if chosen.is_empty() { vec![Pooling::Mean] } else { chosen })
}
