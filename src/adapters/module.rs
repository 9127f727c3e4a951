//! One module of a PEFT checkpoint: its tensors, its place in the model, and what the base has there.

use super::keys::Reading;
use super::modules::{BIAS, Modules, Parts, TOKENS, WEIGHT};
use super::ways_out::MERGE;
use crate::error::{Error, Result};
use crate::kernels::Packed;
use crate::model::{Delta, LinearDelta, Model, Site, SiteKind, TableDelta, Weight};
use candle_core::{DType, Device, Tensor};

/// One module's tensors.
pub struct Module<'a> {
    /// Its canonical path.
    pub path: &'a str,
    /// Its name in the file.
    pub stem: &'a str,
    /// Its name in the trainer's model, for which adapter_config.json's patterns are written.
    pub name: &'a str,
    /// None: a module of the base that no forward pass runs.
    pub site: Option<Site>,
    /// What it is.
    pub kind: SiteKind,
    /// Its weight's, see [`SiteKind`].
    pub shape: [usize; 2],
    parts: &'a Parts,
    all: &'a Modules<'a>,
    model: &'a Model,
}

impl<'a> Module<'a> {
    /// Finds a module's place; an error where the model has none.
    pub(super) fn find(path: &'a str, parts: &'a Parts, all: &'a Modules<'a>, model: &'a Model) -> Result<Self> {
        let checkpoint = all.checkpoint;
        let tensor = parts.values().next().map_or("", |name| checkpoint.name_in_file(name));
        let stem = tensor.find(path).map_or(path, |start| &tensor[..start + path.len()]);
        let name = name_of(stem);
        let site = match model.sites().find(path) {
            None => all.tied(path, name, parts, model)?,
            site => site,
        };
        let (kind, mut shape) = match (site, model.idle_shape(&format!("{path}.weight"))) {
            (Some(site), _) => (model.sites().kind(site), model.sites().shape(site)),
            (None, Some(&[rows, columns])) => {
                let is_table = parts.keys().any(|part| part.contains("embedding"));
                (if is_table { SiteKind::Table } else { SiteKind::Linear }, [rows, columns])
            }
            (None, Some(&[width])) => (SiteKind::Norm, [1, width]),
            // A head that the base's checkpoint does not have: nothing says which shapes are right.
            (None, _) if model.is_idle(path) => (SiteKind::Linear, [0, 0]),
            (None, _) => {
                let reason = format!("tensor '{tensor}': the base has no module '{path}' that adapters can change");
                let way_out = format!("if the adapter is this base's, leave the module out of it, or {MERGE}");
                return Err(Error::load(checkpoint.path(), format!("{reason}; {way_out}")));
            }
        };
        // Words of its own may be more, or fewer.
        let is_words = site.is_some() && site == model.words();
        let own = parts.get(WEIGHT).filter(|_| is_words).and_then(|name| checkpoint.shape(name));
        if let Some(&[rows, _]) = own.as_deref() {
            shape[0] = rows;
        }
        Ok(Self { path, stem, name, site, kind, shape, parts, all, model })
    }

    /// Whether it is of a module whose shape nobody knows and that no forward pass runs.
    pub fn is_unknown(&self) -> bool {
        self.shape == [0, 0]
    }

    /// A part's name in the file.
    pub fn tensor(&self, part: &'static str) -> &str {
        self.parts.get(part).map_or(part, |name| self.all.checkpoint.name_in_file(name))
    }

    /// Sets aside all tensors of a module that no forward pass runs. Its weight and bias must be as large as the base's;
    /// those of a head over the vocabulary may have grown with it.
    pub fn leave(&self) -> Result<()> {
        for (part, name) in self.parts {
            let of_base = self.model.idle_shape(name).filter(|_| [WEIGHT, BIAS].contains(part));
            if let Some(of_base) = of_base {
                let (shape, words) = (self.shape_of(part)?, self.model.vocabulary(None));
                let has_grown = of_base[0] == words && shape.get(1..) == of_base.get(1..);
                if shape != of_base && !has_grown {
                    let reason = format!("tensor '{}' has shape {shape:?}, expected {of_base:?}", self.tensor(part));
                    return Err(Error::load(self.all.checkpoint.path(), reason));
                }
            }
            self.all.checkpoint.leave(name);
        }
        Ok(())
    }

    /// An error about its checkpoint.
    pub fn fail(&self, reason: &str) -> Error {
        Error::load(self.all.checkpoint.path(), format!("'{}': {reason}", self.path))
    }

    /// What was read for it, or an error about its checkpoint.
    pub fn checked<T>(&self, reading: Reading<T>) -> Result<T> {
        reading.map_err(|reason| self.fail(&reason))
    }

    /// The model's factor on what it gives.
    pub fn factor(&self) -> f64 {
        let is_words = self.site.is_some() && self.site == self.model.words();
        self.model.spec().embedding.scale.filter(|_| is_words).unwrap_or(1.0)
    }

    /// The word embedding's other name, where the model has one.
    pub fn tied_name(&self) -> Option<&str> {
        let is_words = self.site.is_some() && self.site == self.model.words();
        self.model.spec().embedding.word_tied.as_deref().filter(|_| is_words)
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
        self.all.checkpoint.take(name, shape)
    }

    /// An error that a part is not there.
    pub fn missing(&self, part: &str) -> Error {
        Error::load(self.all.checkpoint.path(), format!("tensor '{}.{part}' is missing", self.stem))
    }

    /// A part's shape.
    pub fn shape_of(&self, part: &str) -> Result<Vec<usize>> {
        let shape = self.parts.get(part).and_then(|name| self.all.checkpoint.shape(name));
        shape.ok_or_else(|| self.missing(part))
    }

    /// Whole numbers, in whatever format the file has them.
    pub fn take_integers(&self, part: &str, shape: &[usize]) -> Result<Vec<i64>> {
        let name = self.parts.get(part).ok_or_else(|| self.missing(part))?;
        let tensor = self.all.checkpoint.take_as(DType::I64, name, shape)?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    /// A tensor that all modules share.
    pub fn take_shared(&self, part: &'static str, shape: &[usize]) -> Result<Tensor> {
        let checkpoint = self.all.checkpoint;
        let Some(name) = self.all.shared.get(part) else {
            // What stands before the others' names stands before its own.
            let prefix = self.all.shared.values().find_map(|other| checkpoint.name_in_file(other).strip_suffix(other));
            let reason = format!("tensor '{}{part}' is missing", prefix.unwrap_or("base_model."));
            return Err(Error::load(checkpoint.path(), reason));
        };
        checkpoint.take(name, shape)
    }

    /// The most outputs and the most inputs of a module that the checkpoint changes.
    pub fn widest(&self) -> Result<[usize; 2]> {
        self.all.iter(self.model).try_fold([0, 0], |[outputs, inputs], module| {
            let module = module?;
            let [more, wider] = if module.is_changed() { module.shape } else { [0, 0] };
            Ok([outputs.max(more), inputs.max(wider)])
        })
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
            SiteKind::Table => Ok(Delta::Table(TableDelta { own: Some(sum.into()), ..TableDelta::default() })),
            _ => {
                let weight = Weight { weight: Packed::plain(sum.t()?.contiguous()?), bias: self.base()?.bias };
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
        Ok(self.base()?.weight.tensor()?.to_dtype(DType::F32)?)
    }

    /// What the base itself has there.
    pub fn replaced(&self) -> Option<&Weight> {
        self.model.sites().weight(self.site?)
    }

    /// What the update lies on: what the base has there, or in its place an embedding that the checkpoint holds; of a
    /// module that no forward pass runs, zeros.
    pub fn base(&self) -> Result<Weight> {
        if self.kind == SiteKind::Table && self.has(WEIGHT) && self.site.is_some() {
            return Ok(Weight { weight: Packed::plain(self.take(WEIGHT, &self.shape)?), bias: None });
        }
        match self.replaced() {
            Some(weight) => Ok(weight.clone()),
            None => {
                let zeros = Tensor::zeros((self.inputs(), self.outputs()), DType::F32, &Device::Cpu);
                Ok(Weight { weight: Packed::plain(zeros?), bias: None })
            }
        }
    }
}

/// A module's name in the trainer's model, from the one in the file.
pub fn name_of(stem: &str) -> &str {
    stem.strip_prefix("base_model.model.").unwrap_or(stem)
}
