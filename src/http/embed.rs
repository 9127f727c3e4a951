//! The one embedding call that every dialect translates to: validate, resolve, tokenize, submit, join.

use super::names::Names;
use super::offload::{Caller, LARGE_BYTES};
use super::{App, Expected, Serving};
use crate::engine::{Sequence, received};
use crate::error::{Error, Result};
use crate::registry::{Lease, Provenance, Route};
use crate::telemetry;
use crate::text::{Prompt, Reading, Text};
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

/// Bytes of JSON that are read in the time in which one of text is tokenized, where that is fast.
const JSON_PER_TEXT: usize = 8;

/// Runs a call on what the app served when the request came: one that came before draining began is answered. `named` is told
/// which served name answers as soon as that is known.
pub async fn embed(app: &App, serving: &Serving, call: Call, named: impl FnOnce(&str)) -> Result<Answer> {
    let inputs_max = app.config.limits.max_inputs;
    if call.inputs.is_empty() {
        return Err(Error::invalid("input", "'input' must not be empty."));
    }
    if call.inputs.len() > inputs_max {
        let message = format!("'input' has {} elements; at most {inputs_max} are allowed.", call.inputs.len());
        return Err(Error::invalid("input", message));
    }
    let Serving { registry, engine } = serving;
    let model = call.names.for_task(registry, call.names.model(registry)?)?;
    named(model.label());
    let leases = call.names.leases(registry, &model, call.inputs.len())?;
    check_prompt(&call, app.config.limits.max_body_bytes)?;
    let routes: Vec<Arc<Route>> = leases.iter().map(|lease| call.names.route(lease)).collect::<Result<_>>()?;
    check_dimensions(&routes, call.dimensions)?;
    let provenance = provenance(&leases);
    call.expected.check(&provenance)?;
    let began = Instant::now();
    let sequences = tokenize(app, call.inputs, routes, call.reading).await?;
    telemetry::tokenized(began.elapsed());

    let tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
    let admission = engine.admit(sequences.iter().map(Sequence::places).sum())?;
    let replies = engine.submit(sequences, admission)?;
    let mut vectors = Vec::with_capacity(replies.len());
    for reply in replies {
        vectors.push(finish(received(reply.await)?, call.dimensions, call.normalize));
    }
    Ok(Answer { vectors, tokens, model: model.label().to_owned(), provenance })
}

/// Of every name that inputs use, in the order of their first use.
fn provenance(leases: &[Lease]) -> Provenance {
    let mut used = HashSet::new();
    let first_uses = leases.iter().filter(|lease| used.insert(Arc::as_ptr(lease)));
    Provenance::combined(&first_uses.map(|lease| &lease.provenance).collect::<Vec<_>>())
}

/// A caller's own prompt is put before every input: all of them together may be no longer than if they had come so.
fn check_prompt(call: &Call, bytes_max: usize) -> Result<()> {
    let Prompt::Text(prompt) = &call.reading.prompt else { return Ok(()) };
    let inputs = call.inputs.len();
    if prompt.len().saturating_mul(inputs) <= bytes_max {
        return Ok(());
    }
    let message =
        format!("A prompt of {} bytes before each of {inputs} inputs is more than {bytes_max}.", prompt.len());
    Err(Error::invalid("prompt", message))
}

fn check_dimensions(routes: &[Arc<Route>], dimensions: Option<usize>) -> Result<()> {
    let Some(wanted) = dimensions else { return Ok(()) };
    let of = |route: &Arc<Route>| route.target.pipeline().dimension(route.target.model().spec().hidden);
    let smallest = routes.iter().map(of).min().unwrap_or_default();
    if (1..=smallest).contains(&wanted) {
        return Ok(());
    }
    Err(Error::invalid("dimensions", format!("'dimensions' must be between 1 and {smallest}, got {wanted}.")))
}

/// The sequence of every input, in order; what takes long is made on blocking threads.
async fn tokenize(app: &App, inputs: Vec<Input>, routes: Vec<Arc<Route>>, reading: Reading) -> Result<Vec<Sequence>> {
    let (count, reading, caller) = (inputs.len(), Arc::new(reading), Caller::default());
    let json_bytes = work_of(&inputs, &routes, &reading);
    let mut work = inputs.into_iter().zip(routes).enumerate();
    let chunks = std::iter::from_fn(|| Some(work.by_ref().take(CHUNK).collect::<Vec<_>>()).filter(|c| !c.is_empty()));
    let tasks = chunks.map(|chunk| {
        let (reading, gone) = (reading.clone(), caller.gone());
        app.threads.run_large(json_bytes, move || {
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

/// Bytes of JSON that take as long to read as all inputs, as far as it matters: texts are looked at only where it depends on
/// them whether this is worth a hop.
fn work_of(inputs: &[Input], routes: &[Arc<Route>], reading: &Reading) -> usize {
    /// What every input takes.
    const EACH: usize = 512;
    let texts = || {
        let both = inputs.iter().zip(routes);
        both.filter_map(|(input, route)| match input {
            Input::Text(input) => Some((input, &route.text)),
            Input::Tokens(_) => None,
        })
    };
    let json = |text_bytes: usize| inputs.len() * EACH + text_bytes * JSON_PER_TEXT;
    // A caller's own prompt is read with every text.
    let prompt = match &reading.prompt {
        Prompt::Text(prompt) => prompt.len(),
        _ => 0,
    };
    let bytes: usize = texts().map(|(input, _)| prompt + input.len()).sum();
    let depends = json(bytes) < LARGE_BYTES && json(bytes * Text::BY_LIBRARY) >= LARGE_BYTES;
    let work = || texts().map(|(input, text)| prompt * Text::BY_LIBRARY + text.work(input)).sum();
    json(if depends { work() } else { bytes })
}

/// Token ids that come as such have no prompt.
fn sequence(input: Input, route: &Route, reading: &Reading, param: &str) -> Result<Sequence> {
    let Route { target, text } = route;
    let (ids, prompt_tokens) = match input {
        Input::Text(input) if target.pipeline().leaves_out_prompts() => {
            (text.encode(&input, reading, param)?, text.prompt_tokens(reading)?)
        }
        Input::Text(input) => (text.encode(&input, reading, param)?, 0),
        Input::Tokens(ids) => {
            let vocabulary = target.model().vocabulary(target.adapter.as_deref());
            (text.check(ids, vocabulary, reading, param)?, 0)
        }
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
