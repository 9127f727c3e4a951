//! Folders to models, pipelines and readers of text, by route: what is equal is loaded once.

use super::fitted::Fitted;
use super::load::Base;
use super::provenance::{Provenance, ReadAs};
use crate::config::PipelineChoice;
use crate::error::Result;
use crate::folder::Folder;
use crate::model::{Adapter, Body, Device, Format, Model, Modules, Pipeline, Routes};
use crate::text::{self, Capacity, Text, Tokenizers};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What texts on one route need.
#[derive(Clone)]
pub struct Parts {
    pub model: Arc<Model>,
    pub pipeline: Arc<Pipeline>,
    pub text: Arc<Text>,
}

/// Loads them.
pub struct Readings {
    device: Device,
    format: Format,
    tokenizers: Tokenizers,
    pipelines: Mutex<Vec<Arc<Pipeline>>>,
}

impl Readings {
    pub fn new(device: Device, format: Format) -> Self {
        Self { device, format, tokenizers: Tokenizers::default(), pipelines: Mutex::default() }
    }

    /// Whether they lie in this machine's own memory.
    pub fn are_on_cpu(&self) -> bool {
        self.device.is_cpu()
    }

    /// A base's, with its models.
    pub fn base(&self, folder: &Folder, progress: &dyn Fn(usize, usize)) -> Result<Routes<Parts>> {
        let listed = Modules::of(folder, None, &self.device)?;
        let own = listed.is_some().then_some(folder);
        let routes = listed.map_or_else(|| Modules::bare(folder).map(Routes::one), Ok)?;
        let mut models: Vec<(PathBuf, Body, Arc<Model>)> = Vec::new();
        routes.map(|modules| {
            let path = modules.folder.path();
            let model = match models.iter().find(|(known, body, _)| known == path && *body == modules.body) {
                Some((.., model)) => {
                    modules.pipeline.check(model.spec())?;
                    model.clone()
                }
                None => {
                    let model = Arc::new(Model::load(modules, &self.device, self.format, progress)?);
                    models.push((path.to_owned(), modules.body, model.clone()));
                    model
                }
            };
            let specials = modules.body == Body::Transformer;
            let source = text::Source { folder: own, body: &modules.folder, specials };
            let text = Text::of(source, None, capacity(&model, None), &self.tokenizers)?;
            let text = Arc::new(text.routed(routes.differ()));
            Ok(Parts { model, pipeline: self.share(&modules.pipeline), text })
        })
    }

    /// Those of an adapter of a base, whose routes have one model, and the bits behind it.
    pub fn adapter(&self, fitted: &Fitted, base: &Base, choice: PipelineChoice) -> Result<(Routes<Parts>, Provenance)> {
        let Fitted { model, adapter, folder: weights, .. } = fitted;
        let (folder, known) = (&weights.afresh(), &base.routes);
        let of_base = |text: &dyn Fn(&Parts) -> Result<Arc<Text>>| {
            known.map(|parts| {
                fitted.check(&parts.pipeline)?;
                Ok(Parts { model: model.clone(), pipeline: parts.pipeline.clone(), text: text(parts)? })
            })
        };
        if choice == PipelineChoice::Base {
            let provenance = base.provenance.with_adapter(weights, folder, ReadAs::Base)?;
            return Ok((of_base(&|parts| Ok(parts.text.clone()))?, provenance));
        }
        let main = known.main();
        let text = |body: &Folder, parts: &Parts| {
            let source = text::Source { folder: Some(folder), body, specials: true };
            let capacity = capacity(&parts.model, Some(adapter));
            Text::of(source, Some(&parts.text), capacity, &self.tokenizers)
        };
        let (routes, read_as) = match Modules::of(folder, Some(model.folder()), &self.device)? {
            Some(own) => {
                let routes = own.map(|modules| {
                    fitted.check(&modules.pipeline)?;
                    let text = Arc::new(text(&modules.folder, main)?.routed(own.differ()));
                    Ok(Parts { model: model.clone(), pipeline: self.share(&modules.pipeline), text })
                });
                (routes?, ReadAs::Own)
            }
            None if choice == PipelineChoice::SentenceTransformers => {
                let text = Arc::new(text(folder, main)?.without_prompts());
                let pipeline = self.share(&Pipeline::default());
                (Routes::one(Parts { model: model.clone(), pipeline, text }), ReadAs::Bare)
            }
            None => {
                let routes = of_base(&|parts| Ok(Arc::new(text(folder, parts)?.routed(known.differ()))));
                (routes?, ReadAs::Own)
            }
        };
        Ok((routes, base.provenance.with_adapter(weights, folder, read_as)?))
    }

    /// One value for equal pipelines, so that their sequences stay one segment.
    fn share(&self, pipeline: &Pipeline) -> Arc<Pipeline> {
        let mut known = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.iter().find(|known| ***known == *pipeline) {
            return known.clone();
        }
        known.push(Arc::new(pipeline.clone()));
        known[known.len() - 1].clone()
    }
}

fn capacity(model: &Model, adapter: Option<&Adapter>) -> Capacity {
    Capacity { positions: model.spec().tokens_max, vocabulary: model.vocabulary(adapter) }
}
