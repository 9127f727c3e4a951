//! What follows the transformer, as modules.json lists it: pooling, then normalization.

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::{Pooling, pool};
use candle_core::{D, Tensor};
use serde::Deserialize;

/// From hidden states to one vector a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pipeline {
    /// One or more; several are concatenated.
    poolings: Vec<Pooling>,
    /// Whether vectors leave with unit length.
    normalize: bool,
}

impl Default for Pipeline {
    /// What sentence-transformers gives a folder without modules.json: mean pooling.
    fn default() -> Self {
        Self { poolings: vec![Pooling::Mean], normalize: false }
    }
}

impl Pipeline {
    /// As the folder's modules.json says; none where it has no such file.
    pub fn of(folder: &Folder) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Module {
            #[serde(rename = "type")]
            class: String,
            path: String,
        }
        let Some(modules) = folder.json::<Vec<Module>>("modules.json")? else { return Ok(None) };
        let mut pipeline = Self { poolings: Vec::new(), normalize: false };
        for module in &modules {
            let class = module.class.rsplit('.').next().unwrap_or_default();
            match class {
                "Transformer" if module.path.is_empty() || module.path.starts_with("0_") => {}
                "Pooling" if pipeline.poolings.is_empty() => pipeline.poolings = poolings(folder, &module.path)?,
                "Normalize" if !pipeline.poolings.is_empty() => pipeline.normalize = true,
                "Dropout" => {}
                _ => {
                    let known = "understood: Transformer, Pooling, Normalize, in this order";
                    let reason =
                        format!("module '{}' (path '{}') is not supported here; {known}", module.class, module.path);
                    return Err(Error::load(folder.path().join("modules.json"), reason));
                }
            }
        }
        if pipeline.poolings.is_empty() {
            return Err(Error::load(folder.path().join("modules.json"), "it lists no Pooling module"));
        }
        Ok(Some(pipeline))
    }

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

/// The modes of a Pooling module, in either spelling of its configuration (before and after
/// sentence-transformers 5.4), in the order of concatenation.
fn poolings(folder: &Folder, path: &str) -> Result<Vec<Pooling>> {
    const MODES: [(&str, &str, Pooling); 6] = [
        ("cls", "pooling_mode_cls_token", Pooling::Cls),
        ("max", "pooling_mode_max_tokens", Pooling::Max),
        ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("weightedmean", "pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
        ("lasttoken", "pooling_mode_lasttoken", Pooling::LastToken),
    ];
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    let name = format!("{path}/config.json");
    let config: serde_json::Map<String, serde_json::Value> = folder.require_json(&name)?;
    let fail = |reason: String| Error::load(folder.path().join(&name), reason);
    if config.get("include_prompt").and_then(|v| v.as_bool()) == Some(false) {
        return Err(fail("include_prompt = false is not supported".into()));
    }
    let named = match config.get("pooling_mode") {
        None => Vec::new(),
        Some(value) => match serde_json::from_value(value.clone()) {
            Ok(OneOrMore::One(name)) => vec![name],
            Ok(OneOrMore::More(names)) => names,
            Err(_) => return Err(fail("pooling_mode: expected a string or a list of strings".into())),
        },
    };
    if let Some(unknown) = named.iter().find(|name| !MODES.iter().any(|(mode, ..)| mode == name)) {
        return Err(fail(format!("pooling_mode '{unknown}' is not known")));
    }
    let set = |key: &str| config.get(key).and_then(|v| v.as_bool()) == Some(true);
    let chosen =
        MODES.iter().filter(|(mode, key, _)| named.iter().any(|n| n == mode) || (named.is_empty() && set(key)));
    let chosen: Vec<Pooling> = chosen.map(|(.., pooling)| *pooling).collect();
    Ok(if chosen.is_empty() { vec![Pooling::Mean] } else { chosen })
}
