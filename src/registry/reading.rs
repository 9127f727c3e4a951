//! Whose pipeline, tokenizer and prompts a name uses: an adapter's own, its base's, or neither.

use super::load::Base;
use super::provenance::{Provenance, ReadAs};
use crate::config::PipelineChoice;
use crate::error::Result;
use crate::folder::Folder;
use crate::model::{Adapter, Body, Device, Model, Modules, Pipeline};
use crate::text::{self, Capacity, Text, Tokenizers};
use std::sync::Arc;

/// What follows an adapter's deltas, and how its text is read.
pub struct Used {
    /// What follows.
    pub pipeline: Arc<Pipeline>,
    /// How.
    pub text: Arc<Text>,
    /// The bits behind all of it, deltas included.
    pub provenance: Provenance,
}

/// Loads them, each tokenizer and each pipeline once.
pub struct Readings {
    choice: PipelineChoice,
    device: Device,
    tokenizers: Tokenizers,
    pipelines: Vec<Arc<Pipeline>>,
}

impl Readings {
    /// For models on a device; adapters use whose the operator chose.
    pub fn new(choice: PipelineChoice, device: Device) -> Self {
        Self { choice, device, tokenizers: Tokenizers::default(), pipelines: Vec::new() }
    }

    /// A base's own reading of text.
    pub fn of_base(&mut self, folder: &Folder, modules: &Modules, model: &Model) -> Result<Arc<Text>> {
        let source = text::Source { folder, body: &modules.folder, specials: modules.body == Body::Transformer };
        Ok(Arc::new(Text::of(source, None, capacity(model, None), &mut self.tokenizers)?))
    }

    /// Those of an adapter, whose weights were found in `weights`.
    pub fn of_adapter(&mut self, weights: &Folder, base: &Base, adapter: &Adapter) -> Result<Used> {
        let folder = &weights.afresh();
        if self.choice == PipelineChoice::Base {
            let provenance = base.provenance.with_adapter(weights, folder, ReadAs::Base)?;
            return Ok(Used { pipeline: base.pipeline.clone(), text: base.text.clone(), provenance });
        }
        let own = Modules::of(folder, &self.device)?;
        if let Some(own) = &own {
            own.pipeline.check(base.model.spec().hidden)?;
        }
        let body = own.as_ref().map_or(folder, |own| &own.folder);
        let source = text::Source { folder, body, specials: true };
        let text = Text::of(source, Some(&base.text), capacity(&base.model, Some(adapter)), &mut self.tokenizers)?;
        let (pipeline, text, read_as) = match own {
            Some(own) => (self.share(own.pipeline), text, ReadAs::Own),
            None if self.choice == PipelineChoice::SentenceTransformers => {
                (self.share(Pipeline::default()), text.without_prompts(), ReadAs::Bare)
            }
            None => (base.pipeline.clone(), text, ReadAs::Own),
        };
        let provenance = base.provenance.with_adapter(weights, folder, read_as)?;
        Ok(Used { pipeline, text: Arc::new(text), provenance })
    }

    /// One value for equal pipelines, so that their sequences stay one segment.
    pub fn share(&mut self, pipeline: Pipeline) -> Arc<Pipeline> {
        if let Some(known) = self.pipelines.iter().find(|known| ***known == pipeline) {
            return known.clone();
        }
        self.pipelines.push(Arc::new(pipeline));
        self.pipelines[self.pipelines.len() - 1].clone()
    }
}

fn capacity(model: &Model, adapter: Option<&Adapter>) -> Capacity {
    Capacity { positions: model.spec().tokens_max, vocabulary: model.vocabulary(adapter) }
}
