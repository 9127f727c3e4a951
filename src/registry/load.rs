//! How everything that the configuration names is loaded.

use super::Loaded;
use crate::adapters;
use crate::config::{self, Config, PipelineChoice};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::hub::{Hub, Source};
use crate::model::{Device, Model, Pipeline};
use crate::telemetry::Progress;
use crate::text::{Text, Tokenizers};
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
    path: PathBuf,
    model: Arc<Model>,
    pipeline: Arc<Pipeline>,
    text: Arc<Text>,
}

struct Loading<'a> {
    config: &'a Config,
    hub: &'a Hub,
    device: Device,
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
        self.loaded.push(Loaded {
            name: base.name.clone(),
            parent: None,
            root: root.to_owned(),
            created: now(),
            model: base.model.clone(),
            adapter: None,
            pipeline: base.pipeline.clone(),
            text: base.text.clone(),
        });
        self.bases.push(base.clone());
        Ok(base)
    }

    fn load_base(&mut self, name: String, path: PathBuf, root: &str, folder: &Folder) -> Result<Base> {
        let began = Instant::now();
        let progress = Progress::new(&format!("loading {name}"));
        let model = Arc::new(Model::load(folder, &self.device, &|done, all| progress.at(done, all))?);
        progress.end();
        let pipeline = self.share(Pipeline::of(folder)?.unwrap_or_default());
        let (positions, vocabulary) = (model.spec().tokens_max, model.spec().embedding.word.rows);
        let text = Arc::new(Text::of(folder, None, positions, vocabulary, &mut self.tokenizers)?);
        let (mib, ms) = (model.bytes() >> 20, began.elapsed().as_millis() as u64);
        tracing::info!(model = name, root, mib, ms, tokens_max = text.tokens_max(), "model loaded");
        Ok(Base { name, path, model, pipeline, text })
    }

    /// Loads and serves an adapter of a base.
    fn adapter(&mut self, entry: &config::Adapter, folder: &Folder, base: &Base) -> Result<()> {
        if entry.name.is_empty() || entry.name.contains(':') {
            return Err(Error::Config(format!("'{}' cannot be an adapter's name", entry.name)));
        }
        let peft = adapters::Config::of(folder)?;
        let adapter = Arc::new(adapters::load(folder, &peft, &base.model)?);
        let (pipeline, text) = self.reading(folder, base)?;
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
        let fitting: Vec<&Base> = bases.iter().filter(|b| adapters::load(&folder, &peft, &b.model).is_ok()).collect();
        match fitting.as_slice() {
            [one] => self.adapter(entry, &folder, one),
            several => {
                let names = several.iter().map(|base| base.name.as_str()).collect::<Vec<_>>().join(", ");
                let fits =
                    if names.is_empty() { "fits no model".into() } else { format!("fits several models: {names}") };
                let name = &entry.name;
                Err(Error::Config(format!("adapter '{name}' {fits}; name one: BASE:{name}={}", entry.source)))
            }
        }
    }

    /// The pipeline and the reading of text that an adapter uses.
    fn reading(&mut self, folder: &Folder, base: &Base) -> Result<(Arc<Pipeline>, Arc<Text>)> {
        let choice = self.config.server.pipeline;
        if choice == PipelineChoice::Base {
            return Ok((base.pipeline.clone(), base.text.clone()));
        }
        let (positions, vocabulary) = (base.model.spec().tokens_max, base.model.spec().embedding.word.rows);
        let text = Text::of(folder, Some(&base.text), positions, vocabulary, &mut self.tokenizers)?;
        let own = Pipeline::of(folder)?;
        if own.is_none() && choice == PipelineChoice::SentenceTransformers {
            return Ok((self.share(Pipeline::default()), Arc::new(text.without_prompts())));
        }
        let pipeline = own.map_or_else(|| base.pipeline.clone(), |own| self.share(own));
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

/// Sub-folders with an adapter_config.json, as adapters under their folders' names.
fn in_folder(path: &str) -> Result<Vec<config::Adapter>> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::load(path, e.to_string()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::load(path, e.to_string()))?;
        if entry.path().join("adapter_config.json").is_file() {
            let (name, source) = (entry.file_name(), entry.path());
            let (name, source) = (name.to_string_lossy().into_owned(), source.to_string_lossy().into_owned());
            found.push(config::Adapter { name, source, base: None });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn real_path(folder: &Folder) -> PathBuf {
    folder.path().canonicalize().unwrap_or_else(|_| folder.path().to_owned())
}

/// The Hub id, or the folder's own name.
fn default_name(source: &Source) -> String {
    match source {
        Source::Repo(repo) => repo.id().to_owned(),
        Source::Folder(path) => {
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            whole.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
        }
    }
}

/// The device that the configuration names, and that its arithmetic is supported there.
fn device(server: &config::Server) -> Result<Device> {
    match server.dtype.as_str() {
        "float32" => {}
        "bfloat16" | "float16" | "int8" => {
            return Err(Error::Config(format!(
                "dtype '{}' is not supported on this device; supported: float32",
                server.dtype
            )));
        }
        other => return Err(Error::Config(format!("dtype '{other}' is not known; supported: float32"))),
    }
    match server.device.as_str() {
        "auto" | "cpu" => Ok(Device::Cpu),
        cuda if cuda == "cuda" || cuda.starts_with("cuda:") => {
            Err(Error::Config(format!("device '{cuda}': this build has no CUDA support")))
        }
        other => Err(Error::Config(format!("device '{other}' is not known; expected auto, cpu or cuda[:N]"))),
    }
}
