//! adapter_config.json: what it says, and the refusal of what is not understood.

use crate::error::{Error, Result};
use crate::folder::{Folder, says_nothing, typed};
use crate::model::canonical;
use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The name of the file.
const FILE: &str = "adapter_config.json";

/// A LoRA configuration (PEFT's `LoraConfig`) that this server reproduces.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    /// `base_model_name_or_path`: a Hub id, or a path on the trainer's machine.
    pub base: Option<String>,
    rank: usize,
    alpha: f64,
    rslora: bool,
    /// `lora_bias`: whether the second half of each update has a bias.
    pub has_bias: bool,
    /// `use_dora`: whether each update has lengths of its own.
    pub is_dora: bool,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    targets: Option<Targets>,
}

/// `target_modules`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum Targets {
    /// A regular expression over whole module names, or "all-linear".
    One(String),
    /// Module names or their last parts.
    List(Vec<String>),
}

/// Keys whose value changes nothing here once the adapter is trained.
const INERT: [&str; 14] = [
    "auto_mapping",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Initializations that leave the base as it is.
const PLAIN_INITIALIZATIONS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

#[derive(Deserialize)]
struct File {
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    rank_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    target_modules: Option<Targets>,
    #[serde(default)]
    init_lora_weights: Value,
    #[serde(default)]
    bias: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Config {
    /// Whether the folder holds a PEFT checkpoint.
    pub fn is_in(folder: &Folder) -> Result<bool> {
        Ok(folder.file(FILE)?.is_some())
    }

    /// Reads the folder's adapter_config.json.
    pub fn of(folder: &Folder) -> Result<Self> {
        let path = folder.require(FILE)?;
        let fail = |reason: String| Error::load(&path, reason);
        let content: Value = folder.require_json(FILE)?;
        match content["peft_type"].as_str() {
            Some("LORA") => {}
            Some(other) => return Err(fail(format!("peft_type '{other}' is not supported; supported: LORA"))),
            None => return Err(fail("peft_type is missing".into())),
        }
        let file: File = typed(content).map_err(fail)?;
        refuse_unknown(&file).map_err(fail)?;
        if file.lora_bias && file.use_dora {
            return Err(fail("lora_bias with use_dora is not supported".into()));
        }
        if file.r == 0 {
            return Err(fail("r must be at least 1".into()));
        }
        Ok(Self {
            base: file.base_model_name_or_path.filter(|base| !base.is_empty()),
            rank: file.r,
            alpha: file.lora_alpha,
            rslora: file.use_rslora,
            has_bias: file.lora_bias,
            is_dora: file.use_dora,
            rank_pattern: patterns("rank_pattern", file.rank_pattern).map_err(fail)?,
            alpha_pattern: patterns("alpha_pattern", file.alpha_pattern).map_err(fail)?,
            targets: file.target_modules,
            path,
        })
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The rank that it gives a module: the first pattern, in file order, that matches its name; else `r`.
    pub fn rank(&self, module: &str) -> usize {
        first_match(&self.rank_pattern, module).map_or(self.rank, |rank| rank as usize)
    }

    /// The factor on a module's update: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732).
    pub fn scale(&self, module: &str) -> f64 {
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = self.rank(module) as f64;
        if self.rslora { alpha / rank.sqrt() } else { alpha / rank }
    }

    /// Checks `target_modules` against the modules that have tensors: one outside it, or an entry that fits modules of
    /// the base and has tensors for none of them, means that half an adapter is here.
    /// `trained` has each module's canonical name, see [`canonical`], and the trainer's; the others are canonical.
    pub fn check_targets(&self, trained: &[(&str, &str)], in_base: &[&str], nested_as: &str) -> Result<()> {
        let fail = |reason: String| Err(Error::load(&self.path, reason));
        let entries: Vec<String> = match &self.targets {
            None => return Ok(()),
            Some(Targets::One(all)) if all == "all-linear" => return Ok(()),
            Some(Targets::One(pattern)) => {
                let whole = Regex::new(&format!("^(?:{pattern})$"));
                let whole = whole.map_err(|e| Error::load(&self.path, format!("target_modules: {e}")))?;
                return match trained.iter().find(|(_, named)| !whole.is_match(named).unwrap_or(false)) {
                    Some((_, module)) => {
                        fail(format!("module '{module}' has tensors, but target_modules '{pattern}' excludes it"))
                    }
                    None => Ok(()),
                };
            }
            Some(Targets::List(entries)) => entries.iter().map(|entry| canonical(entry, nested_as)).collect(),
        };
        let fits = |module: &str, entry: &str| module == entry || module.ends_with(&format!(".{entry}"));
        if let Some((module, _)) = trained.iter().find(|(module, _)| !entries.iter().any(|entry| fits(module, entry))) {
            return fail(format!("module '{module}' has tensors, but target_modules does not name it"));
        }
        let lost = entries.iter().find(|entry| {
            in_base.iter().any(|module| fits(module, entry)) && !trained.iter().any(|(module, _)| fits(module, entry))
        });
        match lost {
            Some(entry) => {
                fail(format!("target_modules names '{entry}', but no tensor of the checkpoint belongs to it"))
            }
            None => Ok(()),
        }
    }

    /// The adapter in words: its kind, rank and scale.
    pub fn summary(&self) -> String {
        let patterns = match (self.rank_pattern.as_slice(), self.alpha_pattern.as_slice()) {
            ([], []) => "",
            _ => ", others for some modules",
        };
        format!("LORA r={} scale={}{patterns}", self.rank(""), self.scale(""))
    }
}

/// A key that is not known may be there only where it says nothing.
fn refuse_unknown(file: &File) -> std::result::Result<(), String> {
    for (key, value) in &file.rest {
        if !INERT.contains(&key.as_str()) && !says_nothing(value) {
            return Err(format!("{key} = {value} is not supported"));
        }
    }
    match file.bias.as_deref() {
        None | Some("none") => {}
        Some(other) => return Err(format!("bias = \"{other}\" is not supported")),
    }
    match &file.init_lora_weights {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::String(name) if PLAIN_INITIALIZATIONS.contains(&name.to_lowercase().as_str()) => Ok(()),
        other => Err(format!(
            "init_lora_weights = {other} changes the base weights, which is not supported; save the adapter with \
             PEFT's path_initial_model_for_weight_conversion"
        )),
    }
}

fn patterns(key: &str, map: Option<Map<String, Value>>) -> std::result::Result<Vec<(Regex, f64)>, String> {
    let entries = map.unwrap_or_default().into_iter().map(|(pattern, value)| {
        let regex = Regex::new(&format!("^(?:.*\\.)?(?:{pattern})$")).map_err(|e| format!("{key} '{pattern}': {e}"))?;
        match value.as_f64() {
            Some(number) if number > 0.0 => Ok((regex, number)),
            _ => Err(format!("{key} '{pattern}': expected a positive number, found {value}")),
        }
    });
    entries.collect()
}

fn first_match(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(regex, _)| regex.is_match(module).unwrap_or(false)).map(|(_, value)| *value)
}
