//! Layers over each other: defaults, a file, the environment, flags.

use super::{Adapter, Config, DEFAULT, Model};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// One settable key of `[server]`, `[limits]` or `[hub]`.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its section.
    pub section: &'static str,
    /// Its name.
    pub name: String,
    /// Its default, whose type is the key's.
    pub default: Value,
    /// Its comment in default.toml.
    pub comment: String,
}

/// Environment variables of the Hugging Face libraries, and our keys.
const ALIASES: [(&str, &str); 4] =
    [("HF_ENDPOINT", "endpoint"), ("HF_HOME", "hf_home"), ("HF_TOKEN", "hf_token"), ("HF_HUB_OFFLINE", "offline")];

/// What was given on the command line.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// Key and value.
    pub keys: Vec<(String, String)>,
    /// `--model`.
    pub models: Vec<String>,
    /// `--adapter`.
    pub adapters: Vec<String>,
    /// `--base`.
    pub base: Option<String>,
}

impl Config {
    /// Lays the layers over each other. `environment` is the process's; other variables in it do not matter.
    pub fn resolve(file: Option<&Path>, environment: &BTreeMap<String, String>, flags: &Flags) -> Result<Self> {
        let mut layers: Table = toml::from_str(DEFAULT).expect("default.toml is TOML");
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|e| Error::load(path, e.to_string()))?;
            let over: Table = toml::from_str(&text).map_err(|e| Error::load(path, one_line(&e)))?;
            lay_over(&mut layers, over);
            let checked: std::result::Result<Self, _> = layers.clone().try_into();
            checked.map_err(|e| Error::load(path, one_line(&e)))?;
        }
        let keys = keys();
        for (variable, value) in environment.iter().filter(|(_, value)| !value.is_empty()) {
            if let Some(key) = key_of(variable, &keys)? {
                // An own variable goes before an alias of the same key.
                if variable.starts_with("VENEER_") || !environment.contains_key(&key.env_name()) {
                    set(&mut layers, key, value, variable)?;
                }
            }
        }
        for (name, value) in &flags.keys {
            let key = keys.iter().find(|key| key.name == *name).expect("flags are made of the keys");
            set(&mut layers, key, value, &format!("--{}", name.replace('_', "-")))?;
        }
        let mut config: Self = layers.try_into().map_err(|e: toml::de::Error| Error::Config(one_line(&e)))?;
        let listed = |variable: &str| -> Vec<String> {
            let list = environment.get(variable).map(String::as_str).unwrap_or_default();
            list.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
        };
        let base = flags.base.as_ref().or(environment.get("VENEER_BASE"));
        config.add(&listed("VENEER_MODEL"), &listed("VENEER_ADAPTER"), base)?;
        config.add(&flags.models, &flags.adapters, base)?;
        config.check()?;
        Ok(config)
    }

    /// Adds `[NAME=]SOURCE` models and `[BASE:]NAME=SOURCE` adapters.
    fn add(&mut self, models: &[String], adapters: &[String], base: Option<&String>) -> Result<()> {
        for text in models {
            let (name, source) = match text.split_once('=') {
                Some((name, source)) => (Some(name.to_owned()), source),
                None => (None, text.as_str()),
            };
            self.models.push(Model { name, source: source.to_owned(), base: base.cloned(), adapters: Vec::new() });
        }
        for text in adapters {
            let Some((name, source)) = text.split_once('=') else {
                return Err(Error::Config(format!("--adapter '{text}': expected [BASE:]NAME=SOURCE")));
            };
            let (base, name) = match name.rsplit_once(':') {
                Some((base, name)) => (Some(base.to_owned()), name),
                None => (None, name),
            };
            self.adapters.push(Adapter { name: name.to_owned(), source: source.to_owned(), base });
        }
        Ok(())
    }
}

impl Key {
    /// Its environment variable. The double underscore keeps it apart from what Kubernetes sets for a service that is
    /// called veneer (`VENEER_PORT=tcp://...`).
    pub fn env_name(&self) -> String {
        format!("VENEER_{}__{}", self.section.to_uppercase(), self.name.to_uppercase())
    }
}

/// The key that an environment variable sets; none where it is none of ours.
fn key_of<'a>(variable: &str, keys: &'a [Key]) -> Result<Option<&'a Key>> {
    if let Some((_, alias)) = ALIASES.iter().find(|(name, _)| *name == variable) {
        return Ok(keys.iter().find(|key| key.name == *alias));
    }
    if !variable.starts_with("VENEER_") || !variable.contains("__") {
        return Ok(None);
    }
    let key = keys.iter().find(|key| key.env_name() == variable);
    key.map(Some).ok_or_else(|| Error::Config(format!("{variable}: there is no such key")))
}

/// Every key of the three sections, from default.toml.
pub fn keys() -> Vec<Key> {
    let defaults: Table = toml::from_str(DEFAULT).expect("default.toml is TOML");
    let (mut keys, mut comment) = (Vec::new(), Vec::new());
    for line in DEFAULT.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            comment.push(text);
            continue;
        }
        // A comment is of the key that it stands right above.
        let comment = std::mem::take(&mut comment).join(" ");
        let Some((name, _)) = line.split_once(" = ") else { continue };
        let found = ["server", "limits", "hub"].into_iter().find_map(|section| {
            let default = defaults.get(section)?.get(name)?.clone();
            Some(Key { section, name: name.to_owned(), default, comment: comment.clone() })
        });
        keys.extend(found);
    }
    keys
}

/// Sets a key from text, read as the type of its default.
fn set(layers: &mut Table, key: &Key, text: &str, origin: &str) -> Result<()> {
    let expected = |what: &str| Error::Config(format!("{origin} = '{text}': expected {what}"));
    let value = match &key.default {
        Value::Integer(_) => Value::Integer(text.parse().map_err(|_| expected("a whole number"))?),
        Value::Float(_) => Value::Float(text.parse().map_err(|_| expected("a number"))?),
        Value::Boolean(_) => Value::Boolean(match text.to_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => true,
            "0" | "false" | "no" | "off" => false,
            _ => return Err(expected("true or false")),
        }),
        _ => Value::String(text.to_owned()),
    };
    let over =
        Table::from_iter([(key.section.to_owned(), Value::Table(Table::from_iter([(key.name.clone(), value)])))]);
    lay_over(layers, over);
    let checked: std::result::Result<Config, _> = layers.clone().try_into();
    checked.map(|_| ()).map_err(|e| Error::Config(format!("{origin} = '{text}': {}", one_line(&e))))
}

/// Lays one table over another, key by key.
fn lay_over(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => lay_over(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
