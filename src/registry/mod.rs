//! What is served: names to models, adapters and how their text is read.

mod load;

use crate::config::Config;
use crate::engine::{Engine, Sequence, Target};
use crate::error::{Error, Result};
use crate::hub::Hub;
use crate::text::{Reading, Text};
use std::sync::Arc;

/// Everything that is served. Fixed once loaded.
pub struct Registry {
    served: Vec<Lease>,
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
    /// What it runs on.
    pub target: Arc<Target>,
    /// How its text is read.
    pub text: Arc<Text>,
}

impl Registry {
    /// Loads all that the configuration names.
    pub fn load(config: &Config, hub: &Hub) -> Result<Self> {
        Ok(Self { served: load::all(config, hub)? })
    }

    /// All names, bases before their adapters' own order.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.served.iter()
    }

    /// Runs every base once, so that a model that cannot is found before the first request.
    pub fn warm_up(&self, engine: &Engine) -> Result<()> {
        for base in self.served.iter().filter(|served| served.parent.is_none()) {
            let ids = base.text.encode("warm up", &Reading::default(), "warm-up")?;
            let admission = engine.admit(ids.len())?;
            for reply in engine.submit(vec![Sequence { ids, target: base.target.clone() }], admission)? {
                reply.blocking_recv().map_err(|_| Error::Internal("the worker is gone".into()))??;
            }
        }
        Ok(())
    }

    /// The base, adapter or `base:adapter` of this name.
    pub fn find(&self, name: &str) -> Result<Lease> {
        let exact: Vec<&Lease> = self.served.iter().filter(|served| served.name == name).collect();
        match exact.as_slice() {
            [one] => return Ok((*one).clone()),
            [] => {}
            several => {
                let choices = several.iter().filter_map(|s| Some(format!("'{}:{name}'", s.parent.as_ref()?)));
                let choices: Vec<String> = choices.collect();
                let message = format!("'{name}' exists on several models: ask for {}.", choices.join(" or "));
                return Err(Error::invalid("model", message));
            }
        }
        let pair = name.rsplit_once(':').and_then(|(base, adapter)| self.on(base, adapter));
        pair.ok_or_else(|| Error::UnknownModel(name.to_owned()))
    }

    /// An adapter of a base.
    pub fn on(&self, base: &str, adapter: &str) -> Option<Lease> {
        let found = self.served.iter().find(|s| s.name == adapter && s.parent.as_deref() == Some(base));
        found.cloned()
    }
}
