//! A PEFT checkpoint's tensors to the deltas of one model. Everything binds, or the load fails and names what did not.

use super::Config;
use super::config::Biases;
use super::keys::Reading;
use super::modules::{BIAS, Module, Modules, TOKENS, WEIGHT};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::model::{
    Adapter, Checkpoint, DType, Delta, LinearDelta, Model, NormDelta, OwnRows, Site, SiteKind, TableDelta, Weight,
};

/// Lays the folder's checkpoint on a model.
pub fn load(folder: &Folder, config: &Config, model: &Model) -> Result<Adapter> {
    let checkpoint = open(folder, model.spec().nested_as)?;
    let modules = Modules::of(&checkpoint, &*config.method, config.kind)?;
    let (mut deltas, mut changed, mut held, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut is_sum = config.method.is_sum() && config.blocks.is_empty();
    for module in modules.iter(model) {
        let module = module?;
        agree(&module, config, &checkpoint)?;
        if module.is_unknown() {
            module.leave();
            continue;
        }
        let delta = bind(&module, config)?;
        let Some(site) = module.site else { continue };
        if module.is_changed() {
            changed.push(site);
        }
        tokens += usize::from(module.has(TOKENS));
        is_sum &= ![WEIGHT, BIAS, TOKENS].iter().any(|part| module.has(part));
        held.push((site, module.has(BIAS)));
        deltas.extend(delta.map(|delta| (site, delta)));
    }
    checkpoint.finish()?;
    complete(model, config, &changed, &held).map_err(|reason| Error::load(config.path(), reason))?;
    if tokens != config.tokens.len() {
        let reason =
            format!("trainable_token_indices is for {} embeddings, the checkpoint has {tokens}", config.tokens.len());
        return Err(Error::load(config.path(), reason));
    }
    if deltas.is_empty() {
        return Err(Error::load(checkpoint.path(), "it changes no module that the forward pass runs"));
    }
    Ok(Adapter::new(deltas, is_sum))
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

/// A module's tensors must be those that adapter_config.json says it has.
fn agree(module: &Module, config: &Config, checkpoint: &Checkpoint) -> Result<()> {
    let unsaid = |part: &'static str, reason: &str| {
        let name = checkpoint.name_in_file(module.tensor(part));
        Err(Error::load(checkpoint.path(), format!("tensor '{name}' is there, but adapter_config.json: {reason}")))
    };
    let saved = config.targets.saves(module.path, &module.name);
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
        return unsaid(BIAS, "neither bias nor modules_to_save names it");
    }
    if module.has(TOKENS) && config.tokens.is_empty() {
        return unsaid(TOKENS, "trainable_token_indices is missing");
    }
    match config.targets.refuse(module.path, &module.name) {
        Some(reason) if module.is_changed() => {
            Err(Error::load(config.path(), format!("module '{}' has tensors, but {reason}", module.path)))
        }
        _ => Ok(()),
    }
}

/// What is named, but has no tensor: half an adapter.
fn complete(model: &Model, config: &Config, changed: &[Site], held: &[(Site, bool)]) -> Reading<()> {
    let sites = model.sites();
    let known = |list: &[Site], site: Site| list.iter().any(|other| *other == site || sites.overlap(*other, site));
    let whole: Vec<Site> = held.iter().map(|(site, _)| *site).collect();
    let biased: Vec<Site> = held.iter().filter(|(_, bias)| *bias).map(|(site, _)| *site).collect();
    for (site, path) in sites.iter() {
        let lost = |key: &str, tensor: &str| Err(format!("{key} names '{path}', but '{path}.{tensor}' is missing"));
        if config.targets.need(path) && !known(changed, site) && config.method.changes(sites.kind(site)) {
            return lost("target_modules", &config.method.parts().join(" or ."));
        }
        if config.targets.saves(path, path) && !known(&whole, site) {
            return lost("modules_to_save", WEIGHT);
        }
        let needs_bias = match config.biases {
            Biases::None => false,
            Biases::Changed => known(changed, site),
            Biases::All => true,
        };
        if needs_bias && sites.has_bias(site) && !known(&biased, site) {
            return lost("bias", BIAS);
        }
    }
    Ok(())
}

/// One module's delta; none where the adapter holds of it what the base has.
fn bind(module: &Module, config: &Config) -> Result<Option<Delta>> {
    match module.kind {
        SiteKind::Linear => linear(module, config).map(|delta| Some(Delta::Linear(delta))),
        SiteKind::Table => table(module, config),
        SiteKind::Norm if module.is_changed() => config.method.delta(module).map(Some),
        SiteKind::Norm => {
            let width = [module.shape[1]];
            let own = |part: &str| module.has(part).then(|| module.take(part, &width)).transpose();
            Ok(Some(Delta::Norm(NormDelta { weight: own(WEIGHT)?, bias: own(BIAS)? })))
        }
    }
}

fn linear(module: &Module, config: &Config) -> Result<LinearDelta> {
    let base = module.base()?;
    let bias = module.has(BIAS).then(|| module.take(BIAS, &[module.outputs()])).transpose()?;
    if module.has(WEIGHT) {
        if module.is_changed() {
            return Err(module.fail("it has a whole weight and an update"));
        }
        let weight = module.take(WEIGHT, &module.shape)?.t()?.contiguous()?;
        return LinearDelta::own(Weight { weight, bias });
    }
    let delta = match module.is_changed() {
        true => match config.method.delta(module)? {
            Delta::Linear(delta) => delta,
            _ => return Err(module.fail("its tensors are not those of a linear module")),
        },
        false => LinearDelta::default(),
    };
    match (bias, base.bias) {
        (None, _) => Ok(delta),
        (Some(own), Some(base)) => delta.shifted(&(own - base)?),
        (Some(_), None) if module.site.is_none() => Ok(delta),
        (Some(_), None) => Err(module.fail("it has a bias, but the base has none there")),
    }
}

fn table(module: &Module, config: &Config) -> Result<Option<Delta>> {
    let Weight { weight: base, .. } = module.base()?;
    let mut delta = TableDelta::default();
    if module.has(WEIGHT) {
        let own = module.take(WEIGHT, &module.shape)?;
        let (stored, base) = (own.to_dtype(base.dtype())?.to_dtype(DType::F32)?, base.to_dtype(DType::F32)?);
        let same = stored.dims() == base.dims() && (stored - base)?.abs()?.max_all()?.to_scalar::<f32>()? == 0.0;
        delta.own = (!same).then_some(own);
    }
    if module.is_changed() {
        delta = match config.method.delta(module)? {
            Delta::Table(update) if delta.own.is_some() && (update.magnitude.is_some() || update.own.is_some()) => {
                return Err(module.fail("only a plain update of an embedding other than the base's is supported"));
            }
            Delta::Table(update) => TableDelta { own: delta.own.or(update.own), ..update },
            _ => return Err(module.fail("its tensors are not those of an embedding")),
        };
    }
    if module.has(TOKENS) {
        let named = |(name, _): &&(Option<String>, Vec<u32>)| {
            name.as_ref().is_none_or(|name| module.path == name || module.path.ends_with(&format!(".{name}")))
        };
        let ids = config.tokens.iter().find(named).map(|(_, ids)| ids.as_slice()).unwrap_or_default();
        let rows = module.shape[0];
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            return Err(module.fail(&format!("trainable_token_indices names row {id} of {rows}")));
        }
        delta.rows = Some(OwnRows::new(ids, module.take(TOKENS, &[ids.len(), module.shape[1]])?));
    }
    let changes = delta.own.is_some() || delta.rows.is_some() || module.is_changed();
    Ok(changes.then_some(Delta::Table(delta)))
}
