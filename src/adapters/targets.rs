//! Which modules adapter_config.json says that the adapter trains.

use super::config::is_called;
use super::keys::{Keys, Reading, matches};
use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::Value;

/// Modules by name, as PEFT's keys `target_modules`, `exclude_modules` and their like choose them.
#[derive(Clone, Debug)]
pub enum Names {
    /// "all-linear", or nothing said: the tensors alone tell.
    Any,
    /// A regular expression over whole names.
    Pattern(String, Regex),
    /// Names or their last parts.
    List(Vec<String>),
}

impl Names {
    /// The names under a key.
    pub fn read(keys: &mut Keys, key: &str) -> Reading<Self> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            One(String),
            List(Vec<String>),
        }
        match keys.take::<Either>(key)? {
            None => Ok(Self::Any),
            Some(Either::One(all)) if all == "all-linear" => Ok(Self::Any),
            Some(Either::One(pattern)) => {
                let regex = Regex::new(&format!("^(?:{pattern})$")).map_err(|e| format!("{key} '{pattern}': {e}"))?;
                Ok(Self::Pattern(pattern, regex))
            }
            Some(Either::List(names)) => Ok(Self::List(names)),
        }
    }

    /// Whether they name a module, by its path or by the name that the trainer's model gave it.
    pub fn name(&self, path: &str, name: &str) -> Reading<bool> {
        match self {
            Self::Any => Ok(false),
            Self::Pattern(_, regex) => matches(regex, name),
            Self::List(entries) => {
                Ok(entries.iter().any(|entry| [path, name].iter().any(|name| is_called(name, entry))))
            }
        }
    }

    /// The same, where PEFT looks for entries at the end of a name, also within its last part.
    pub fn end(&self, name: &str) -> Reading<bool> {
        match self {
            Self::List(entries) => Ok(entries.iter().any(|entry| name.ends_with(entry.as_str()))),
            other => other.name(name, name),
        }
    }
}

/// The modules that an adapter changes.
#[derive(Debug)]
pub struct Targets {
    targets: Names,
    excluded: Names,
    /// `layers_to_transform`, and after which module's name a layer's number stands.
    layers: Option<(Vec<usize>, Vec<Regex>)>,
    /// `modules_to_save`: these are held whole.
    saved: Names,
}

impl Targets {
    /// From the configuration's keys.
    pub fn read(keys: &mut Keys) -> Reading<Self> {
        let one_or_more = |value: Option<Value>| match value {
            None => Vec::new(),
            Some(Value::Array(values)) => values,
            Some(value) => vec![value],
        };
        let layers = one_or_more(keys.take("layers_to_transform")?);
        let layers: Option<Vec<usize>> =
            layers.iter().map(|layer| layer.as_u64().map(|layer| layer as usize)).collect();
        let layers = layers.ok_or("layers_to_transform: expected numbers of layers")?;
        let stacks = one_or_more(keys.take("layers_pattern")?).into_iter();
        let stacks = stacks.map(|stack| stack.as_str().filter(|stack| !stack.is_empty()).map(str::to_owned));
        let stacks: Vec<String> = stacks.flatten().collect();
        // As PEFT has them: the first number that follows such a name, or any name but the very first.
        let stacks: Vec<String> = match stacks.as_slice() {
            [] if layers.is_empty() => Vec::new(),
            [] => vec![r"^.*?\.[^.]*\.(\d+)\.".to_owned()],
            named => named.iter().map(|stack| format!(r"^(?:|.*?\.){stack}\.(\d+)\.")).collect(),
        };
        let stacks = stacks.iter().map(|stack| Regex::new(stack).map_err(|e| format!("layers_pattern: {e}")));
        let stacks = stacks.collect::<Reading<_>>()?;
        Ok(Self {
            targets: Names::read(keys, "target_modules")?,
            excluded: Names::read(keys, "exclude_modules")?,
            layers: (!layers.is_empty()).then_some((layers, stacks)),
            saved: keys.take("modules_to_save")?.map_or(Names::Any, Names::List),
        })
    }

    /// Whether the adapter holds a module, or one above it, whole.
    pub fn saves(&self, path: &str, name: &str) -> Reading<bool> {
        for whole in [path, name] {
            for end in whole.match_indices('.').map(|(end, _)| end).chain([whole.len()]) {
                if self.saved.end(&whole[..end])? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Fails where a module's update should not be there.
    pub fn allow(&self, path: &str, name: &str) -> Reading<()> {
        match &self.targets {
            Names::Any => Ok(()),
            targets if targets.name(path, name)? => Ok(()),
            Names::Pattern(pattern, _) => Err(format!("target_modules '{pattern}' excludes it")),
            Names::List(_) => Err("target_modules does not name it".into()),
        }
    }

    /// Whether `target_modules` names a module.
    pub fn names(&self, path: &str, name: &str) -> Reading<bool> {
        self.targets.name(path, name)
    }

    /// Whether a module of the base must have an update.
    pub fn need(&self, path: &str, name: &str) -> Reading<bool> {
        let named = self.names(path, name)? && !self.excluded.name(path, name)? && !self.saves(path, name)?;
        Ok(named
            && self.layers.as_ref().is_none_or(|(layers, stacks)| {
                let number = |stack: &Regex| stack.captures(name).ok()??.get(1)?.as_str().parse().ok();
                stacks.iter().find_map(number).is_some_and(|layer: usize| layers.contains(&layer))
            }))
    }
}
