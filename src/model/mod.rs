//! A folder to a model, and a packed batch to vectors. Knows no text, no HTTP, no queue and no PEFT file.

mod checkpoint;
mod delta;
mod families;
mod layers;
mod pipeline;
mod spec;
mod transformer;

pub use checkpoint::{Checkpoint, canonical};
pub use delta::{Adapter, Delta, Plan, Site, Sites};
pub use pipeline::{Modules, Pipeline};
pub use spec::Spec;

use crate::error::{Error, Result};
use crate::folder::Folder;
pub use candle_core::Device;
use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;
use transformer::Transformer;

/// A base model on a device.
pub struct Model {
    spec: Spec,
    sites: Sites,
    transformer: Transformer,
    device: Device,
    bytes: usize,
}

/// Packed sequences, sorted so that each segment is one row range.
pub struct Batch {
    /// Token ids of all sequences, one after the other.
    pub ids: Vec<u32>,
    /// First token of every sequence, and the total.
    pub offsets: Vec<usize>,
    /// All sequences, in order, by what is done with them.
    pub segments: Vec<Segment>,
}

/// Neighbouring sequences of one adapter and one pipeline.
pub struct Segment {
    /// Which sequences of the batch.
    pub sequences: Range<usize>,
    /// None: the base alone.
    pub adapter: Option<Arc<Adapter>>,
    /// What follows the transformer.
    pub pipeline: Arc<Pipeline>,
}

impl Model {
    /// Loads config.json and the weights beside it; `progress` hears how many of how many blocks are there.
    pub fn load(folder: &Folder, device: &Device, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let spec = families::spec(folder)?;
        let checkpoint = Checkpoint::of_model(folder, spec.nested_as)?;
        let mut loader = layers::Loader::new(&checkpoint, device, spec.tokens_max);
        let blocks = spec.layers.len();
        let transformer = Transformer::load(&spec, &mut loader, &|done| progress(done, blocks))?;
        let sites = loader.sites;
        spec.idle.iter().for_each(|module| checkpoint.leave(module));
        checkpoint.finish()?;
        let bytes = checkpoint.bytes_taken();
        Ok(Self { spec, sites, transformer, device: device.clone(), bytes })
    }

    /// Its architecture.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What adapters can change.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// Whether a module is one that no forward pass runs.
    pub fn is_idle(&self, module: &str) -> bool {
        self.spec.idle.iter().any(|idle| module == idle || module.starts_with(&format!("{idle}.")))
    }

    /// Where it lies.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of its weights in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// One vector a sequence, in the batch's order: one pass of the transformer, the pipelines by segment, one copy
    /// to the host.
    pub fn embed(&self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        let rows = |segment: &Segment| batch.offsets[segment.sequences.start]..batch.offsets[segment.sequences.end];
        let plan = Plan::new(batch.segments.iter().map(|segment| (rows(segment), segment.adapter.clone())));
        let hidden = self.transformer.forward(&batch.ids, &batch.offsets, &plan)?;
        let mut vectors = Vec::with_capacity(batch.offsets.len() - 1);
        for segments in batch.segments.chunk_by(|a, b| Arc::ptr_eq(&a.pipeline, &b.pipeline)) {
            let (Some(first), Some(last)) = (segments.first(), segments.last()) else { continue };
            let (start, end) = (rows(first).start, rows(last).end);
            let offsets = &batch.offsets[first.sequences.start..=last.sequences.end];
            let offsets: Vec<usize> = offsets.iter().map(|offset| offset - start).collect();
            let hidden: Tensor = hidden.narrow(0, start, end - start)?;
            vectors.extend(first.pipeline.forward(&hidden, &offsets)?.to_vec2::<f32>()?);
        }
        if vectors.len() + 1 != batch.offsets.len() {
            return Err(Error::Internal("segments do not cover the batch".into()));
        }
        Ok(vectors)
    }
}
