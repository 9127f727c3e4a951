//! The tensors of a PEFT checkpoint by the module that they change.

use super::methods::Method;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Delta, Device, LinearDelta, Model, Site, SiteKind, TableDelta, Weight};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

/// What every type of adapter may hold of a module beside its own tensors: the whole weight or bias, or rows of tokens.
pub const WEIGHT: &str = "weight";
/// See [`WEIGHT`].
pub const BIAS: &str = "bias";
/// See [`WEIGHT`].
pub const TOKENS: &str = "trainable_tokens_delta";

/// A checkpoint's tensors: by canonical module path, then by part, their canonical names.
pub struct Modules<'a> {
    checkpoint: &'a Checkpoint,
    by_path: BTreeMap<String, BTreeMap<&'static str, String>>,
    /// Parts of all modules together.
    shared: BTreeMap<&'static str, String>,
}

/// One module's tensors.
pub struct Module<'a> {
    /// Its canonical path.
    pub path: &'a str,
    /// Its name in the trainer's model, for which adapter_config.json's patterns are written.
    pub name: String,
    /// None: a module of the base that no forward pass runs.
    pub site: Option<Site>,
    /// What it is.
    pub kind: SiteKind,
    /// Its weight's, see [`SiteKind`].
    pub shape: [usize; 2],
    parts: &'a BTreeMap<&'static str, String>,
    all: &'a Modules<'a>,
    model: &'a Model,
}

impl<'a> Modules<'a> {
    /// Sorts a checkpoint's tensors; one that is no part of such an adapter is an error.
    pub fn of(checkpoint: &'a Checkpoint, method: &dyn Method, kind: &str) -> Result<Self> {
        let (mut by_path, mut shared) = (BTreeMap::<String, BTreeMap<&'static str, String>>::new(), BTreeMap::new());
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
            if let Some(other) = by_path.entry(path.to_owned()).or_default().insert(part, name.to_owned()) {
                let other = checkpoint.name_in_file(&other);
                let reason = format!("tensors '{other}' and '{in_file}' belong to two adapters in one file");
                return Err(Error::load(checkpoint.path(), reason));
            }
        }
        Ok(Self { checkpoint, by_path, shared })
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

impl<'a> Module<'a> {
    fn find(
        path: &'a str,
        parts: &'a BTreeMap<&'static str, String>,
        all: &'a Modules<'a>,
        model: &'a Model,
    ) -> Result<Self> {
        let checkpoint = all.checkpoint;
        let tensor = parts.values().next().map_or("", |name| checkpoint.name_in_file(name));
        let site = model.sites().find(path);
        let (kind, mut shape) = match (site, model.idle_shape(&format!("{path}.weight"))) {
            (Some(site), _) => (model.sites().kind(site), model.sites().shape(site)),
            (None, Some(&[outputs, inputs])) => (SiteKind::Linear, [outputs, inputs]),
            (None, Some(&[width])) => (SiteKind::Norm, [1, width]),
            // A head that the base's checkpoint does not have: nothing says which shapes are right.
            (None, _) if model.is_idle(path) => (SiteKind::Linear, [0, 0]),
            (None, _) => {
                let reason = format!("tensor '{tensor}': the base has no module '{path}' that adapters can change");
                return Err(Error::load(checkpoint.path(), reason));
            }
        };
        // An embedding of its own may have another number of rows.
        let own = parts.get(WEIGHT).filter(|_| kind == SiteKind::Table).and_then(|name| checkpoint.shape(name));
        if let Some(&[rows, _]) = own.as_deref() {
            shape[0] = rows;
        }
        let name = tensor.find(path).map_or(path, |start| {
            let outer = &tensor[..start];
            &tensor
                [outer.strip_prefix("base_model.model.").map_or(0, |_| "base_model.model.".len())..start + path.len()]
        });
        Ok(Self { path, name: name.to_owned(), site, kind, shape, parts, all, model })
    }

    /// Whether it is of a module whose shape nobody knows and that no forward pass runs.
    pub fn is_unknown(&self) -> bool {
        self.shape == [0, 0]
    }

    /// A part's name in the file.
    pub fn tensor(&self, part: &'static str) -> &str {
        self.parts.get(part).map_or(part, |name| self.all.checkpoint.name_in_file(name))
    }

    /// Sets aside all of its tensors.
    pub fn leave(&self) {
        self.parts.values().for_each(|name| self.all.checkpoint.leave(name));
    }

    /// An error about its checkpoint.
    pub fn fail(&self, reason: &str) -> Error {
        Error::load(self.all.checkpoint.path(), format!("'{}': {reason}", self.path))
    }

    /// Whether a part is there.
    pub fn has(&self, part: &str) -> bool {
        self.parts.contains_key(part)
    }

    /// Whether it has any part but those that every type of adapter may hold.
    pub fn is_changed(&self) -> bool {
        self.parts.keys().any(|part| ![WEIGHT, BIAS, TOKENS].contains(part))
    }

    /// A part of this shape; an error where it is missing or of another.
    pub fn take(&self, part: &str, shape: &[usize]) -> Result<Tensor> {
        let name = self.parts.get(part).ok_or_else(|| self.missing(part))?;
        self.all.checkpoint.take(name, shape, self.model.device())
    }

    /// An error that a part is not there.
    pub fn missing(&self, part: &str) -> Error {
        let sibling = self.parts.values().next().map_or("", |name| self.all.checkpoint.name_in_file(name));
        let end = sibling.find(self.path).map_or(0, |start| start + self.path.len());
        Error::load(self.all.checkpoint.path(), format!("tensor '{}.{part}' is missing", &sibling[..end]))
    }

    /// A part's shape.
    pub fn shape_of(&self, part: &str) -> Result<Vec<usize>> {
        let shape = self.parts.get(part).and_then(|name| self.all.checkpoint.shape(name));
        shape.ok_or_else(|| self.missing(part))
    }

    /// Whole numbers, in whatever format the file has them.
    pub fn take_integers(&self, part: &str, shape: &[usize]) -> Result<Vec<i64>> {
        let name = self.parts.get(part).ok_or_else(|| self.missing(part))?;
        let tensor = self.all.checkpoint.take_as(DType::I64, name, shape, self.model.device())?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    /// A tensor that all modules share.
    pub fn take_shared(&self, part: &'static str, shape: &[usize]) -> Result<Tensor> {
        let name = self.all.shared.get(part).map_or(part, String::as_str);
        self.all.checkpoint.take(name, shape, self.model.device())
    }

    /// The most outputs and the most inputs of a module that the checkpoint changes.
    pub fn widest(&self) -> Result<[usize; 2]> {
        self.all.iter(self.model).try_fold([0, 0], |[outputs, inputs], module| {
            let module = module?;
            let [more, wider] = if module.is_changed() { module.shape } else { [0, 0] };
            Ok([outputs.max(more), inputs.max(wider)])
        })
    }

    /// Where its tensors go.
    pub fn device(&self) -> &Device {
        self.model.device()
    }

    /// Whether the base's module has a bias.
    pub fn has_bias(&self) -> bool {
        match self.site {
            Some(site) => self.model.sites().has_bias(site),
            None => self.model.idle_shape(&format!("{}.bias", self.path)).is_some(),
        }
    }

    /// The base's weight in f32, `[out, in]` or `[rows, width]`.
    pub fn weight_as_stored(&self) -> Result<Tensor> {
        let weight = self.weight()?;
        Ok(if self.kind == SiteKind::Table { weight } else { weight.t()? })
    }

    /// The base's weight plus `update`, `[out, in]` or `[rows, width]`.
    pub fn plus(&self, update: &Tensor) -> Result<Delta> {
        let sum = (self.weight_as_stored()? + update)?;
        match self.kind {
            SiteKind::Table => Ok(Delta::Table(TableDelta { own: Some(sum), ..TableDelta::default() })),
            _ => {
                let weight = Weight { weight: sum.t()?.contiguous()?, bias: self.base()?.bias };
                Ok(Delta::Linear(LinearDelta::own(weight)?))
            }
        }
    }

    /// Outputs of a linear module.
    pub fn outputs(&self) -> usize {
        self.shape[0]
    }

    /// Inputs of a linear module.
    pub fn inputs(&self) -> usize {
        self.shape[1]
    }

    /// The base's weight, see [`Weight`], in f32.
    pub fn weight(&self) -> Result<Tensor> {
        Ok(self.base()?.weight.to_dtype(DType::F32)?)
    }

    /// What the base has there; of a module that no forward pass runs, zeros.
    pub fn base(&self) -> Result<Weight> {
        match self.site.and_then(|site| self.model.sites().weight(site)) {
            Some(weight) => Ok(weight.clone()),
            None => {
                let zeros = Tensor::zeros((self.inputs(), self.outputs()), DType::F32, self.model.device());
                Ok(Weight { weight: zeros?, bias: None })
            }
        }
    }
}
