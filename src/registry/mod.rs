//! What is served: names to models, adapters and how their text is read.

mod blend;
mod check;
mod devices;
mod fitted;
mod golden;
mod load;
mod provenance;
mod readings;
mod room;
mod sources;

pub use blend::blend;
pub use check::{Effect, PROBES, Report};
pub use golden::Agreement;
pub use provenance::{Digest, Provenance};
pub use sources::name_of;

use crate::config::Config;
use crate::engine::{Replica, Target};
use crate::error::{Error, Result};
use crate::hub::Hub;
use crate::model::{Adapter, Device, Routes};
use crate::text::{Text, names_of};
use readings::Parts;
use std::collections::HashMap;
use std::sync::Arc;

/// Everything that is served. Fixed once loaded.
pub struct Registry {
    devices: Vec<Device>,
    served: Vec<Lease>,
    /// Places in `served` by name; an adapter's name may stand under several bases.
    by_name: HashMap<String, Vec<usize>>,
}

/// A hold on one served name: its weights stay as they are as long as it lives.
pub type Lease = Arc<Served>;

/// A name that requests can ask for.
pub struct Served {
    /// The name.
    pub name: String,
    /// An adapter's base, by name.
    pub parent: Option<String>,
    /// Where it was loaded from, as the operator wrote it.
    pub root: String,
    /// When it was loaded, Unix seconds.
    pub created: u64,
    /// What becomes of its texts, by their kind.
    pub routes: Routes<Arc<Route>>,
    /// The bits behind it.
    pub provenance: Provenance,
    /// What loading found out about it.
    pub report: Report,
}

/// What loading makes of one name.
#[derive(Clone)]
struct Loaded {
    name: String,
    parent: Option<String>,
    root: String,
    created: u64,
    adapter: Option<Arc<Adapter>>,
    routes: Routes<Parts>,
    provenance: Provenance,
    report: Report,
}

/// What becomes of texts of one kind.
pub struct Route {
    /// What they run on.
    pub target: Arc<Target>,
    /// How they are read.
    pub text: Arc<Text>,
}

impl Served {
    /// The route of texts of no stated kind, else any.
    pub fn main(&self) -> &Route {
        self.routes.main()
    }

    /// Its name in replies and metrics.
    pub fn label(&self) -> &str {
        &self.main().target.label
    }

    /// The route of a text of this kind, or of no stated one; that there is none is the caller's error.
    pub fn route(&self, kind: Option<&str>) -> Result<&Arc<Route>> {
        let (found, message) = match kind {
            None => (self.routes.unstated(), "The model reads texts by their kind: say it with 'input_type'".into()),
            Some(kind) => (self.routes.named(names_of(kind)), format!("The model has no route for '{kind}'")),
        };
        found.ok_or_else(|| {
            let known: Vec<&str> = self.routes.names().collect();
            Error::invalid("input_type", format!("{message}; it has: {}.", known.join(", ")))
        })
    }
}

impl Registry {
    /// Loads all that the configuration names, on every device, one after the other.
    pub fn load(config: &Config, hub: &Hub) -> Result<Self> {
        let devices = devices::named(&config.server)?;
        let mut on_devices: Vec<Vec<Loaded>> = Vec::with_capacity(devices.len());
        for device in &devices {
            let mut loaded = load::all(config, hub, device)?;
            if let Some(first) = on_devices.first() {
                check_equal(first, &loaded)?;
                // Those of the first serve all devices.
                loaded.iter_mut().for_each(|loaded| loaded.adapter = None);
            }
            on_devices.push(loaded);
        }
        Self::new(devices, on_devices)
    }

    /// Names what was loaded, on each device the same; a name may be shared by adapters of different bases only.
    fn new(devices: Vec<Device>, mut on_devices: Vec<Vec<Loaded>>) -> Result<Self> {
        let loaded = on_devices.remove(0);
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, Loaded { name, parent, .. }) in loaded.iter().enumerate() {
            let others = by_name.entry(name.clone()).or_default();
            let clash = |other: &usize| parent.is_none() || [&None, parent].contains(&&loaded[*other].parent);
            if others.iter().any(clash) {
                return Err(Error::Config(format!("the name '{name}' is given twice")));
            }
            others.push(index);
        }
        let served = loaded.into_iter().enumerate().map(|(index, loaded)| {
            let label = match &loaded.parent {
                Some(base) if by_name[&loaded.name].len() > 1 => format!("{base}:{}", loaded.name),
                _ => loaded.name.clone(),
            };
            let Loaded { name, parent, root, created, adapter, routes, provenance, report } = loaded;
            let mut others: Vec<_> = on_devices.iter().map(|loaded| loaded[index].routes.iter()).collect();
            let replica = |parts: &Parts| Replica { model: parts.model.clone(), pipeline: parts.pipeline.clone() };
            let routes = routes.map(|parts| {
                let others = others.iter_mut().filter_map(|routes| routes.next().map(replica));
                let replicas = std::iter::once(replica(parts)).chain(others).collect();
                let target = Arc::new(Target { replicas, adapter: adapter.clone(), label: label.clone() });
                Ok(Arc::new(Route { target, text: parts.text.clone() }))
            })?;
            Ok(Arc::new(Served { name, parent, root, created, routes, provenance, report }))
        });
        Ok(Self { devices, served: served.collect::<Result<_>>()?, by_name })
    }

    /// Whether models compute on this machine's processors.
    pub fn is_on_cpu(&self) -> bool {
        self.devices.iter().any(Device::is_cpu)
    }

    /// All names, in the order in which they were loaded: a base before its adapters.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.served.iter()
    }

    /// The base, adapter or `base:adapter` of this name.
    pub fn find(&self, name: &str) -> Result<Lease> {
        match self.named(name).collect::<Vec<_>>().as_slice() {
            [one] => Ok((*one).clone()),
            [] => {
                let pair = name.rsplit_once(':').and_then(|(base, adapter)| self.on(base, adapter));
                pair.ok_or_else(|| Error::UnknownModel(name.to_owned()))
            }
            several => {
                let choices: Vec<String> = several.iter().map(|s| format!("'{}'", s.label())).collect();
                let message = format!("'{name}' exists on several models: ask for {}.", choices.join(" or "));
                Err(Error::invalid("model", message))
            }
        }
    }

    /// An adapter of a base.
    pub fn on(&self, base: &str, adapter: &str) -> Option<Lease> {
        self.named(adapter).find(|served| served.parent.as_deref() == Some(base)).cloned()
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Lease> {
        self.by_name.get(name).into_iter().flatten().map(|index| &self.served[*index])
    }
}

/// Files may change while they are loaded on one device after the other.
fn check_equal(one: &[Loaded], other: &[Loaded]) -> Result<()> {
    let is_equal = |(a, b): (&Loaded, &Loaded)| {
        (&a.name, &a.parent, &a.provenance) == (&b.name, &b.parent, &b.provenance)
            && a.routes.iter().count() == b.routes.iter().count()
    };
    match one.len() == other.len() && one.iter().zip(other).all(is_equal) {
        true => Ok(()),
        false => Err(Error::Config("files changed while they were loaded on one device after the other".into())),
    }
}
