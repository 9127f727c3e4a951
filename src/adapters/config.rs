//! adapter_config.json: what it says, and the refusal of what is not understood.

use super::keys::{Keys, Reading};
use super::methods::{self, Method};
use super::targets::Targets;
use crate::error::{Error, Result};
use crate::folder::Folder;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The name of the file.
const FILE: &str = "adapter_config.json";

/// What a PEFT checkpoint is.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    /// `base_model_name_or_path`: a Hub id, or a path on the trainer's machine.
    pub base: Option<String>,
    /// `peft_type`.
    pub(super) kind: &'static str,
    pub(super) method: Box<dyn Method>,
    pub(super) targets: Targets,
    pub(super) biases: Biases,
    /// `layer_replication`: ranges of the base's blocks, first and one past the last, that the adapter's model has
    /// instead of them; empty: the base's own.
    pub blocks: Vec<(usize, usize)>,
    /// `trainable_token_indices` by the embedding's name, or of the only one.
    pub(super) tokens: Vec<(Option<String>, Vec<u32>)>,
}

/// Which of the base's biases the adapter holds (`bias`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Biases {
    /// None.
    None,
    /// Those of the modules that it changes.
    Changed,
    /// All.
    All,
}

/// Keys of every type that change nothing here once the adapter is trained. Modules whose weights lie transposed
/// (`fan_in_fan_out`) are in no model that is served; PEFT itself sets the key to false for all others.
const INERT: [&str; 9] = [
    "auto_mapping",
    "fan_in_fan_out",
    "inference_mode",
    "megatron_core",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
];

impl Config {
    /// Whether the folder holds a PEFT checkpoint.
    pub fn is_in(folder: &Folder) -> Result<bool> {
        Ok(folder.file(FILE)?.is_some())
    }

    /// Reads the folder's adapter_config.json.
    pub fn of(folder: &Folder) -> Result<Self> {
        let path = folder.require(FILE)?;
        let content: Map<String, Value> = folder.require_json(FILE)?;
        Self::read(path.clone(), Keys::new(content)).map_err(|reason| Error::load(path, reason))
    }

    fn read(path: PathBuf, mut keys: Keys) -> Reading<Self> {
        let named: Option<String> = keys.take("peft_type")?;
        let (kind, read) = methods::find(&named.ok_or("peft_type is missing")?)?;
        let config = Self {
            path,
            base: keys.take::<String>("base_model_name_or_path")?.filter(|base| !base.is_empty()),
            kind,
            blocks: keys.or("layer_replication", Vec::new())?,
            tokens: tokens(&mut keys, kind)?,
            method: read(&mut keys)?,
            targets: Targets::read(&mut keys)?,
            biases: biases(&mut keys)?,
        };
        keys.leave(&INERT);
        keys.finish()?;
        Ok(config)
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens whose rows it trains in the embedding at a path.
    pub(super) fn tokens_of(&self, path: &str) -> Option<&[u32]> {
        let fits = |name: &Option<String>| name.as_deref().is_none_or(|name| is_called(path, name));
        self.tokens.iter().find(|(name, _)| fits(name)).map(|(_, ids)| ids.as_slice())
    }

    /// Fails where tokens of an embedding are trained, and none of these paths is that embedding's.
    /// The error is that embedding's name, where it has one, and what names it.
    pub(super) fn require_tokens(&self, paths: &[&str]) -> std::result::Result<(), (Option<String>, String)> {
        let fits = |name: &Option<String>, path: &&str| name.as_deref().is_none_or(|name| is_called(path, name));
        match self.tokens.iter().find(|(name, _)| !paths.iter().any(|path| fits(name, path))) {
            Some((Some(name), _)) => Err((Some(name.clone()), format!("trainable_token_indices names '{name}'"))),
            Some((None, _)) => Err((None, "trainable_token_indices or token_indices names tokens".into())),
            None => Ok(()),
        }
    }

    /// Its type, rank and scale in a few words.
    pub fn summary(&self) -> String {
        format!("{} {}", self.kind, self.method.summary()).trim_end().to_owned()
    }
}

/// Some types call the biases of what they change after themselves.
fn biases(keys: &mut Keys) -> Reading<Biases> {
    match keys.take::<String>("bias")?.as_deref() {
        None | Some("none") => Ok(Biases::None),
        Some("all") => Ok(Biases::All),
        Some("lora_only" | "boft_only" | "oft_only" | "hra_only" | "vera_only") => Ok(Biases::Changed),
        Some(other) => Err(format!("bias = \"{other}\" is not supported; none, all and lora_only or its like are")),
    }
}

/// `trainable_token_indices` of LoRA, or `token_indices` with their modules of an adapter of tokens alone.
fn tokens(keys: &mut Keys, kind: &str) -> Reading<Vec<(Option<String>, Vec<u32>)>> {
    if kind == "TRAINABLE_TOKENS" {
        return Ok(vec![(None, keys.or("token_indices", Vec::new())?)]);
    }
    match keys.take::<Value>("trainable_token_indices")? {
        None => Ok(Vec::new()),
        Some(Value::Object(by_module)) => {
            by_module.into_iter().map(|(module, ids)| Ok((Some(module), ids_of(ids)?))).collect()
        }
        Some(ids) => Ok(vec![(None, ids_of(ids)?)]),
    }
}

/// Whether a module has this name, or one that ends with it.
pub fn is_called(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

fn ids_of(value: Value) -> Reading<Vec<u32>> {
    crate::folder::typed(value).map_err(|reason| format!("trainable_token_indices: {reason}"))
}
