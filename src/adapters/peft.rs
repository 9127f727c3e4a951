//! A PEFT checkpoint's tensors to the deltas of one model. Everything binds, or the load fails and names what did not.

use super::Config;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::model::{Adapter, Checkpoint, Delta, Model, SiteKind};
use std::collections::BTreeMap;

/// The two halves of one module's update, as canonical tensor names.
#[derive(Default)]
struct Pair {
    a: Option<String>,
    b: Option<String>,
}

/// Lays the folder's checkpoint on a model.
pub fn load(folder: &Folder, config: &Config, model: &Model) -> Result<Adapter> {
    let Some(file) = folder.file("adapter_model.safetensors")? else {
        let found = folder.file("adapter_model.bin")?.is_some();
        let hint = if found { "; adapter_model.bin is not read, convert it to safetensors" } else { "" };
        return Err(Error::load(folder.path().join("adapter_model.safetensors"), format!("no such file{hint}")));
    };
    let checkpoint = Checkpoint::open(&[file], model.spec().nested_as)?;
    let pairs = pairs(&checkpoint)?;
    let mut deltas = Vec::with_capacity(pairs.len());
    for (module, pair) in &pairs {
        let bound = bind(module, pair, &checkpoint, config, model)?;
        deltas.extend(bound);
    }
    checkpoint.finish()?;
    let trained: Vec<(&str, &str)> = pairs
        .iter()
        .filter_map(|(module, pair)| Some((module.as_str(), trained_name(checkpoint.name_in_file(pair.a.as_ref()?)))))
        .collect();
    let in_base: Vec<&str> = model.sites().iter().map(|(_, path)| path).collect();
    config.check_targets(&trained, &in_base, model.spec().nested_as)?;
    if deltas.is_empty() {
        return Err(Error::load(checkpoint.path(), "it changes no module that the forward pass runs"));
    }
    Ok(Adapter::new(deltas))
}

/// A module's name as the trainer's model had it, for which adapter_config.json's patterns are written.
fn trained_name(tensor: &str) -> &str {
    let name = tensor.strip_prefix("base_model.model.").unwrap_or(tensor);
    name.split_once(".lora_").map_or(name, |(module, _)| module)
}

/// Tensors by module: `<module>.lora_A.weight` or `<module>.lora_A.<adapter name>.weight`, and the same with `lora_B`.
fn pairs(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Pair>> {
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for name in checkpoint.names() {
        let fail = |reason: &str| {
            Err(Error::load(checkpoint.path(), format!("tensor '{}' {reason}", checkpoint.name_in_file(name))))
        };
        let Some((module, half)) = name.split_once(".lora_") else { return fail("is not part of a LoRA update") };
        let (half, rest) = half.split_once('.').unwrap_or((half, ""));
        let is_weight = rest == "weight" || rest.strip_suffix(".weight").is_some_and(|infix| !infix.contains('.'));
        if !is_weight || !["A", "B"].contains(&half) {
            return fail("is not supported; supported: lora_A.weight, lora_B.weight");
        }
        let pair = pairs.entry(module.to_owned()).or_default();
        let place = if half == "A" { &mut pair.a } else { &mut pair.b };
        if let Some(other) = place.replace(name.to_owned()) {
            let reason = format!("and '{}' belong to two adapters in one file", checkpoint.name_in_file(&other));
            return fail(&reason);
        }
    }
    Ok(pairs)
}

/// One module's delta; none where the module is one that no forward pass runs.
fn bind(
    module: &str,
    pair: &Pair,
    checkpoint: &Checkpoint,
    config: &Config,
    model: &Model,
) -> Result<Option<(crate::model::Site, Delta)>> {
    let fail = |reason: String| Error::load(checkpoint.path(), reason);
    let (a, b) = match (&pair.a, &pair.b) {
        (Some(a), Some(b)) => (a, b),
        (Some(a), None) => {
            return Err(fail(format!("tensor '{}' has no lora_B beside it", checkpoint.name_in_file(a))));
        }
        (None, Some(b)) => {
            return Err(fail(format!("tensor '{}' has no lora_A beside it", checkpoint.name_in_file(b))));
        }
        (None, None) => return Ok(None),
    };
    let shape = |name: &str| match checkpoint.shape(name).as_deref() {
        Some(&[rows, columns]) => Ok([rows, columns]),
        other => Err(fail(format!("tensor '{}' is no matrix: {other:?}", checkpoint.name_in_file(name)))),
    };
    let ([rank, inputs], [outputs, b_rank]) = (shape(a)?, shape(b)?);
    let named = trained_name(checkpoint.name_in_file(a));
    if rank != b_rank || rank != config.rank(named) {
        let expected = config.rank(named);
        let reason =
            format!("'{module}': lora_A has rank {rank}, lora_B {b_rank}, adapter_config.json says {expected}");
        return Err(fail(reason));
    }
    if model.is_idle(module) {
        checkpoint.leave(module);
        return Ok(None);
    }
    let Some(site) = model.sites().find(module, SiteKind::Linear) else {
        return Err(fail(format!("tensor '{}': the base has no linear module '{module}'", checkpoint.name_in_file(a))));
    };
    let expected = model.sites().shape(site);
    if expected != [outputs, inputs] {
        let reason =
            format!("does not fit the base: it changes a [{outputs}, {inputs}] matrix, '{module}' is {expected:?}");
        return Err(fail(format!("tensor '{}' {reason}", checkpoint.name_in_file(a))));
    }
    let take = |name: &str, shape: [usize; 2]| checkpoint.take(name, &shape, model.device());
    let a = take(a, [rank, inputs])?.t()?.contiguous()?;
    let b = (take(b, [outputs, rank])?.t()?.contiguous()? * config.scale(named))?;
    Ok(Some((site, Delta::LowRank { a, b })))
}
