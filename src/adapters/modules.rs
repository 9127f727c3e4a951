//! The tensors of a PEFT checkpoint by the module that they change.

use super::Config;
use super::module::Module;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Model, Site};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

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

/// What a tensor's name says of it.
struct Place {
    module: String,
    part: &'static str,
    /// Whether it is the base's, which PEFT keeps beside a module of the adapter's own and may save with it.
    is_original: bool,
}

impl<'a> Modules<'a> {
    /// Sorts a checkpoint's tensors; one that is no part of such an adapter is an error.
    pub fn of(checkpoint: &'a Checkpoint, config: &'a Config) -> Result<Self> {
        let (method, kind) = (&config.method, config.kind);
        let mut modules = Self { checkpoint, config, by_path: BTreeMap::new(), shared: Parts::new() };
        let mut originals = Vec::new();
        for name in checkpoint.names() {
            let in_file = checkpoint.name_in_file(name);
            let whole = |part: &&&'static str| name.split_once('.').map_or(name, |(head, _)| head) == **part;
            if let Some(part) = method.parts().iter().find(whole) {
                modules.shared.insert(*part, name.to_owned());
                continue;
            }
            let Some(Place { module, part, is_original }) = split(name, method.parts()) else {
                let known = method.parts().join(", ");
                let reason = format!("tensor '{in_file}' is no part of a {kind} adapter; understood: {known}");
                return Err(Error::load(checkpoint.path(), reason));
            };
            if is_original {
                originals.push((name, module, part));
                continue;
            }
            match modules.by_path.entry(module).or_default().entry(part) {
                Entry::Vacant(free) => drop(free.insert(name.to_owned())),
                // PEFT saves some tensors again under the name of what wraps them.
                Entry::Occupied(first) if checkpoint.are_equal(first.get(), name)? => checkpoint.leave(name),
                Entry::Occupied(first) => {
                    let other = checkpoint.name_in_file(first.get());
                    let reason = format!("tensors '{other}' and '{in_file}' belong to two adapters in one file");
                    return Err(Error::load(checkpoint.path(), reason));
                }
            }
        }
        originals.into_iter().try_for_each(|(name, module, part)| modules.leave_original(name, &module, part))?;
        Ok(modules)
    }

    /// Sets aside what the base has in place of a module of the adapter's own: no forward pass runs it.
    fn leave_original(&self, name: &str, module: &str, part: &str) -> Result<()> {
        let checkpoint = self.checkpoint;
        let in_file = checkpoint.name_in_file(name);
        let fail = |reason: String| Err(Error::load(checkpoint.path(), reason));
        let Some(own) = self.by_path.get(module).and_then(|parts| parts.get(part)) else {
            return fail(format!("tensor '{}' is missing", in_file.replace(".original_module", "")));
        };
        let (shape, expected) = (checkpoint.shape(name), checkpoint.shape(own));
        if shape != expected {
            let (shape, expected) = (shape.unwrap_or_default(), expected.unwrap_or_default());
            return fail(format!("tensor '{in_file}' has shape {shape:?}, expected {expected:?}"));
        }
        checkpoint.leave(name);
        Ok(())
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
        let shape = parts.get(WEIGHT).and_then(|weight| self.checkpoint.shape(weight));
        if saved && !twice && shape.is_some_and(|shape| shape.first() != Some(&embedding.word.rows)) {
            let reason = format!(
                "'{path}' has another number of tokens, but the forward pass runs '{}' of the same weights; train the \
                 adapter with that name in modules_to_save, in place of '{path}'",
                embedding.word.path
            );
            return Err(Error::load(self.checkpoint.path(), reason));
        }
        let is_copy = parts.contains_key(WEIGHT) && twice;
        Ok(model.words().filter(|_| !saved && !is_copy))
    }

    /// Each with its place in a model; an error where the model has none.
    pub fn iter(&'a self, model: &'a Model) -> impl Iterator<Item = Result<Module<'a>>> {
        self.by_path.iter().map(|(path, parts)| Module::find(path, parts, self, model))
    }
}

/// A tensor's module and part: `<module>.<part>`, the adapter's name perhaps in it, and PEFT's wrappers of whole weights.
fn split(name: &str, parts: &[&'static str]) -> Option<Place> {
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
            let module = module.strip_suffix(".token_adapter").unwrap_or(module).to_owned();
            return Some(Place { module, part, is_original: false });
        }
    }
    let (module, part) = name.rsplit_once('.')?;
    let part = [WEIGHT, BIAS].into_iter().find(|whole| part == *whole)?;
    // A wrapper may stand around a module, or around one that holds it.
    let (module, is_original) = match (module.split_once(".original_module"), module.split_once(".modules_to_save")) {
        (Some((outer, inner)), _) => (format!("{outer}{inner}"), true),
        (None, Some((outer, inner))) => (format!("{outer}{}", inner.strip_prefix(".default").unwrap_or(inner)), false),
        (None, None) => (module.to_owned(), false),
    };
    let inside = module.strip_suffix(".base_layer").unwrap_or(&module);
    let module = inside.strip_suffix(".token_adapter").unwrap_or(inside).to_owned();
    Some(Place { module, part, is_original })
}
