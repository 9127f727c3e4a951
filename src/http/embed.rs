//! The one embedding call that every dialect translates to: validate, resolve, tokenize, submit, join.

use super::names::Names;
use super::offload::Caller;
use super::{App, Expected, Serving};
use crate::engine::{self, Sequence};
use crate::error::{Error, Result};
use crate::registry::{Lease, Provenance};
use crate::telemetry;
use crate::text::Reading;
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
