//! A PEFT checkpoint's tensors to the deltas of one model. Everything binds, or the load fails and names what did not.

use super::Config;
use super::config::{Biases, is_called};
use super::keys::Reading;
use super::module::{Module, name_of};
use super::modules::{BIAS, Modules, TOKENS, WEIGHT};
use super::ways_out::MERGE;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::Packed;
use crate::model::{
    Adapter, Checkpoint, DType, Delta, LinearDelta, Model, NormDelta, OwnRows, Site, SiteKind, TableDelta, Weight,
};
use candle_core::Tensor;
use std::collections::HashMap;

/// Lays the folder's checkpoint on a model.
pub fn load(folder: &Folder, config: &Config, model: &Model) -> Result<Adapter> {
    let checkpoint = open(folder, model.spec().nested_as)?;
    let modules = Modules::of(&checkpoint, config)?;
    let mut bound = Bound { deltas: HashMap::new(), held: HashMap::new(), tokens: Vec::new(), prefix: None };
    let mut is_sum = config.method.is_sum() && config.blocks.is_empty();
    for module in modules.iter(model) {
        let module = module?;
        if module.has(TOKENS) {
            bound.tokens.push(module.path);
        }
        let Some(site) = module.site else {
            idle(&module, config)?;
            continue;
        };
        agree(&module, config, &checkpoint)?;
        let delta = match model.sites().is_bare(site) && (module.is_changed() || module.has(TOKENS)) {
            true if module.has(WEIGHT) => return Err(module.fail("it has a whole weight and an update")),
            true => idle(&module, config).map(|()| None)?,
            false => bind(&module, config)?,
        };
        is_sum &= !module.has(BIAS) && !module.has(TOKENS) && !replaces(&module, delta.as_ref());
        let is_changed = module.is_changed() || module.has(TOKENS) && config.method.parts().is_empty();
        let held = Held { is_changed, has_bias: module.has(BIAS) };
        let is_same = |other: &&Site| **other == site || model.sites().overlap(**other, site);
        if let Some(other) = bound.held.keys().find(is_same) {
            let reason = format!("it and '{}' are one module, and both are changed", model.sites().path(*other));
            return Err(module.fail(&reason));
        }
        bound.held.insert(site, held);
        bound.prefix = bound.prefix.or_else(|| module.stem.strip_suffix(module.path).map(str::to_owned));
        bound.deltas.extend(delta.map(|delta| (site, delta)));
    }
    checkpoint.finish()?;
    bound.complete(model, config).map_err(|reason| Error::load(config.path(), reason))?;
    if bound.deltas.is_empty() {
        return Err(Error::load(checkpoint.path(), "it changes no module that the forward pass runs"));
    }
    Adapter::new(bound.deltas, is_sum).prepared(model.sites(), model.device(), model.format().dtype())
}

/// A checkpoint's tensors in their places.
struct Bound<'a> {
    deltas: HashMap<Site, Delta>,
    held: HashMap<Site, Held>,
    /// Paths of the embeddings with rows of tokens.
    tokens: Vec<&'a str>,
    /// What stands before the body's own paths in the file, such as `base_model.model.bert.`.
    prefix: Option<String>,
}

/// What the checkpoint has of a module.
#[derive(Clone, Copy)]
struct Held {
    is_changed: bool,
    has_bias: bool,
}

/// `adapter_model.safetensors`, or the older `adapter_model.bin`.
fn open(folder: &Folder, nested_as: &str) -> Result<Checkpoint> {
    if let Some(file) = folder.file("adapter_model.safetensors")? {
        return Checkpoint::open(&[file], nested_as);
    }
    match folder.file("adapter_model.bin")? {
        Some(file) => Checkpoint::of_pickle(file, nested_as),
        None => Err(Error::load(folder.path().join("adapter_model.safetensors"), "no such file")),
    }
}

/// A module that no forward pass runs: its update must fit, where its shape is known, and is of no further use.
fn idle(module: &Module, config: &Config) -> Result<()> {
    if module.is_changed() && !module.is_unknown() {
        config.method.delta(module)?;
    }
    module.leave()
}

/// Whether an adapter has a weight of its own in place of the base's, not a copy of it.
fn replaces(module: &Module, delta: Option<&Delta>) -> bool {
    match delta {
        _ if !module.has(WEIGHT) => false,
        Some(Delta::Table(delta)) => delta.own.is_some(),
        other => other.is_some(),
    }
}

/// A module's tensors must be those that adapter_config.json says it has.
fn agree(module: &Module, config: &Config, checkpoint: &Checkpoint) -> Result<()> {
    let unsaid = |part: &'static str, reason: &str| {
        let name = checkpoint.name_in_file(module.tensor(part));
        Err(Error::load(checkpoint.path(), format!("tensor '{name}' is there, but adapter_config.json: {reason}")))
    };
    let wrong = |reason| Error::load(config.path(), reason);
    let saved = config.targets.saves(module.path, module.name).map_err(wrong)?;
    let mut whole = [WEIGHT, BIAS].into_iter().filter(|part| *part == WEIGHT || module.has_bias());
    if let Some(part) = whole.find(|part| saved && !module.has(part)) {
        return Err(module.missing(part));
    }
    // PEFT saves whole embeddings of its own accord, with an update of them or where the vocabulary has grown.
    if module.has(WEIGHT) && !saved && module.kind != SiteKind::Table {
        return unsaid(WEIGHT, "modules_to_save does not name it");
    }
    let biased = match config.biases {
        Biases::None => false,
        Biases::Changed => module.is_changed(),
        Biases::All => true,
    };
    if module.has(BIAS) && !saved && !biased {
        if config.biases == Biases::Changed && config.targets.need(module.path, module.name).map_err(wrong)? {
            return Err(module.missing(first_part(config, module.kind)));
        }
        return unsaid(BIAS, "neither bias nor modules_to_save names it");
    }
    if module.has(TOKENS) && config.tokens_of(module.path).is_none() {
        return unsaid(TOKENS, "trainable_token_indices does not name its embedding");
    }
    match config.targets.allow(module.path, module.name) {
        Err(reason) if module.is_changed() => {
            // As PEFT writes it with `ensure_weight_tying`, and then does not load it.
            let tied = module.tied_name().filter(|tied| config.targets.allow(tied, tied).is_ok());
            let name = module.path.rsplit('.').next().unwrap_or_default();
            let way_out = tied.map_or(String::new(), |tied| format!("; name '{name}' there in place of '{tied}'"));
            Err(wrong(format!("module '{}' has tensors, but {reason}{way_out}", module.stem)))
        }
        _ => Ok(()),
    }
}

impl Bound<'_> {
    /// Fails where adapter_config.json names what has no tensor: that is half an adapter.
    fn complete(&self, model: &Model, config: &Config) -> Reading<()> {
        let (sites, prefix) = (model.sites(), self.prefix.as_deref().unwrap_or("base_model.model."));
        let known = |site: Site, what: fn(&Held) -> bool| {
            let mut held = self.held.iter().filter(|(_, held)| what(held));
            held.any(|(other, _)| *other == site || sites.overlap(*other, site))
        };
        for (site, path) in sites.iter() {
            let stem = format!("{prefix}{path}");
            let name = name_of(&stem);
            let lost = |key: &str, part: &str| Err(format!("{key} names '{path}', but '{stem}.{part}' is missing"));
            let is_changed = known(site, |held| held.is_changed);
            let is_needed = config.targets.need(path, name)? && !self.goes_by_others(site, model, config)?;
            if config.method.changes(sites.kind(site)) && !is_changed && is_needed {
                return lost("target_modules", first_part(config, sites.kind(site)));
            }
            if !known(site, |_| true) && config.targets.saves(path, name)? {
                return lost("modules_to_save", WEIGHT);
            }
            let needs_bias = match config.biases {
                Biases::None => false,
                Biases::Changed => is_changed,
                Biases::All => true,
            };
            if needs_bias && sites.has_bias(site) && !known(site, |held| held.has_bias) {
                return lost("bias", if is_changed { "base_layer.bias" } else { BIAS });
            }
        }
        config.require_tokens(&self.tokens).map_err(|(name, reason)| {
            let fits = |path: &&str| name.as_deref().is_none_or(|name| is_called(path, name));
            let tables = sites.iter().filter(|(site, _)| sites.kind(*site) == SiteKind::Table).map(|(_, path)| path);
            let tied = model.spec().embedding.word_tied.as_deref().filter(fits);
            // What is tied to a body's embedding stands outside of the body.
            let outside = prefix.strip_suffix(&format!("{}.", model.spec().nested_as)).unwrap_or(prefix);
            let stem = match tied.filter(|_| name.is_some()) {
                Some(tied) => format!("{outside}{tied}"),
                None => format!("{prefix}{}", tables.into_iter().find(fits).or(name.as_deref()).unwrap_or_default()),
            };
            let wrapper = if config.method.parts().is_empty() { "" } else { ".token_adapter" };
            format!("{reason}, but '{stem}{wrapper}.{TOKENS}' is missing")
        })
    }

    /// Whether a site has its rows from others that the configuration names too: then those tell what must be there.
    fn goes_by_others(&self, site: Site, model: &Model, config: &Config) -> Reading<bool> {
        let (sites, prefix) = (model.sites(), self.prefix.as_deref().unwrap_or_default());
        if !sites.is_alias(site) {
            return Ok(false);
        }
        for (other, path) in sites.iter().filter(|(other, _)| !sites.is_alias(*other) && sites.overlap(*other, site)) {
            if other != site && config.targets.names(path, name_of(&format!("{prefix}{path}")))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The part of its own tensors that a module of a kind must have first of all.
fn first_part(config: &Config, kind: SiteKind) -> &'static str {
    let mut parts = config.method.parts().iter();
    parts.find(|part| part.contains("embedding") == (kind == SiteKind::Table)).unwrap_or(&TOKENS)
}

/// One module's delta; none where the adapter holds of it what the base has.
fn bind(module: &Module, config: &Config) -> Result<Option<Delta>> {
    match module.kind {
        SiteKind::Linear => linear(module, config).map(|delta| Some(Delta::Linear(delta))),
        SiteKind::Table => table(module, config),
        SiteKind::Convolution if module.is_changed() || module.has(WEIGHT) => {
            let reason = "of a convolution only the bias can be an adapter's; leave it out of target_modules and \
                          modules_to_save";
            Err(module.fail(&format!("{reason}, or {MERGE}")))
        }
        SiteKind::Convolution => linear(module, config).map(|delta| Some(Delta::Linear(delta))),
        SiteKind::Norm if module.is_changed() => config.method.delta(module).map(Some),
        SiteKind::Norm => {
            let width = [module.shape[1]];
            let own = |part: &str| module.has(part).then(|| module.take(part, &width)).transpose();
            Ok(Some(Delta::Norm(NormDelta { weight: own(WEIGHT)?.map(Into::into), bias: own(BIAS)?.map(Into::into) })))
        }
    }
}

fn linear(module: &Module, config: &Config) -> Result<LinearDelta> {
    let bias = module.has(BIAS).then(|| module.take(BIAS, &[module.outputs()])).transpose()?;
    if module.has(WEIGHT) {
        if module.is_changed() {
            return Err(module.fail("it has a whole weight and an update"));
        }
        let weight = Packed::plain(module.take(WEIGHT, &module.shape)?.t()?.contiguous()?);
        return LinearDelta::own(Weight { weight, bias: bias.map(Into::into) });
    }
    let delta = match module.is_changed() {
        true => match config.method.delta(module)? {
            Delta::Linear(delta) => delta,
            _ => return Err(module.fail("its tensors are not those of a linear module")),
        },
        false => LinearDelta::default(),
    };
    let Some(own) = bias else { return Ok(delta) };
    match module.base()?.host_bias()? {
        Some(base) => delta.shifted(&(own - base)?),
        None => Err(module.fail("it has a bias, but the base has none there")),
    }
}

fn table(module: &Module, config: &Config) -> Result<Option<Delta>> {
    let own = if module.has(WEIGHT) { own_table(module)?.map(Into::into) } else { None };
    let mut delta = match module.is_changed() {
        false => TableDelta { own, ..TableDelta::default() },
        true => match config.method.delta(module)? {
            // Where it is not a sum, the update has the checkpoint's embedding in it.
            Delta::Table(update) => TableDelta { own: update.own.or(own), ..update },
            _ => return Err(module.fail("its tensors are not those of an embedding")),
        },
    };
    if module.has(TOKENS) {
        let ids = config.tokens_of(module.path).unwrap_or_default();
        let rows = module.shape[0];
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            return Err(module.fail(&format!("trainable_token_indices names row {id} of {rows}")));
        }
        delta.rows = Some(OwnRows::new(ids, module.take(TOKENS, &[ids.len(), module.shape[1]])?));
    }
    let changes = delta.own.is_some() || delta.rows.is_some() || module.is_changed();
    Ok(changes.then_some(Delta::Table(delta)))
}

/// The embedding that a checkpoint holds; none where it is a copy of the base's.
fn own_table(module: &Module) -> Result<Option<Tensor>> {
    let own = module.take(WEIGHT, &module.shape)?;
    let Some(base) = module.replaced() else { return Ok(Some(own)) };
    let base = base.weight.tensor()?;
    let (stored, base) = (own.to_dtype(base.dtype())?.to_dtype(DType::F32)?, base.to_dtype(DType::F32)?);
    let same = stored.dims() == base.dims() && (stored - base)?.abs()?.max_all()?.to_scalar::<f32>()? == 0.0;
    Ok((!same).then_some(own))
}
