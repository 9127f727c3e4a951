//! The places where a request names a base and adapters, and what they come to: a lease an input.

use super::body::push;
use crate::error::{Error, Result};
use crate::registry::{self, Lease, Registry, Route};
use crate::text::names_of;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::sync::Arc;

/// The places where a request can name what it wants.
#[derive(Default)]
pub struct Names {
    /// A base, an adapter or `base:adapter`.
    pub model: Option<String>,
    /// An adapter, each with the place that names it; all must agree.
    pub adapters: Vec<(&'static str, String)>,
    /// What the vectors are for, each with the place that says so: it chooses among a model's routes, and among the
    /// adapters inside a base's own checkpoint.
    pub tasks: Vec<(&'static str, String)>,
    /// Several adapters for the whole request.
    pub several: Option<Several>,
}

/// `adapters`.
#[derive(Debug)]
pub enum Several {
    /// One an input, none for the base.
    ByInput(Vec<Option<String>>),
    /// All for every input, each times its weight.
    Blend(Vec<Share>),
}

/// The largest factor in a blend, on either side of 0: some of what is larger overflows.
const WEIGHT_MAX: f32 = 1000.0;

/// An adapter's part in a blend.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Its name.
    name: String,
    /// Factor on what it adds.
    #[serde(default = "one")]
    weight: f32,
}

fn one() -> f32 {
    1.0
}

/// An element of `adapters`.
enum Element {
    Name(Option<String>),
    Share(Share),
}

impl<'de> Deserialize<'de> for Several {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Several;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of names or of objects")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Several, A::Error> {
                let (mut names, mut shares) = (Vec::new(), Vec::new());
                while let Some(element) = list.next_element()? {
                    match element {
                        Element::Name(name) => push(&mut names, name)?,
                        Element::Share(share) => push(&mut shares, share)?,
                    }
                }
                match (names.is_empty(), shares.is_empty()) {
                    (_, true) => Ok(Several::ByInput(names)),
                    (true, false) => Ok(Several::Blend(shares)),
                    (false, false) => Err(A::Error::custom("either names, one an input, or objects, to be blended")),
                }
            }
        }

        deserializer.deserialize_seq(List)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an adapter's name, null, or an object with 'name' and 'weight'")
            }

            fn visit_unit<E>(self) -> std::result::Result<Element, E> {
                Ok(Element::Name(None))
            }

            fn visit_str<E>(self, name: &str) -> std::result::Result<Element, E> {
                Ok(Element::Name(Some(name.to_owned())))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Element, A::Error> {
                Share::deserialize(MapAccessDeserializer::new(map)).map(Element::Share)
            }
        }

        deserializer.deserialize_any(Elements)
    }
}

impl Names {
    /// The base or adapter that the request as a whole names.
    pub fn model(&self, registry: &Registry) -> Result<Lease> {
        let mut adapters = self.adapters.iter();
        let wanted = adapters.next();
        if let Some((place, name)) = wanted
            && let Some((other_place, other)) = adapters.find(|(_, other)| other != name)
        {
            let message = format!("{place} names the adapter '{name}', but {other_place} names '{other}'.");
            return Err(Error::invalid("adapter", message));
        }
        match (self.model.as_deref(), wanted) {
            (None, None) => Err(Error::invalid("model", "You must provide a 'model' parameter.")),
            (None, Some((_, adapter))) => registry.find(adapter),
            (Some(model), None) => registry.find(model),
            (Some(model), Some((place, adapter))) => combine(registry, &registry.find(model)?, place, adapter),
        }
    }

    /// What the task makes of the model that is named: a base with an adapter a task is asked for with that adapter.
    pub fn for_task(&self, registry: &Registry, model: Lease) -> Result<Lease> {
        let has: Vec<&str> = model.main().target.model().tasks().iter().map(|(name, _)| name.as_str()).collect();
        let Some((place, task)) = self.tasks.first().filter(|_| !has.is_empty()) else { return Ok(model) };
        let find = |task: &str| {
            let known = names_of(task).find(|name| has.contains(name));
            known.map(str::to_owned).ok_or_else(|| {
                let message = format!("The model has no task '{task}'; it has: {}.", has.join(", "));
                Error::invalid("task", message)
            })
        };
        let name = find(task)?;
        for (other_place, other) in &self.tasks {
            if find(other)? != name {
                let message = format!("{place} is '{task}', but {other_place} is '{other}'.");
                return Err(Error::invalid("task", message));
            }
        }
        if model.parent.is_none() {
            return registry.on(&model.name, &name).ok_or(Error::UnknownModel(name));
        }
        if has.contains(&model.name.as_str()) && model.name != name {
            let message = format!("The model is the adapter '{}', but {place} is '{task}'.", model.name);
            return Err(Error::invalid("task", message));
        }
        Ok(model)
    }

    /// The route of a model that the kind of text leads to.
    pub fn route(&self, lease: &Lease) -> Result<Arc<Route>> {
        let Some((place, kind)) = self.tasks.first() else { return lease.route(None).cloned() };
        let route = lease.route(Some(kind))?;
        for (other_place, other) in &self.tasks {
            if !Arc::ptr_eq(lease.route(Some(other))?, route) {
                let message = format!("{place} is '{kind}', but {other_place} is '{other}'.");
                return Err(Error::invalid("task", message));
            }
        }
        Ok(route.clone())
    }

    /// One lease an input.
    pub fn leases(&self, registry: &Registry, model: &Lease, inputs: usize) -> Result<Vec<Lease>> {
        let by_input = match &self.several {
            None => return Ok(vec![model.clone(); inputs]),
            Some(Several::Blend(shares)) => return Ok(vec![blend(registry, model, shares)?; inputs]),
            Some(Several::ByInput(by_input)) => by_input,
        };
        if by_input.len() != inputs {
            let message = format!("'adapters' has {} elements for {inputs} inputs.", by_input.len());
            return Err(Error::invalid("adapters", message));
        }
        let lease = |(index, adapter): (usize, &Option<String>)| match adapter {
            Some(adapter) => combine(registry, model, &format!("adapters[{index}]"), adapter),
            None => Ok(model.clone()),
        };
        by_input.iter().enumerate().map(lease).collect()
    }
}

/// Several adapters of a base as one.
fn blend(registry: &Registry, model: &Lease, shares: &[Share]) -> Result<Lease> {
    let lease = |(index, share): (usize, &Share)| {
        let weight = share.weight;
        if !(-WEIGHT_MAX..=WEIGHT_MAX).contains(&weight) {
            let between = format!("between -{WEIGHT_MAX} and {WEIGHT_MAX}");
            let message = format!("adapters[{index}].weight must be {between}, got {weight:e}.");
            return Err(Error::invalid("adapters", message));
        }
        Ok((combine(registry, model, &format!("adapters[{index}]"), &share.name)?, weight))
    };
    let shares = shares.iter().enumerate().map(lease).collect::<Result<Vec<_>>>()?;
    registry::blend(&shares)
}

/// A base and an adapter of it; an adapter and itself.
fn combine(registry: &Registry, model: &Lease, place: &str, adapter: &str) -> Result<Lease> {
    match &model.parent {
        Some(base) if model.name == adapter || format!("{base}:{}", model.name) == adapter => Ok(model.clone()),
        Some(_) => {
            let message = format!("The model is the adapter '{}', but {place} names '{adapter}'.", model.name);
            Err(Error::invalid("adapter", message))
        }
        None if model.name == adapter => Ok(model.clone()),
        None => {
            let name = adapter.strip_prefix(&format!("{}:", model.name)).unwrap_or(adapter);
            registry.on(&model.name, name).ok_or_else(|| Error::UnknownModel(format!("{}:{name}", model.name)))
        }
    }
}
