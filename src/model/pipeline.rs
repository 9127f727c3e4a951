//! What follows the transformer, as modules.json lists it: pooling, then normalization.

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::{Pooling, pool};
use candle_core::{D, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

/// From hidden states to one vector a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pipeline {
    /// One or more; several are concatenated.
    poolings: Vec<Pooling>,
    /// Whether vectors leave with unit length.
    normalize: bool,
}

impl Default for Pipeline {
    /// Mean pooling and nothing more.
    fn default() -> Self {
        Self { poolings: vec![Pooling::Mean], normalize: false }
    }
}

/// A folder's modules.json: where its transformer lies, and what follows it.
pub struct Modules {
    /// The folder of config.json and the weights.
    pub transformer: Folder,
    /// What follows.
    pub pipeline: Pipeline,
}

impl Modules {
    /// As the folder's modules.json says; none where it has no such file.
    pub fn of(folder: &Folder) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Module {
            #[serde(rename = "type")]
            class: String,
            path: String,
        }
        let Some(modules) = folder.json::<Vec<Module>>("modules.json")? else { return Ok(None) };
        let fail = |reason: String| Error::load(folder.path().join("modules.json"), reason);
        let (mut transformer, mut pipeline) = (None, Pipeline { poolings: Vec::new(), normalize: false });
        for Module { class, path } in &modules {
            match class.rsplit('.').next().unwrap_or_default() {
                "Transformer" if transformer.is_none() => transformer = Some(folder.subfolder(path)?),
                "Pooling" if pipeline.poolings.is_empty() => pipeline.poolings = poolings(&folder.subfolder(path)?)?,
                "Normalize" if !pipeline.poolings.is_empty() => pipeline.normalize = true,
                "Dropout" => {}
                _ => {
                    let known = "understood: Transformer, Pooling, Normalize, in this order";
                    return Err(fail(format!("module '{class}' (path '{path}') is not supported here; {known}")));
                }
            }
        }
        match transformer {
            Some(transformer) if !pipeline.poolings.is_empty() => Ok(Some(Self { transformer, pipeline })),
            _ => Err(fail("it must list a Transformer and a Pooling module".into())),
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
        let pipeline = Pipeline { poolings: vec![pooling], normalize: false };
        Ok(Self { transformer: folder.clone(), pipeline })
    }
}

impl Pipeline {
    /// Width of its vectors over hidden states of `hidden`.
    pub fn dimension(&self, hidden: usize) -> usize {
        self.poolings.len() * hidden
    }

    /// `hidden [tokens, hidden]` and the sequences' offsets -> `[sequences, dimension]`.
    pub fn forward(&self, hidden: &Tensor, offsets: &[usize]) -> Result<Tensor> {
        let pooled: Vec<Tensor> =
            self.poolings.iter().map(|mode| pool(hidden, offsets, *mode)).collect::<candle_core::Result<_>>()?;
        let pooled = Tensor::cat(&pooled, 1)?;
        if !self.normalize {
            return Ok(pooled);
        }
        // torch.nn.functional.normalize divides by the larger of the norm and 1e-12.
        let lengths = pooled.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
        Ok(pooled.broadcast_div(&lengths)?)
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
