//! The one embedding call that every dialect translates to: validate, resolve, tokenize, submit, join.

use super::offload::Caller;
use super::{App, Expected, Serving};
use crate::engine::{self, Sequence};
use crate::error::{Error, Result};
use crate::registry::{Lease, Provenance, Registry};
use crate::telemetry;
use crate::text::{Reading, names_of};
use futures_util::future::try_join_all;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

/// One request, whatever its dialect.
pub struct Call {
    /// Which model and adapters.
    pub names: Names,
    /// The inputs, in order.
    pub inputs: Vec<Input>,
    /// How they are read.
    pub reading: Reading,
    /// Keep so many leading dimensions.
    pub dimensions: Option<usize>,
    /// Whether vectors leave with unit length.
    pub normalize: bool,
    /// Which bits may answer it.
    pub expected: Expected,
}

/// The places where a request can name what it wants.
#[derive(Default)]
pub struct Names {
    /// A base, an adapter or `base:adapter`.
    pub model: Option<String>,
    /// An adapter, each with the place that names it; all must agree.
    pub adapters: Vec<(&'static str, String)>,
    /// What the vectors are for, each with the place that says so: it chooses among the adapters inside a base's own
    /// checkpoint.
    pub tasks: Vec<(&'static str, String)>,
    /// One adapter an input, none for the base.
    pub by_input: Option<Vec<Option<String>>>,
}

/// One input.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Text.
    Text(String),
    /// Token ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// What came of a call.
pub struct Answer {
    /// One vector an input, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs, specials included.
    pub tokens: usize,
    /// The served name that answered.
    pub model: String,
    /// The bits behind it: of every name that inputs use, in the order of their first use.
    pub provenance: Provenance,
}

/// Texts that one blocking task tokenizes.
const CHUNK: usize = 64;

/// Runs a call on what the app served when the request came: one that came before draining began is answered.
pub async fn embed(app: &App, serving: &Serving, call: Call) -> Result<Answer> {
    let inputs_max = app.config.limits.max_inputs;
    if call.inputs.is_empty() {
        return Err(Error::invalid("input", "'input' must not be empty."));
    }
    if call.inputs.len() > inputs_max {
        let message = format!("'input' has {} elements; at most {inputs_max} are allowed.", call.inputs.len());
        return Err(Error::invalid("input", message));
    }
    let model = call.names.for_task(&serving.registry, call.names.model(&serving.registry)?)?;
    let leases = call.names.leases(&serving.registry, &model, call.inputs.len())?;
    check_dimensions(&leases, call.dimensions)?;
    let provenance = provenance(&leases);
    call.expected.check(&provenance)?;
    let began = Instant::now();
    let ids = tokenize(app, call.inputs, &leases, call.reading).await?;
    telemetry::tokenized(began.elapsed());

    let tokens = ids.iter().map(Vec::len).sum();
    let sequence = |(ids, lease): (Vec<u32>, &Lease)| Sequence { ids, target: lease.target.clone() };
    let sequences: Vec<Sequence> = ids.into_iter().zip(&leases).map(sequence).collect();
    let admission = serving.engine.admit(sequences.iter().map(Sequence::places).sum())?;
    let replies = serving.engine.submit(sequences, admission)?;
    let mut vectors = Vec::with_capacity(replies.len());
    for reply in replies {
        vectors.push(finish(engine::received(reply.await)?, call.dimensions, call.normalize));
    }
    Ok(Answer { vectors, tokens, model: model.target.label.clone(), provenance })
}

impl Names {
    /// The base or adapter that the request as a whole names.
    fn model(&self, registry: &Registry) -> Result<Lease> {
        let mut adapters = self.adapters.iter();
        let wanted = adapters.next();
        if let Some((place, name)) = wanted
            && let Some((other_place, other)) = adapters.find(|(_, other)| other != name)
        {
            let message = format!("{place} names the adapter '{name}', but {other_place} names '{other}'.");
            return Err(Error::invalid("adapter", message));
        }
        match (self.model.as_deref(), wanted) {
            (None, None) => Err(Error::invalid("model", "You must provide a 'model' parameter.")),
            (None, Some((_, adapter))) => registry.find(adapter),
            (Some(model), None) => registry.find(model),
            (Some(model), Some((place, adapter))) => combine(registry, &registry.find(model)?, place, adapter),
        }
    }

    /// What the task makes of the model that is named: a base with an adapter a task is asked for with that adapter.
    fn for_task(&self, registry: &Registry, model: Lease) -> Result<Lease> {
        let has: Vec<&str> = model.target.model.tasks().iter().map(|(name, _)| name.as_str()).collect();
        let Some((place, task)) = self.tasks.first().filter(|_| !has.is_empty()) else { return Ok(model) };
        let find = |task: &str| {
            let known = names_of(task).unwrap_or(&[]).iter().copied().chain([task]).find(|name| has.contains(name));
            known.map(str::to_owned).ok_or_else(|| {
                let message = format!("The model has no task '{task}'; it has: {}.", has.join(", "));
                Error::invalid("task", message)
            })
        };
        let name = find(task)?;
        for (other_place, other) in &self.tasks {
            if find(other)? != name {
                let message = format!("{place} is '{task}', but {other_place} is '{other}'.");
                return Err(Error::invalid("task", message));
            }
        }
        if model.parent.is_none() {
            return registry.on(&model.name, &name).ok_or(Error::UnknownModel(name));
        }
        if has.contains(&model.name.as_str()) && model.name != name {
            let message = format!("The model is the adapter '{}', but {place} is '{task}'.", model.name);
            return Err(Error::invalid("task", message));
        }
        Ok(model)
    }

    /// One lease an input.
    fn leases(&self, registry: &Registry, model: &Lease, inputs: usize) -> Result<Vec<Lease>> {
        let Some(by_input) = &self.by_input else { return Ok(vec![model.clone(); inputs]) };
        if by_input.len() != inputs {
            let message = format!("'adapters' has {} elements for {inputs} inputs.", by_input.len());
            return Err(Error::invalid("adapters", message));
        }
        let lease = |(index, adapter): (usize, &Option<String>)| match adapter {
            Some(adapter) => combine(registry, model, &format!("adapters[{index}]"), adapter),
            None => Ok(model.clone()),
        };
        by_input.iter().enumerate().map(lease).collect()
    }
}

/// A base and an adapter of it; an adapter and itself.
fn combine(registry: &Registry, model: &Lease, place: &str, adapter: &str) -> Result<Lease> {
    match &model.parent {
        Some(base) if model.name == adapter || format!("{base}:{}", model.name) == adapter => Ok(model.clone()),
        Some(_) => {
            let message = format!("The model is the adapter '{}', but {place} names '{adapter}'.", model.name);
            Err(Error::invalid("adapter", message))
        }
        None if model.name == adapter => Ok(model.clone()),
        None => {
            let name = adapter.strip_prefix(&format!("{}:", model.name)).unwrap_or(adapter);
            registry.on(&model.name, name).ok_or_else(|| Error::UnknownModel(format!("{}:{name}", model.name)))
        }
    }
}

/// Of every name that inputs use, in the order of their first use.
fn provenance(leases: &[Lease]) -> Provenance {
    let mut used = HashSet::new();
    let first_uses = leases.iter().filter(|lease| used.insert(Arc::as_ptr(lease)));
    Provenance::combined(&first_uses.map(|lease| &lease.provenance).collect::<Vec<_>>())
}

fn check_dimensions(leases: &[Lease], dimensions: Option<usize>) -> Result<()> {
    let Some(wanted) = dimensions else { return Ok(()) };
    let of = |lease: &Lease| lease.target.pipeline.dimension(lease.target.model.spec().hidden);
    let smallest = leases.iter().map(of).min().unwrap_or_default();
    if (1..=smallest).contains(&wanted) {
        return Ok(());
    }
    Err(Error::invalid("dimensions", format!("'dimensions' must be between 1 and {smallest}, got {wanted}.")))
}

/// Token ids of every input, made on blocking threads, in order.
async fn tokenize(app: &App, inputs: Vec<Input>, leases: &[Lease], reading: Reading) -> Result<Vec<Vec<u32>>> {
    let (count, reading, caller) = (inputs.len(), Arc::new(reading), Caller::default());
    let mut work = inputs.into_iter().zip(leases.iter().cloned()).enumerate();
    let chunks = std::iter::from_fn(|| Some(work.by_ref().take(CHUNK).collect::<Vec<_>>()).filter(|c| !c.is_empty()));
    let tasks = chunks.map(|chunk| {
        let (reading, gone) = (reading.clone(), caller.gone());
        app.threads.run(move || {
            let read = |(index, (input, lease)): (usize, (Input, Lease))| {
                gone.check()?;
                let param = if count == 1 { "input".to_owned() } else { format!("input[{index}]") };
                match input {
                    Input::Text(text) => lease.text.encode(&text, &reading, &param),
                    Input::Tokens(ids) => {
                        let vocabulary = lease.target.model.vocabulary(lease.target.adapter.as_deref());
                        lease.text.check(ids, vocabulary, &reading, &param)
                    }
                }
            };
            chunk.into_iter().map(read).collect::<Result<Vec<_>>>()
        })
    });
    Ok(try_join_all(tasks).await?.into_iter().flatten().collect())
}

/// Leading dimensions and unit length, in this order, as OpenAI's `dimensions` means it.
fn finish(mut vector: Vec<f32>, dimensions: Option<usize>, normalize: bool) -> Vec<f32> {
    if let Some(dimensions) = dimensions {
        vector.truncate(dimensions);
    }
    if normalize {
        let length = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
        vector.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
    vector
}
