//! How everything that the configuration names is loaded.

use super::Loaded;
use super::sources::{default_name, device, dtype, in_folder, real_path};
use crate::adapters;
use crate::config::{self, Config, PipelineChoice};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::hub::{Hub, Source};
use crate::model::{Adapter, Body, DType, Device, Model, Modules, Pipeline};
use crate::telemetry::Progress;
use crate::text::{self, Capacity, Text, Tokenizers};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Loads models, then adapters.
pub fn all(config: &Config, hub: &Hub) -> Result<Vec<Loaded>> {
    let mut loading = Loading::new(config, hub)?;
    for model in &config.models {
        loading.model(model)?;
    }
    for adapter in config.adapters.iter().chain(&in_folder(&config.server.adapters)?) {
        loading.adapter_where_it_fits(adapter)?;
    }
    Ok(loading.loaded)
}

/// A base that is loaded.
#[derive(Clone)]
struct Base {
    name: String,
    root: String,
    path: PathBuf,
    model: Arc<Model>,
    pipeline: Arc<Pipeline>,
    text: Arc<Text>,
}

struct Loading<'a> {
    config: &'a Config,
    hub: &'a Hub,
    device: Device,
    dtype: DType,
    tokenizers: Tokenizers,
    pipelines: Vec<Arc<Pipeline>>,
    bases: Vec<Base>,
    loaded: Vec<Loaded>,
}

impl<'a> Loading<'a> {
    fn new(config: &'a Config, hub: &'a Hub) -> Result<Self> {
        if config.models.is_empty() {
            return Err(Error::Config("no model is configured: give --model SOURCE".into()));
        }
        Ok(Self {
            config,
            hub,
            device: device(&config.server)?,
            dtype: dtype(&config.server)?,
            tokenizers: Tokenizers::default(),
            pipelines: Vec::new(),
            bases: Vec::new(),
            loaded: Vec::new(),
        })
    }

    /// A base with its adapters; or a folder that holds a PEFT checkpoint, which is its base with it as an adapter.
    fn model(&mut self, entry: &config::Model) -> Result<()> {
        let source = Source::parse(&entry.source)?;
        let folder = self.hub.fetch(&source)?;
        let name = entry.name.clone().unwrap_or_else(|| default_name(&source));
        let base = if adapters::Config::is_in(&folder)? {
            let (base_name, base_root, base_folder) = self.base_of(&folder, entry.base.as_deref(), &name)?;
            let loaded = self.bases.iter().find(|base| base.path == real_path(&base_folder)).cloned();
            let base = loaded.map_or_else(|| self.base(base_name, &base_root, &base_folder), Ok)?;
            let adapter = config::Adapter { name, source: entry.source.clone(), base: None };
            self.adapter(&adapter, &folder, &base)?;
            base
        } else {
            self.base(name, &entry.source, &folder)?
        };
        for adapter in &entry.adapters {
            let folder = self.hub.fetch(&Source::parse(&adapter.source)?)?;
            self.adapter(adapter, &folder, &base)?;
        }
        Ok(())
    }

    /// Name, root and folder of the base that a PEFT checkpoint lies on: the folder itself where it holds base weights
    /// too, else what the operator says, else what adapter_config.json says.
    fn base_of(&self, folder: &Folder, given: Option<&str>, name: &str) -> Result<(String, String, Folder)> {
        let peft = adapters::Config::of(folder)?;
        if given.is_none() && folder.file("config.json")?.is_some() {
            let root = folder.path().display().to_string();
            return Ok((format!("{name}/base"), root, folder.clone()));
        }
        let (wanted, key) = match (given, &peft.base) {
            (Some(given), _) => (given, "--base"),
            (None, Some(base)) => (base.as_str(), "base_model_name_or_path"),
            (None, None) => ("", "base_model_name_or_path"),
        };
        // A relative path is the trainer's; it may still lead from the working folder or from the adapter to the base.
        let beside = folder.path().join(wanted);
        let source = match !wanted.is_empty() && !Path::new(wanted).is_dir() && beside.is_dir() {
            true => Ok(Source::Folder(beside)),
            false => Source::parse(wanted),
        };
        if let (Ok(Source::Repo(repo)), None) = (&source, given) {
            tracing::info!(file = %peft.path().display(), base = %repo, "no such folder, so {key} is taken for a Hub id");
        }
        let found = source.and_then(|source| Ok((default_name(&source), self.hub.fetch(&source)?)));
        let (base_name, base_folder) = found.map_err(|error| {
            let way_out = "say where the base is with --base SOURCE, or serve the base and attach this folder to it with \
                           --adapter NAME=FOLDER";
            Error::load(peft.path(), format!("{key} '{wanted}' is not to be had ({error}); {way_out}"))
        })?;
        Ok((base_name, wanted.to_owned(), base_folder))
    }

    /// Serves a base, and loads it where it is not loaded under another name.
    fn base(&mut self, name: String, root: &str, folder: &Folder) -> Result<Base> {
        let path = real_path(folder);
        let base = match self.bases.iter().find(|base| base.path == path) {
            Some(loaded) => Base { name, ..loaded.clone() },
            None => self.load_base(name, path, root, folder)?,
        };
        let tasks = base.model.tasks().iter().map(|(name, adapter)| (name.clone(), Some(adapter.clone())));
        for (name, adapter) in std::iter::once((base.name.clone(), None)).chain(tasks) {
            self.loaded.push(Loaded {
                parent: adapter.as_ref().map(|_| base.name.clone()),
                name,
                root: root.to_owned(),
                created: now(),
                model: base.model.clone(),
                adapter,
                pipeline: base.pipeline.clone(),
                text: base.text.clone(),
            });
        }
        self.bases.push(base.clone());
        Ok(base)
    }

    fn load_base(&mut self, name: String, path: PathBuf, root: &str, folder: &Folder) -> Result<Base> {
        let began = Instant::now();
        let progress = Progress::new(&format!("loading {name}"));
        let modules = Modules::of(folder, &self.device)?.map_or_else(|| Modules::bare(folder), Ok)?;
        let progress_at = |done, all| progress.at(done, all);
        let model = Model::load(&modules, &self.device, self.dtype, &progress_at)?;
        progress.end();
        let model = Arc::new(model);
        let source = text::Source { folder, body: &modules.folder, specials: modules.body == Body::Transformer };
        let text = Arc::new(Text::of(source, None, capacity(&model, None), &mut self.tokenizers)?);
        let pipeline = self.share(modules.pipeline);
        let (mib, ms) = (model.bytes() >> 20, began.elapsed().as_millis() as u64);
        tracing::info!(model = name, %folder, mib, ms, tokens_max = text.tokens_max(), "model loaded");
        Ok(Base { name, root: root.to_owned(), path, model, pipeline, text })
    }

    /// Loads and serves an adapter of a base.
    fn adapter(&mut self, entry: &config::Adapter, folder: &Folder, base: &Base) -> Result<()> {
        if entry.name.is_empty() || entry.name.contains(':') {
            return Err(Error::Config(format!("'{}' cannot be an adapter's name", entry.name)));
        }
        let peft = adapters::Config::of(folder)?;
        let adapter = adapters::load(folder, &peft, &base.model)?;
        self.serve_adapter(entry, folder, base, adapter)?;
        warn_of_another_base(&entry.name, &peft, base);
        Ok(())
    }

    fn serve_adapter(&mut self, entry: &config::Adapter, folder: &Folder, base: &Base, adapter: Adapter) -> Result<()> {
        let adapter = Arc::new(adapter);
        let (pipeline, text) = self.reading(folder, base, &adapter)?;
        let (sites, rank, kib) = (adapter.deltas().count(), adapter.rank(), adapter.bytes() >> 10);
        tracing::info!(adapter = entry.name, base = base.name, sites, rank, kib, "adapter loaded");
        self.loaded.push(Loaded {
            name: entry.name.clone(),
            parent: Some(base.name.clone()),
            root: entry.source.clone(),
            created: now(),
            model: base.model.clone(),
            adapter: Some(adapter),
            pipeline,
            text,
        });
        Ok(())
    }

    /// Lays an adapter over the model that its entry names, or the only one that it fits.
    fn adapter_where_it_fits(&mut self, entry: &config::Adapter) -> Result<()> {
        let folder = self.hub.fetch(&Source::parse(&entry.source)?)?;
        let peft = adapters::Config::of(&folder)?;
        let bases = self.bases.clone();
        if let Some(name) = &entry.base {
            let base = bases.iter().find(|base| base.name == *name);
            let unknown = || Error::Config(format!("adapter '{}': no model is called '{name}'", entry.name));
            return self.adapter(entry, &folder, base.ok_or_else(unknown)?);
        }
        if let [only] = bases.as_slice() {
            return self.adapter(entry, &folder, only);
        }
        let (mut fitting, mut reasons) = (Vec::new(), Vec::new());
        for base in &bases {
            match adapters::load(&folder, &peft, &base.model) {
                Ok(adapter) => fitting.push((base, adapter)),
                Err(error) => reasons.push(format!("{}: {error}", base.name)),
            }
        }
        let names: Vec<&str> = fitting.iter().map(|(base, _)| base.name.as_str()).collect();
        let (name, names) = (&entry.name, names.join(", "));
        match fitting.len() {
            0 => Err(Error::Config(format!("adapter '{name}' fits no model ({})", reasons.join("; ")))),
            1 => fitting.into_iter().try_for_each(|(base, adapter)| {
                warn_of_another_base(name, &peft, base);
                self.serve_adapter(entry, &folder, base, adapter)
            }),
            _ => {
                let way_out = format!("name one: BASE:{name}={}", entry.source);
                Err(Error::Config(format!("adapter '{name}' fits several models: {names}; {way_out}")))
            }
        }
    }

    /// The pipeline and the reading of text that an adapter uses.
    fn reading(&mut self, folder: &Folder, base: &Base, adapter: &Adapter) -> Result<(Arc<Pipeline>, Arc<Text>)> {
        let choice = self.config.server.pipeline;
        if choice == PipelineChoice::Base {
            return Ok((base.pipeline.clone(), base.text.clone()));
        }
        let own = Modules::of(folder, &self.device)?;
        if let Some(own) = &own {
            own.pipeline.check(base.model.spec().hidden)?;
        }
        let body = own.as_ref().map_or(folder, |own| &own.folder);
        let source = text::Source { folder, body, specials: true };
        let text = Text::of(source, Some(&base.text), capacity(&base.model, Some(adapter)), &mut self.tokenizers)?;
        if own.is_none() && choice == PipelineChoice::SentenceTransformers {
            return Ok((self.share(Pipeline::default()), Arc::new(text.without_prompts())));
        }
        let pipeline = own.map_or_else(|| base.pipeline.clone(), |own| self.share(own.pipeline));
        Ok((pipeline, Arc::new(text)))
    }

    /// One value for equal pipelines, so that their sequences stay one segment.
    fn share(&mut self, pipeline: Pipeline) -> Arc<Pipeline> {
        if let Some(known) = self.pipelines.iter().find(|known| ***known == pipeline) {
            return known.clone();
        }
        self.pipelines.push(Arc::new(pipeline));
        self.pipelines[self.pipelines.len() - 1].clone()
    }
}

/// Shapes that fit are no proof: many bases have the same.
fn warn_of_another_base(name: &str, peft: &adapters::Config, base: &Base) {
    let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let Some(trained_on) = &peft.base else { return };
    if last(trained_on) != last(&base.root) {
        tracing::warn!(
            adapter = name,
            trained_on,
            base = base.root,
            "trained on a base of another name; its shapes fit"
        );
    }
}

fn capacity(model: &Model, adapter: Option<&Adapter>) -> Capacity {
    Capacity { positions: model.spec().tokens_max, vocabulary: model.vocabulary(adapter) }
}

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
