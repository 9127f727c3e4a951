//! What is checked of every name when it is loaded: how far an adapter moves a few sentences, and the vectors that its
//! folder expects.

use super::Loaded;
use super::golden::Agreement;
use super::readings::Parts;
use crate::error::{Error, Result};
use crate::kernels::{Format, Threads};
use crate::model::{Adapter, Batch, Model, Pipeline, Segment};
use crate::text::{Prompt, Reading, Truncation};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Short sentences in three scripts.
pub const PROBES: [&str; 3] = ["How do I reset my password?", "Кошка спит на тёплом окне.", "今天的天气很好。"];

/// A cosine distance that two passes of the same weights in f32 stay below, and a trained adapter does not.
const NOTHING: f64 = 1e-10;

/// What loading found out about a name.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Of an adapter.
    pub effect: Option<Effect>,
    /// Of a folder with a file of expected vectors.
    pub golden: Option<Agreement>,
}

/// What an adapter does to its base.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Its kind, rank and scale in words.
    pub kind: String,
    /// What it brings in place of the base's.
    pub overrides: Vec<&'static str>,
    /// The smallest and the largest cosine distance between a probe's vectors with it and without it, both read, pooled and
    /// rounded as the adapter does.
    pub moves: (f64, f64),
}

impl Effect {
    /// Whether it does not move any probe, as an adapter does not that was never trained.
    pub fn is_nothing(&self) -> bool {
        self.moves.1 <= NOTHING
    }

    /// Warns of an adapter that does nothing.
    pub fn warn(&self, adapter: &str) {
        if self.is_nothing() {
            tracing::warn!(adapter, "it moves no probe sentence away from its base; was it trained?");
        }
    }
}

/// Runs probes; what a base alone makes of them is kept for its next adapter of the same kind.
pub struct Prober {
    alone: Mutex<Vec<Alone>>,
    threads: Threads,
}

/// Tokens of a batch of probes.
const BATCH_TOKENS_MAX: usize = 2048;

/// Bases whose vectors are kept, each once for adapters that change the same sites.
const KNOWN_MAX: usize = 256;

/// The probes' vectors under a base alone.
struct Alone {
    model: Arc<Model>,
    pipeline: Arc<Pipeline>,
    /// Of adapters beside which it rounds, see [`Adapter::neutral`].
    footprint: Option<u64>,
    /// What a text made of the probes: equal for adapters that read alike.
    sequences: Vec<Tokens>,
    vectors: Vec<Vec<f64>>,
}

impl Prober {
    /// One that runs them on so many threads; 0: one a core.
    pub fn new(threads: usize) -> Result<Self> {
        Ok(Self { alone: Mutex::default(), threads: Threads::new(threads)? })
    }

    /// What they are run on.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// What an adapter does to its base, whose own model, pipeline and reading these are.
    pub fn effect(&self, loaded: &Loaded, kind: String, base: &Parts) -> Result<Effect> {
        let unread = |error: Error| Error::load(Path::new(&loaded.root), format!("a probe sentence: {error}"));
        let moves = self.moves(loaded, base).map_err(unread)?;
        let pipeline = (!Arc::ptr_eq(&loaded.routes.main().pipeline, &base.pipeline)).then_some("pipeline");
        let overrides = pipeline.into_iter().chain(loaded.routes.main().text.differences(&base.text)).collect();
        Ok(Effect { kind, overrides, moves })
    }

    /// Runs a base once, so that one that cannot is found before the first request.
    pub fn try_out(&self, base: &Parts) -> Result<()> {
        self.vectors(base, None, &read(base, &PROBES[..1], Prompt::Default)?)?;
        Ok(())
    }

    fn moves(&self, loaded: &Loaded, base: &Parts) -> Result<(f64, f64)> {
        let own = loaded.routes.main();
        let sequences = read(own, &PROBES, Prompt::Default)?;
        // An adapter with a larger vocabulary may have made ids that the base has not.
        let vocabulary = base.model.vocabulary(None);
        let known = sequences.iter().flat_map(|tokens| &tokens.ids).all(|id| (*id as usize) < vocabulary);
        let plain = if known { sequences.clone() } else { read(base, &PROBES, Prompt::Default)? };
        // Elsewhere bases and adapters round alike.
        let rounds = !base.model.device().is_cpu() && base.model.format() == Format::Bfloat16;
        let beside = loaded.adapter.as_ref().filter(|_| rounds && Arc::ptr_eq(&own.model, &base.model));
        let before = self.alone(&Parts { model: base.model.clone(), ..own.clone() }, beside, &plain)?;
        let after = self.vectors(own, loaded.adapter.as_ref(), &sequences)?;
        let distances = before.iter().zip(&after).map(|(a, b)| 1.0 - cosine(a, b));
        Ok(distances.fold((f64::INFINITY, 0.0), |(smallest, largest): (f64, f64), distance: f64| {
            (smallest.min(distance.max(0.0)), largest.max(distance))
        }))
    }

    /// A base's vectors; beside an adapter of it, rounded where this one's are.
    fn alone(&self, parts: &Parts, beside: Option<&Arc<Adapter>>, sequences: &[Tokens]) -> Result<Vec<Vec<f64>>> {
        let Parts { model, pipeline, .. } = parts;
        let footprint = beside.map(|adapter| adapter.footprint());
        let same = |known: &&Alone| {
            let of_same = Arc::ptr_eq(&known.model, model) && Arc::ptr_eq(&known.pipeline, pipeline);
            of_same && known.footprint == footprint && known.sequences == sequences
        };
        let known = || self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known().iter().find(same) {
            return Ok(known.vectors.clone());
        }
        let prepared = |adapter: Adapter| adapter.prepared(model.sites(), model.device(), model.format().dtype());
        let neutral = beside.map(|adapter| prepared(adapter.neutral()).map(Arc::new)).transpose()?;
        let vectors = self.vectors(parts, neutral.as_ref(), sequences)?;
        let mut known = known();
        // Another thread may have been faster.
        if !known.iter().any(|one| same(&one)) && known.len() < KNOWN_MAX {
            let (model, pipeline, sequences) = (model.clone(), pipeline.clone(), sequences.to_vec());
            known.push(Alone { model, pipeline, footprint, sequences, vectors: vectors.clone() });
        }
        Ok(vectors)
    }

    /// The vectors of token ids as the pipeline leaves them, in order. One that is not finite is an error.
    pub fn vectors(
        &self,
        Parts { model, pipeline, .. }: &Parts,
        adapter: Option<&Arc<Adapter>>,
        sequences: &[Tokens],
    ) -> Result<Vec<Vec<f64>>> {
        let (mut vectors, mut rest) = (Vec::with_capacity(sequences.len()), sequences);
        let adapter = &adapter.map(|adapter| model.lay(adapter)).transpose()?;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |sequence: &&Tokens| {
                tokens += sequence.ids.len();
                tokens <= BATCH_TOKENS_MAX
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (taken, left) = rest.split_at(count);
            let embed = || model.embed(&batch(taken, adapter, pipeline));
            vectors.extend(if model.device().is_cpu() { self.threads.run(embed) } else { embed() }?);
            rest = left;
        }
        if !vectors.iter().flatten().all(|element| element.is_finite()) {
            return Err(Error::Internal("it gives a vector that is not finite".into()));
        }
        Ok(vectors.into_iter().map(|vector| vector.into_iter().map(f64::from).collect()).collect())
    }
}

/// A text as a model reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    ids: Vec<u32>,
    /// How many at the start are a prompt's.
    prompt: usize,
}

/// Tokens of texts, cut where they are too long.
pub fn read(parts: &Parts, texts: &[impl AsRef<str>], prompt: Prompt) -> Result<Vec<Tokens>> {
    let truncate = Some(Truncation { tokens: None, left: None });
    let reading = Reading { prompt, truncate, ..Reading::default() };
    let text = &parts.text;
    let prompt = if parts.pipeline.leaves_out_prompts() { text.prompt_tokens(&reading)? } else { 0 };
    texts.iter().map(|one| Ok(Tokens { ids: text.encode(one.as_ref(), &reading, "text")?, prompt })).collect()
}

fn batch(sequences: &[Tokens], adapter: &Option<Arc<Adapter>>, pipeline: &Arc<Pipeline>) -> Batch {
    let end = |offset: &mut usize, sequence: &Tokens| {
        *offset += sequence.ids.len();
        Some(*offset)
    };
    Batch {
        ids: sequences.iter().flat_map(|sequence| sequence.ids.iter().copied()).collect(),
        prompts: sequences.iter().map(|sequence| sequence.prompt).collect(),
        offsets: std::iter::once(0).chain(sequences.iter().scan(0, end)).collect(),
        segments: vec![Segment { sequences: 0..sequences.len(), adapter: adapter.clone(), pipeline: pipeline.clone() }],
    }
}

/// NaN where a vector has no length.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot / (length(a) * length(b))
}

/// Euclidean.
pub fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|element| element * element).sum::<f64>().sqrt()
}
