//! sentence-transformers' `Pooling`: one vector of a sequence's tokens, in both spellings of its configuration.

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::{Pooling, Tensor, pool};
use serde_json::{Map, Value};

/// One or more modes, concatenated.
#[derive(Clone, Debug, PartialEq)]
pub struct Poolings {
    modes: Vec<Pooling>,
    /// Whether a prompt's tokens count.
    pub include_prompt: bool,
}

const MODES: [(&str, &str, Pooling); 6] = [
    ("cls", "pooling_mode_cls_token", Pooling::Cls),
    ("max", "pooling_mode_max_tokens", Pooling::Max),
    ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
    ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
    ("weightedmean", "pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
    ("lasttoken", "pooling_mode_lasttoken", Pooling::LastToken),
];

/// Keys that change nothing here.
const INERT: [&str; 2] = ["word_embedding_dimension", "embedding_dimension"];

impl Default for Poolings {
    /// The mean, as sentence-transformers pools where nothing is said.
    fn default() -> Self {
        Self::one(Pooling::Mean)
    }
}

impl Poolings {
    /// A single mode.
    pub fn one(mode: Pooling) -> Self {
        Self { modes: vec![mode], include_prompt: true }
    }

    /// A module's. Since sentence-transformers 5.4 the order of concatenation is that in which `pooling_mode` names the
    /// modes; the older flags have a fixed one, and do not count beside it.
    pub fn load(folder: &Folder) -> Result<Self> {
        let config: Map<String, Value> = folder.require_json("config.json")?;
        let fail = |reason: String| Error::load(folder.path().join("config.json"), reason);
        let (mut flagged, mut named, mut include_prompt) = (Vec::new(), None, true);
        for (key, value) in &config {
            let flag = MODES.iter().find(|(_, flag, _)| flag == key).map(|(.., mode)| *mode);
            match (key.as_str(), value, flag) {
                (_, Value::Bool(false), Some(_)) => {}
                (_, Value::Bool(true), Some(mode)) => flagged.push(mode),
                ("include_prompt", Value::Bool(include), _) => include_prompt = *include,
                ("pooling_mode", Value::Array(names), _) if !names.is_empty() => named = Some(names.as_slice()),
                ("pooling_mode", Value::String(_), _) => named = Some(std::slice::from_ref(value)),
                _ if INERT.contains(&key.as_str()) => {}
                _ => return Err(fail(format!("{key} = {value} is not supported"))),
            }
        }
        let mode = |name: &Value| {
            let known = MODES.iter().find(|(mode, ..)| name == mode);
            known.map(|(.., mode)| *mode).ok_or_else(|| fail(format!("pooling_mode {name} is not known")))
        };
        let modes = match named {
            Some(names) => names.iter().map(mode).collect::<Result<_>>()?,
            None if flagged.is_empty() => vec![Pooling::Mean],
            None => MODES.iter().map(|(.., mode)| *mode).filter(|mode| flagged.contains(mode)).collect(),
        };
        Ok(Self { modes, include_prompt })
    }

    /// How many modes.
    pub fn count(&self) -> usize {
        self.modes.len()
    }

    /// `tokens [tokens, width]`, the sequences' offsets and prompts -> `[sequences, modes * width]`.
    pub fn forward(&self, tokens: &Tensor, offsets: &[usize], prompts: &[usize]) -> Result<Tensor> {
        let left_out = if self.include_prompt { &[] } else { prompts };
        let pooled = self.modes.iter().map(|mode| pool(tokens, offsets, left_out, *mode));
        Tensor::joined(&pooled.collect::<Result<Vec<_>>>()?.iter().collect::<Vec<_>>(), 1)
    }
}
