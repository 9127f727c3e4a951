//! How everything that the configuration names is loaded.

mod adapters;

use super::Loaded;
use super::check::{Prober, Report};
use super::devices::format;
use super::golden;
use super::provenance::Provenance;
use super::readings::{Parts, Readings};
use super::sources::{base_of, beside, in_folder, name_of, place_of_adapter, real_path, several_in};
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::hub::{Hub, Source};
use crate::model::{Device, Model, Routes};
use crate::telemetry::Progress;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Loads models, then adapters, on a device.
pub fn all(config: &Config, hub: &Hub, device: &Device) -> Result<Vec<Loaded>> {
    let mut loading = Loading::new(config, hub, device)?;
    for model in &config.models {
        loading.model(model)?;
    }
    let folder = Some(&config.server.adapters).filter(|folder| !folder.is_empty());
    let in_folder = folder.map_or(Ok(Vec::new()), |folder| in_folder(Path::new(folder)))?;
    loading.adapters(&config.adapters, None)?;
    loading.adapters(&in_folder, None)?;
    Ok(loading.loaded)
}

/// A base that is loaded.
#[derive(Clone)]
pub struct Base {
    name: String,
    root: String,
    path: PathBuf,
    /// Its weights, what follows them, and how it reads text, by kind of text.
    pub routes: Routes<Parts>,
    /// The bits behind it.
    pub provenance: Provenance,
}

struct Loading<'a> {
    config: &'a Config,
    hub: &'a Hub,
    prober: Prober,
    readings: Readings,
    bases: Vec<Base>,
    loaded: Vec<Loaded>,
}

impl<'a> Loading<'a> {
    fn new(config: &'a Config, hub: &'a Hub, device: &Device) -> Result<Self> {
        if config.models.is_empty() {
            return Err(Error::Config("no model is configured: give --model SOURCE".into()));
        }
        Ok(Self {
            config,
            hub,
            readings: Readings::new(device.clone(), format(&config.server)?),
            prober: Prober::new(config.server.threads)?,
            bases: Vec::new(),
            loaded: Vec::new(),
        })
    }

    /// A base with its adapters; or a folder that holds a PEFT checkpoint, which is its base with it as an adapter.
    fn model(&mut self, entry: &config::Model) -> Result<()> {
        let source = Source::parse(&entry.source)?;
        let folder = self.hub.fetch(&source)?;
        let name = name_of(entry)?;
        let base = if let Some(place) = place_of_adapter(&folder)? {
            let base = self.base_under(&folder, &place, entry.base.as_deref(), &name)?;
            let adapter = config::Adapter { name, source: entry.source.clone(), base: None };
            let loaded = self.over(&[(&adapter, folder.clone())], Some(&base))?;
            self.loaded.extend(loaded);
            let others = beside(&folder.subfolder(&place)?)?;
            self.adapters(&others, Some(&base))?;
            base
        } else if let several @ [first, ..] = several_in(&folder)?.as_slice() {
            let folder = self.hub.fetch(&Source::parse(&first.source)?)?;
            let place = place_of_adapter(&folder)?.unwrap_or_default();
            let base = self.base_under(&folder, &place, entry.base.as_deref(), &first.name)?;
            self.adapters(several, Some(&base))?;
            base
        } else {
            self.base(name, &entry.source, &folder)?
        };
        self.adapters(&entry.adapters, Some(&base))
    }

    /// The base that a PEFT checkpoint lies on; see [`base_of`].
    fn base_under(&mut self, folder: &Folder, place: &str, given: Option<&str>, name: &str) -> Result<Base> {
        let (name, root, folder) = base_of(self.hub, folder, place, given, name)?;
        let loaded = self.bases.iter().find(|base| base.path == real_path(&folder)).cloned();
        loaded.map_or_else(|| self.base(name, &root, &folder), Ok)
    }

    /// Serves a base, and loads it where it is not loaded under another name.
    fn base(&mut self, name: String, root: &str, folder: &Folder) -> Result<Base> {
        let path = real_path(folder);
        let base = match self.bases.iter().find(|base| base.path == path) {
            Some(loaded) => Base { name, ..loaded.clone() },
            None => self.load_base(name, path, root, folder)?,
        };
        self.serve_base(&base, root, folder)?;
        self.bases.push(base.clone());
        Ok(base)
    }

    /// Serves a base, and the adapters in its own checkpoint.
    fn serve_base(&mut self, base: &Base, root: &str, folder: &Folder) -> Result<()> {
        let mut alone = Loaded {
            name: base.name.clone(),
            parent: None,
            root: root.to_owned(),
            created: now(),
            adapter: None,
            routes: base.routes.clone(),
            provenance: base.provenance.clone(),
            report: Report::default(),
        };
        // Beside an adapter the file is the adapter's.
        if place_of_adapter(folder)?.is_none() {
            alone.report.golden = self.golden(folder, &alone)?;
        }
        self.loaded.push(alone.clone());
        let tasks = base.model().map_or(&[][..], |model| model.tasks());
        for (task, adapter) in tasks {
            let mut loaded = Loaded {
                name: task.clone(),
                parent: Some(base.name.clone()),
                adapter: Some(adapter.clone()),
                provenance: base.provenance.with_task(task),
                ..alone.clone()
            };
            let kind = "in the base's own checkpoint".to_owned();
            let effect = self.prober.effect(&loaded, kind, base.routes.main())?;
            effect.warn(&loaded.name);
            loaded.report = Report { effect: Some(effect), golden: None };
            self.loaded.push(loaded);
        }
        Ok(())
    }

    fn golden(&self, folder: &Folder, loaded: &Loaded) -> Result<Option<golden::Agreement>> {
        golden::verify(folder, loaded, &self.prober, self.config.limits.golden_cosine_min)
    }

    fn load_base(&mut self, name: String, path: PathBuf, root: &str, folder: &Folder) -> Result<Base> {
        let (began, folder) = (Instant::now(), &folder.afresh());
        let progress = Progress::new(&format!("loading {name}"));
        let routes = self.readings.base(folder, &|done, all| progress.at(done, all))?;
        progress.end();
        let provenance = Provenance::of_base(folder, &self.config.server.dtype)?;
        let base = Base { name, root: root.to_owned(), path, routes, provenance };
        if base.model().is_none() && base.routes.iter().any(|parts| !parts.model.tasks().is_empty()) {
            let reason = "a body with adapters in its own checkpoint cannot be one of several on a Router's routes";
            return Err(Error::load(folder.path().join("modules.json"), reason));
        }
        let mut models: Vec<&Arc<Model>> = base.routes.iter().map(|parts| &parts.model).collect();
        models.sort_by_key(|model| Arc::as_ptr(model));
        models.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let bytes: usize = models.into_iter().map(|model| model.bytes()).sum();
        for parts in base.routes.iter() {
            self.prober.try_out(parts).map_err(|error| Error::load(folder.path(), format!("a first text: {error}")))?;
        }
        let (mib, ms) = (bytes >> 20, began.elapsed().as_millis() as u64);
        let tokens_max = base.routes.main().text.tokens_max();
        tracing::info!(model = base.name, %folder, mib, ms, tokens_max, "model loaded");
        Ok(base)
    }
}

impl Base {
    /// The model on all its routes; none where they have bodies of their own.
    pub fn model(&self) -> Option<&Arc<Model>> {
        let first = &self.routes.main().model;
        self.routes.iter().all(|parts| Arc::ptr_eq(&parts.model, first)).then_some(first)
    }

    /// The model that an adapter lies on.
    pub fn one_model(&self) -> Result<&Arc<Model>> {
        let several =
            || format!("the routes of '{}' have bodies of their own, and no adapter fits them all", self.name);
        self.model().ok_or_else(|| Error::Config(several()))
    }
}

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
