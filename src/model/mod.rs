//! A folder to a model, and a packed batch to vectors. Knows no text, no HTTP, no queue and no PEFT file.

mod checkpoint;
mod delta;
mod families;
mod layers;
mod modules;
mod pickle;
mod pipeline;
mod repetition;
mod room;
mod routes;
mod sites;
mod spec;
mod static_embedding;
mod tasks;
mod transformer;

pub use checkpoint::{Checkpoint, canonical};
pub use delta::{Adapter, Delta, LinearDelta, LowRank, Magnitude, NormDelta, OwnRows, Plan, TableDelta};
pub use families::tokenizers;
pub use modules::{Body, Modules};
pub use pipeline::{Pipeline, States};
pub use routes::Routes;
pub use sites::{Site, SiteKind, Sites, Weight};
pub use spec::Spec;

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::{Arrived, Departed, Sequences, Tensor};
pub use crate::kernels::{Device, Format};
pub use candle_core::DType;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use transformer::Transformer;

/// Tokens of a batch for which a GPU computes in less time than it takes to ask for it kernel by kernel, at most.
const SMALL_TOKENS_MAX: usize = 1024;

/// A base model on a device.
pub struct Model {
    spec: Spec,
    sites: Sites,
    transformer: Transformer,
    tasks: Vec<(String, Arc<Adapter>)>,
    idle: HashMap<String, Vec<usize>>,
    device: Device,
    format: Format,
    bytes: usize,
    /// Where it was loaded from, and what of it another model of these files can share.
    folder: Folder,
    shared: layers::Shared,
}

/// Packed sequences, sorted so that each segment is one row range.
pub struct Batch {
    /// Token ids of all sequences, one after the other.
    pub ids: Vec<u32>,
    /// First token of every sequence, and the total.
    pub offsets: Vec<usize>,
    /// How many tokens at the start of every sequence are its prompt's.
    pub prompts: Vec<usize>,
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
    /// Loads a folder's body, matrices in `format`; `progress` hears how many of how many blocks are there.
    pub fn load(modules: &Modules, device: &Device, format: Format, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let (spec, checkpoint) = match modules.body {
            Body::Static => static_embedding::open(&modules.folder)?,
            Body::Transformer => {
                let spec = families::spec(&modules.folder)?;
                let checkpoint = Checkpoint::of_model(&modules.folder, spec.nested_as)?;
                (spec, checkpoint)
            }
        };
        modules.pipeline.check(&spec)?;
        let loader = layers::Loader::new(&checkpoint, device, format, spec.tokens_max);
        let model = Self::assemble(spec, loader, modules.folder.clone(), progress);
        let model = model.map_err(|error| no_room(error, &modules.folder))?;
        model.spec.idle.iter().for_each(|module| checkpoint.leave(module));
        checkpoint.leave_computed();
        checkpoint.finish()?;
        Ok(model)
    }

    /// Loads what a spec names, and nothing else that the checkpoint has.
    fn assemble(
        spec: Spec,
        mut loader: layers::Loader,
        folder: Folder,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self> {
        let blocks = spec.layers.len();
        let transformer = Transformer::load(&spec, &mut loader, &|done| progress(done, blocks))?;
        let layers::Loader { checkpoint, device, format, sites, shared, .. } = loader;
        let tasks = spec.tasks.as_ref();
        let tasks = tasks.map(|tasks| tasks::load(tasks, &sites, checkpoint, device, format.dtype()));
        let tasks = tasks.transpose()?;
        let idle = checkpoint.names().filter(|name| is_below(name, &spec.idle));
        let idle = idle.filter_map(|name| Some((name.to_owned(), checkpoint.shape(name)?))).collect();
        let bytes = checkpoint.bytes_taken();
        let (tasks, device) = (tasks.unwrap_or_default(), device.clone());
        Ok(Self { spec, sites, transformer, tasks, idle, device, format, bytes, folder, shared })
    }

    /// Its architecture.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What adapters can change.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// The adapters in its own checkpoint, by name.
    pub fn tasks(&self) -> &[(String, Arc<Adapter>)] {
        &self.tasks
    }

    /// Whether a module is one that no forward pass runs.
    pub fn is_idle(&self, module: &str) -> bool {
        is_below(module, &self.spec.idle)
    }

    /// Rows of the word embedding, the base's or an adapter's own.
    pub fn vocabulary(&self, adapter: Option<&Adapter>) -> usize {
        self.words().and_then(|site| adapter?.table_rows(site)).unwrap_or(self.spec.embedding.word.rows)
    }

    /// The site of the word embedding.
    pub fn words(&self) -> Option<Site> {
        self.sites.find(&self.spec.embedding.word.path)
    }

    /// The shape of a tensor of such a module, where the base's checkpoint has it.
    pub fn idle_shape(&self, name: &str) -> Option<&[usize]> {
        self.idle.get(name).map(Vec::as_slice)
    }

    /// The folder of its config.json and weights.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Where it lies.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How its matrices lie there.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of its weights in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// An adapter of this model, no blend, where the model lies, brought there beside whatever is computed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where a GPU has no room for it.
    pub fn lay(&self, adapter: &Arc<Adapter>) -> Result<Arc<Adapter>> {
        let Device::Gpu(gpu) = &self.device else { return Ok(adapter.clone()) };
        let beside = gpu.beside();
        let laid = adapter.placed(&self.sites, &Device::Gpu(beside.clone()), self.format.dtype());
        beside.synchronize()?;
        Ok(Arc::new(laid?))
    }

    /// One vector a sequence, in the batch's order: one pass of the transformer, and the pipelines by segment.
    pub fn embed(&self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        let vectors = self.begin(batch)?.wait()?;
        Ok((0..batch.offsets.len() - 1).map(|sequence| vectors.of(sequence)).collect())
    }

    /// The same, which on a GPU is not there yet when this returns.
    pub fn begin(&self, batch: &Batch) -> Result<Pending> {
        match &self.device {
            Device::Gpu(gpu) if batch.ids.len() <= SMALL_TOKENS_MAX => gpu.pass(|| self.ask(batch)),
            _ => self.ask(batch),
        }
    }

    fn ask(&self, batch: &Batch) -> Result<Pending> {
        let rows = |segment: &Segment| batch.offsets[segment.sequences.start]..batch.offsets[segment.sequences.end];
        let plan =
            Plan::new(batch.segments.iter().map(|segment| (rows(segment), segment.adapter.clone())), &batch.offsets)?;
        let sequences = Sequences::new(batch.offsets.clone(), &self.device)?;
        let mut layers = Vec::new();
        let kept = batch.segments.iter().any(|segment| segment.pipeline.reads_layers()).then_some(&mut layers);
        let hidden = self.transformer.forward(&batch.ids, &sequences, &plan, kept)?;
        let mut parts = Vec::new();
        for segments in batch.segments.chunk_by(|a, b| Arc::ptr_eq(&a.pipeline, &b.pipeline)) {
            let (Some(first), Some(last)) = (segments.first(), segments.last()) else { continue };
            let (start, end) = (rows(first).start, rows(last).end);
            let sequences = first.sequences.start..last.sequences.end;
            let offsets = &batch.offsets[sequences.start..=sequences.end];
            let offsets: Vec<usize> = offsets.iter().map(|offset| offset - start).collect();
            let part = |x: &Tensor| x.narrow(0, start, end - start);
            let layers = if first.pipeline.reads_layers() { layers.as_slice() } else { &[] };
            let layers = layers.iter().map(part).collect::<Result<_>>()?;
            let states = States {
                hidden: part(&hidden)?,
                layers,
                offsets: &offsets,
                prompts: &batch.prompts[sequences.clone()],
            };
            parts.push((sequences, first.pipeline.forward(&states)?.depart()?));
        }
        Ok(Pending { parts, sequences: batch.offsets.len() - 1 })
    }
}

/// A batch's vectors on their way.
pub struct Pending {
    /// Some sequences each.
    parts: Vec<(Range<usize>, Departed)>,
    /// In all.
    sequences: usize,
}

impl Pending {
    /// Waits for them.
    ///
    /// # Errors
    /// What went wrong on a GPU meanwhile.
    pub fn wait(self) -> Result<Vectors> {
        let mut parts: Vec<(Range<usize>, Arrived)> = Vec::with_capacity(self.parts.len());
        for (sequences, part) in self.parts {
            let (rows, before) = (part.wait_rows()?, parts.last().map_or(0, |(before, _)| before.end));
            if sequences.start != before || rows.count() != sequences.len() {
                return Err(Error::Internal(format!("{} vectors of sequences {sequences:?}", rows.count())));
            }
            parts.push((sequences, rows));
        }
        match parts.last().map_or(0, |(last, _)| last.end) == self.sequences {
            true => Ok(Vectors { parts }),
            false => Err(Error::Internal("segments do not cover the batch".into())),
        }
    }
}

/// A batch's vectors on the host.
pub struct Vectors {
    /// A row for each of some sequences, of all in order.
    parts: Vec<(Range<usize>, Arrived)>,
}

impl Vectors {
    /// A copy of that of one of the batch's sequences.
    pub fn of(&self, sequence: usize) -> Vec<f32> {
        let part = self.parts.partition_point(|(sequences, _)| sequences.end <= sequence);
        let (sequences, rows) = &self.parts[part];
        rows.row(sequence - sequences.start)
    }
}

/// The same, said of what is loaded where a device has no memory for it.
fn no_room(error: Error, folder: &Folder) -> Error {
    match error {
        Error::OutOfMemory(_) => {
            let reason = format!("{error} for it; take a smaller dtype, or another device");
            Error::load(folder.path(), reason)
        }
        other => other,
    }
}

/// Whether a path is one of the modules or lies below one.
fn is_below(path: &str, modules: &[String]) -> bool {
    let below =
        |module: &String| path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    modules.iter().any(below)
}
