//! The one embedding call that every dialect translates to: validate, resolve, tokenize, submit, join.

use super::offload::Caller;
use super::{App, Serving};
use crate::engine::{self, Sequence};
use crate::error::{Error, Result};
use crate::registry::{Lease, Registry, Route};
use crate::telemetry;
use crate::text::{Reading, names_of};
use futures_util::future::try_join_all;
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
}

/// The places where a request can name what it wants.
#[derive(Default)]
pub struct Names {
    /// A base, an adapter or `base:adapter`.
    pub model: Option<String>,
    /// An adapter, each with the place that names it; all must agree.
    pub adapters: Vec<(&'static str, String)>,
    /// What the vectors are for, each with the place that says so: it chooses among a model's routes, and among the
    /// adapters inside a base's own checkpoint.
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
    let routes: Vec<Arc<Route>> = leases.iter().map(|lease| call.names.route(lease)).collect::<Result<_>>()?;
    check_dimensions(&routes, call.dimensions)?;
    let began = Instant::now();
    let sequences = tokenize(app, call.inputs, routes, call.reading).await?;
    telemetry::tokenized(began.elapsed());

    let tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
    let admission = serving.engine.admit(sequences.iter().map(Sequence::places).sum())?;
    let replies = serving.engine.submit(sequences, admission)?;
    let mut vectors = Vec::with_capacity(replies.len());
    for reply in replies {
        vectors.push(finish(engine::received(reply.await)?, call.dimensions, call.normalize));
    }
    Ok(Answer { vectors, tokens, model: model.label().to_owned() })
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
        let has: Vec<&str> = model.main().target.model.tasks().iter().map(|(name, _)| name.as_str()).collect();
        let Some((place, task)) = self.tasks.first().filter(|_| !has.is_empty()) else { return Ok(model) };
        let find = |task: &str| {
            let known = names_of(task).find(|name| has.contains(name));
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

    /// The route of a model that the kind of text leads to.
    fn route(&self, lease: &Lease) -> Result<Arc<Route>> {
        let Some((place, kind)) = self.tasks.first() else { return lease.route(None).cloned() };
        let route = lease.route(Some(kind))?;
        for (other_place, other) in &self.tasks {
            if !Arc::ptr_eq(lease.route(Some(other))?, route) {
                let message = format!("{place} is '{kind}', but {other_place} is '{other}'.");
                return Err(Error::invalid("task", message));
            }
        }
        Ok(route.clone())
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

fn check_dimensions(routes: &[Arc<Route>], dimensions: Option<usize>) -> Result<()> {
    let Some(wanted) = dimensions else { return Ok(()) };
    let of = |route: &Arc<Route>| route.target.pipeline.dimension(route.target.model.spec().hidden);
    let smallest = routes.iter().map(of).min().unwrap_or_default();
    if (1..=smallest).contains(&wanted) {
        return Ok(());
    }
    Err(Error::invalid("dimensions", format!("'dimensions' must be between 1 and {smallest}, got {wanted}.")))
}

/// The sequence of every input, made on blocking threads, in order.
async fn tokenize(app: &App, inputs: Vec<Input>, routes: Vec<Arc<Route>>, reading: Reading) -> Result<Vec<Sequence>> {
    let (count, reading, caller) = (inputs.len(), Arc::new(reading), Caller::default());
    let mut work = inputs.into_iter().zip(routes).enumerate();
    let chunks = std::iter::from_fn(|| Some(work.by_ref().take(CHUNK).collect::<Vec<_>>()).filter(|c| !c.is_empty()));
    let tasks = chunks.map(|chunk| {
        let (reading, gone) = (reading.clone(), caller.gone());
        app.threads.run(move || {
            let read = |(index, (input, route)): (usize, (Input, Arc<Route>))| {
                gone.check()?;
                let param = if count == 1 { "input".to_owned() } else { format!("input[{index}]") };
                sequence(input, &route, &reading, &param)
            };
            chunk.into_iter().map(read).collect::<Result<Vec<_>>>()
        })
    });
    Ok(try_join_all(tasks).await?.into_iter().flatten().collect())
}

/// Token ids that come as such have no prompt.
fn sequence(input: Input, route: &Route, reading: &Reading, param: &str) -> Result<Sequence> {
    let Route { target, text } = route;
    let (ids, prompt_tokens) = match input {
        Input::Text(input) if target.pipeline.leaves_out_prompts() => {
            (text.encode(&input, reading, param)?, text.prompt_tokens(reading)?)
        }
        Input::Text(input) => (text.encode(&input, reading, param)?, 0),
        Input::Tokens(ids) => (text.check(ids, target.model.spec().embedding.word.rows, reading, param)?, 0),
    };
    Ok(Sequence { ids, prompt_tokens, target: target.clone() })
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
