//! How everything that the configuration names is loaded.

use super::Loaded;
use super::readings::{Parts, Readings};
use super::sources::{default_name, device, dtype, in_folder, real_path};
use crate::adapters;
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::hub::{Hub, Source};
use crate::model::{Adapter, Model, Routes};
use crate::telemetry::Progress;
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
    routes: Routes<Parts>,
}

impl Base {
    /// The model on all its routes; none where they have bodies of their own.
    fn model(&self) -> Option<&Arc<Model>> {
        let first = &self.routes.main().model;
        self.routes.iter().all(|parts| Arc::ptr_eq(&parts.model, first)).then_some(first)
    }

    /// The model that an adapter lies on.
    fn one_model(&self) -> Result<&Arc<Model>> {
        let several =
            || format!("the routes of '{}' have bodies of their own, and no adapter fits them all", self.name);
        self.model().ok_or_else(|| Error::Config(several()))
    }
}

struct Loading<'a> {
    config: &'a Config,
    hub: &'a Hub,
    readings: Readings,
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
            readings: Readings::new(device(&config.server)?, dtype(&config.server)?),
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
        let tasks = base.model().map_or(&[][..], |model| model.tasks());
        let tasks = tasks.iter().map(|(name, adapter)| (name.clone(), Some(adapter.clone())));
        for (name, adapter) in std::iter::once((base.name.clone(), None)).chain(tasks) {
            self.loaded.push(Loaded {
                parent: adapter.as_ref().map(|_| base.name.clone()),
                name,
                root: root.to_owned(),
                created: now(),
                adapter,
                routes: base.routes.clone(),
            });
        }
        self.bases.push(base.clone());
        Ok(base)
    }

    fn load_base(&mut self, name: String, path: PathBuf, root: &str, folder: &Folder) -> Result<Base> {
        let began = Instant::now();
        let progress = Progress::new(&format!("loading {name}"));
        let routes = self.readings.base(folder, &|done, all| progress.at(done, all))?;
        progress.end();
        let base = Base { name, root: root.to_owned(), path, routes };
        if base.model().is_none() && base.routes.iter().any(|parts| !parts.model.tasks().is_empty()) {
            let reason = "a body with adapters in its own checkpoint cannot be one of several on a Router's routes";
            return Err(Error::load(folder.path().join("modules.json"), reason));
        }
        let mut models: Vec<&Arc<Model>> = base.routes.iter().map(|parts| &parts.model).collect();
        models.sort_by_key(|model| Arc::as_ptr(model));
        models.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let bytes: usize = models.into_iter().map(|model| model.bytes()).sum();
        let (mib, ms) = (bytes >> 20, began.elapsed().as_millis() as u64);
        let tokens_max = base.routes.main().text.tokens_max();
        tracing::info!(model = base.name, %folder, mib, ms, tokens_max, "model loaded");
        Ok(base)
    }

    /// Loads and serves an adapter of a base.
    fn adapter(&mut self, entry: &config::Adapter, folder: &Folder, base: &Base) -> Result<()> {
        if entry.name.is_empty() || entry.name.contains(':') {
            return Err(Error::Config(format!("'{}' cannot be an adapter's name", entry.name)));
        }
        let peft = adapters::Config::of(folder)?;
        let adapter = adapters::load(folder, &peft, base.one_model()?)?;
        self.serve_adapter(entry, folder, base, adapter)?;
        warn_of_another_base(&entry.name, &peft, base);
        Ok(())
    }

    fn serve_adapter(&mut self, entry: &config::Adapter, folder: &Folder, base: &Base, adapter: Adapter) -> Result<()> {
        let adapter = Arc::new(adapter);
        let routes = self.readings.adapter(folder, &base.routes, self.config.server.pipeline)?;
        let (sites, rank, kib) = (adapter.deltas().count(), adapter.rank(), adapter.bytes() >> 10);
        tracing::info!(adapter = entry.name, base = base.name, sites, rank, kib, "adapter loaded");
        self.loaded.push(Loaded {
            name: entry.name.clone(),
            parent: Some(base.name.clone()),
            root: entry.source.clone(),
            created: now(),
            adapter: Some(adapter),
            routes,
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
            match base.one_model().and_then(|model| adapters::load(&folder, &peft, model)) {
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

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
