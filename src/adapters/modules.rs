//! The tensors of a PEFT checkpoint by the module that they change.

use super::Config;
use super::module::Module;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Model, Site};
use std::collections::BTreeMap;

/// What every type of adapter may hold of a module beside its own tensors: the whole weight or bias, or rows of tokens.
pub const WEIGHT: &str = "weight";
/// See [`WEIGHT`].
pub const BIAS: &str = "bias";
/// See [`WEIGHT`].
pub const TOKENS: &str = "trainable_tokens_delta";

/// A checkpoint's tensors: by canonical module path, then by part, their canonical names.
pub struct Modules<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    config: &'a Config,
    by_path: BTreeMap<String, Parts>,
    /// Parts of all modules together.
    pub(super) shared: Parts,
}

/// Tensors' canonical names by part.
pub type Parts = BTreeMap<&'static str, String>;

impl<'a> Modules<'a> {
    /// Sorts a checkpoint's tensors; one that is no part of such an adapter is an error.
    pub fn of(checkpoint: &'a Checkpoint, config: &'a Config) -> Result<Self> {
        let (method, kind) = (&config.method, config.kind);
        let (mut by_path, mut shared) = (BTreeMap::<String, Parts>::new(), Parts::new());
        for name in checkpoint.names() {
            let in_file = checkpoint.name_in_file(name);
            let whole = |part: &&&'static str| name.split_once('.').map_or(name, |(head, _)| head) == **part;
            if let Some(part) = method.parts().iter().find(whole) {
                shared.insert(*part, name.to_owned());
                continue;
            }
            let Some((path, part)) = split(name, method.parts()) else {
                let known = method.parts().join(", ");
                let reason = format!("tensor '{in_file}' is no part of a {kind} adapter; understood: {known}");
                return Err(Error::load(checkpoint.path(), reason));
            };
            let parts = by_path.entry(path.to_owned()).or_default();
            let Some(other) = parts.insert(part, name.to_owned()) else { continue };
            // Beside a module of its own PEFT may save the bias of the base's, and then does not load it.
            let is_own = |name: &str| name.contains(".modules_to_save");
            match (is_own(name), is_own(&other)) {
                (true, false) => checkpoint.leave(&other),
                (false, true) => {
                    checkpoint.leave(name);
                    parts.insert(part, other);
                }
                _ => {
                    let other = checkpoint.name_in_file(&other);
                    let reason = format!("tensors '{other}' and '{in_file}' belong to two adapters in one file");
                    return Err(Error::load(checkpoint.path(), reason));
                }
            }
        }
        Ok(Self { checkpoint, config, by_path, shared })
    }

    /// The word embedding, where a path is the other name of the same weights: what is saved of them there is the
    /// embedding's too, but no update, and no module of the adapter's own, which the forward pass would not run.
    pub(super) fn tied(&self, path: &str, name: &str, parts: &Parts, model: &Model) -> Result<Option<Site>> {
        let embedding = &model.spec().embedding;
        let is_tied = embedding.word_tied.as_deref() == Some(path);
        if !is_tied || parts.keys().any(|part| ![WEIGHT, TOKENS].contains(part)) {
            return Ok(None);
        }
        let twice = self.by_path.get(&embedding.word.path).is_some_and(|own| own.contains_key(WEIGHT));
        let saved = self.config.targets.saves(path, name);
        let saved = saved.map_err(|reason| Error::load(self.config.path(), reason))?;
        let is_copy = parts.contains_key(WEIGHT) && twice;
        Ok(model.words().filter(|_| !saved && !is_copy))
    }

    /// Each with its place in a model; an error where the model has none.
    pub fn iter(&'a self, model: &'a Model) -> impl Iterator<Item = Result<Module<'a>>> {
        self.by_path.iter().map(|(path, parts)| Module::find(path, parts, self, model))
    }
}

/// A tensor's module and part: `<module>.<part>`, the adapter's name perhaps in it, and PEFT's wrappers of whole weights.
fn split<'n>(name: &'n str, parts: &[&'static str]) -> Option<(&'n str, &'static str)> {
    for part in parts.iter().chain(&[TOKENS]) {
        let (head, tail) = part.split_once('.').unwrap_or((part, ""));
        let Some((module, rest)) = name.split_once(&format!(".{head}")) else { continue };
        let rest = match rest.strip_prefix('.') {
            Some(rest) => rest,
            None if rest.is_empty() => "",
            None => continue,
        };
        let adapter = if tail.is_empty() { Some(rest) } else { rest.strip_suffix(tail) };
        if adapter.is_some_and(|adapter| !adapter.trim_end_matches('.').contains('.')) {
            return Some((module.strip_suffix(".token_adapter").unwrap_or(module), part));
        }
    }
    let (module, part) = name.rsplit_once('.')?;
    let part = [WEIGHT, BIAS].into_iter().find(|whole| part == *whole)?;
    let module = module.split_once(".modules_to_save").map_or(module, |(module, _)| module);
    Some((module.strip_suffix(".base_layer").unwrap_or(module), part))
}
