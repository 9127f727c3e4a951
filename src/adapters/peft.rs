//! A PEFT checkpoint's tensors to the deltas of one model. Everything binds, or the load fails and names what did not.

use super::Config;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::model::{Adapter, Checkpoint, DType, Delta, Magnitude, Model, SiteKind, Weight};
use std::collections::BTreeMap;

/// The two halves of one module's update, as canonical tensor names.
struct Pair {
    kind: SiteKind,
    a: Option<String>,
    b: Option<String>,
    /// Of the second half.
    bias: Option<String>,
    /// DoRA's lengths.
    magnitude: Option<String>,
}

impl Pair {
    fn new(kind: SiteKind) -> Self {
        Self { kind, a: None, b: None, bias: None, magnitude: None }
    }
}

/// Ends of tensor names that are understood.
const SUPPORTED: &str =
    "lora_A.weight, lora_B.weight, lora_B.bias, lora_magnitude_vector, lora_embedding_A, lora_embedding_B";

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
    base_layers(&checkpoint, model)?;
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

/// Tensors by module: `<module>.lora_A.weight` or `<module>.lora_A.<adapter name>.weight`, of an embedding
/// `<module>.lora_embedding_A` or `<module>.lora_embedding_A.<adapter name>`, and the same with B.
fn pairs(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Pair>> {
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for name in checkpoint.names() {
        let fail = |reason: &str| {
            Err(Error::load(checkpoint.path(), format!("tensor '{}' {reason}", checkpoint.name_in_file(name))))
        };
        if name.ends_with(BASE_LAYER) {
            continue;
        }
        let Some((module, half)) = name.split_once(".lora_") else { return fail("is not part of a LoRA update") };
        let (half, rest) = half.split_once('.').unwrap_or((half, ""));
        // With or without the adapter's name between.
        let infix = |last: &str| rest.strip_suffix(last)?.strip_suffix('.');
        let ends = |last: &str| rest == last || infix(last).is_some_and(|infix| !infix.contains('.'));
        let bare = !rest.contains('.');
        let (kind, place): (SiteKind, fn(&mut Pair) -> &mut Option<String>) = match half {
            "A" if ends("weight") => (SiteKind::Linear, |pair| &mut pair.a),
            "B" if ends("weight") => (SiteKind::Linear, |pair| &mut pair.b),
            "B" if ends("bias") => (SiteKind::Linear, |pair| &mut pair.bias),
            "magnitude_vector" if bare || ends("weight") => (SiteKind::Linear, |pair| &mut pair.magnitude),
            "embedding_A" if bare => (SiteKind::Table, |pair| &mut pair.a),
            "embedding_B" if bare => (SiteKind::Table, |pair| &mut pair.b),
            _ => return fail(&format!("is not supported; supported: {SUPPORTED}")),
        };
        let pair = pairs.entry(module.to_owned()).or_insert_with(|| Pair::new(kind));
        if pair.kind != kind {
            return fail("belongs to a module that is a linear one by another tensor, and an embedding by this one");
        }
        if let Some(other) = place(pair).replace(name.to_owned()) {
            let reason = format!("and '{}' belong to two adapters in one file", checkpoint.name_in_file(&other));
            return fail(&reason);
        }
    }
    Ok(pairs)
}

/// What PEFT calls the base's own weight under an update.
const BASE_LAYER: &str = ".base_layer.weight";

/// PEFT saves the whole embedding beside an update of it; it must be the base's.
fn base_layers(checkpoint: &Checkpoint, model: &Model) -> Result<()> {
    for name in checkpoint.names().filter(|name| name.ends_with(BASE_LAYER)) {
        let module = name.strip_suffix(BASE_LAYER).unwrap_or(name);
        let site = model.sites().find(module, SiteKind::Table);
        let Some(Weight { weight: rows, .. }) = site.and_then(|site| model.sites().weight(site)) else { continue };
        let stored = checkpoint.take(name, rows.dims(), model.device())?.to_dtype(rows.dtype())?;
        let (stored, rows) = (stored.to_dtype(DType::F32)?, rows.to_dtype(DType::F32)?);
        if (stored - rows)?.abs()?.max_all()?.to_scalar::<f32>()? != 0.0 {
            let reason = format!("tensor '{}' is another embedding than the base's", checkpoint.name_in_file(name));
            return Err(Error::load(checkpoint.path(), format!("{reason}, which is not supported")));
        }
    }
    Ok(())
}

/// Both halves of an update; none where only what goes with them is there, which then nothing reads.
fn halves<'a>(pair: &'a Pair, checkpoint: &Checkpoint) -> Result<Option<(&'a String, &'a String)>> {
    let alone = |name: &str, other: &str| {
        let name = checkpoint.name_in_file(name);
        Err(Error::load(checkpoint.path(), format!("tensor '{name}' has no {other} beside it")))
    };
    match (&pair.a, &pair.b) {
        (Some(a), Some(b)) => Ok(Some((a, b))),
        (Some(a), None) => alone(a, "lora_B"),
        (None, Some(b)) => alone(b, "lora_A"),
        (None, None) => Ok(None),
    }
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
    let Some((a, b)) = halves(pair, checkpoint)? else { return Ok(None) };
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
    let (what, found) = match pair.kind {
        SiteKind::Linear => ("linear module", [outputs, inputs]),
        SiteKind::Table => ("embedding", [inputs, outputs]),
    };
    let Some(site) = model.sites().find(module, pair.kind) else {
        return Err(fail(format!("tensor '{}': the base has no {what} '{module}'", checkpoint.name_in_file(a))));
    };
    let expected = model.sites().shape(site);
    if expected != found {
        let reason = format!("does not fit the base: it changes a {found:?} matrix, '{module}' is {expected:?}");
        return Err(fail(format!("tensor '{}' {reason}", checkpoint.name_in_file(a))));
    }
    let take = |name: &str, shape: [usize; 2]| checkpoint.take(name, &shape, model.device());
    let a = take(a, [rank, inputs])?.t()?.contiguous()?;
    let b = (take(b, [outputs, rank])?.t()?.contiguous()? * config.scale(named))?;
    let agrees = |found: &Option<String>, says: bool, key: &str, tensor: &str| match found {
        Some(name) if !says => {
            let name = checkpoint.name_in_file(name);
            Err(fail(format!("tensor '{name}' is there, but adapter_config.json says {key} = false")))
        }
        None if says => Err(fail(format!("'{module}' has no {tensor}, but adapter_config.json says {key} = true"))),
        _ => Ok(()),
    };
    agrees(&pair.bias, config.has_bias && pair.kind == SiteKind::Linear, "lora_bias", "lora_B.bias")?;
    agrees(&pair.magnitude, config.is_dora, "use_dora", "lora_magnitude_vector")?;
    let bias = pair.bias.as_ref().map(|bias| -> Result<_> {
        Ok((checkpoint.take(bias, &[outputs], model.device())?.reshape((1, outputs))? * config.scale(named))?)
    });
    let magnitude = match (&pair.magnitude, model.sites().weight(site)) {
        (None, _) => None,
        (Some(name), Some(base)) => {
            let m = checkpoint.take(name, &[outputs], model.device())?;
            Some(Magnitude::new(&m, &a, &b, base)?)
        }
        (Some(name), None) => {
            return Err(fail(format!("tensor '{name}': DoRA of an embedding is not supported")));
        }
    };
    Ok(Some((site, Delta::LowRank { a, b, bias: bias.transpose()?, magnitude })))
}
