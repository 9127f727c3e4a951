//! The configuration: default.toml, then a file, then the environment, then flags. Unknown keys are errors.

mod layers;

pub use layers::{Flags, Key, keys};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The defaults, with a comment on every key.
pub const DEFAULT: &str = include_str!("../../config/default.toml");

/// Everything that can be set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Listening, devices, logs.
    pub server: Server,
    /// Every bound.
    pub limits: Limits,
    /// Where Hub ids are fetched from.
    pub hub: Hub,
    /// What is served.
    #[serde(default)]
    pub models: Vec<Model>,
    /// Adapters for whichever model they fit.
    #[serde(default)]
    pub adapters: Vec<Adapter>,
}

/// `[server]`; see default.toml for each key.
#[expect(missing_docs, reason = "default.toml documents every key")]
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub host: String,
    pub port: u16,
    pub device: String,
    pub dtype: String,
    pub self_test: bool,
    pub threads: usize,
    pub tokenizer_threads: usize,
    pub pipeline: PipelineChoice,
    pub adapters: String,
    pub api_key: String,
    pub log_level: String,
    pub log_format: LogFormat,
    pub drain_timeout_s: u64,
}

/// `[limits]`; see default.toml for each key.
#[expect(missing_docs, reason = "default.toml documents every key")]
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// 0: as many as suit the device.
    pub max_batch_tokens: usize,
    pub max_adapter_bytes: usize,
    pub max_queued_tokens: usize,
    pub max_concurrent_requests: usize,
    pub max_inputs: usize,
    pub max_body_bytes: usize,
    pub max_buffered_bytes: usize,
    pub request_timeout_s: u64,
    pub golden_cosine_min: f64,
}

/// `[hub]`; see default.toml for each key.
#[expect(missing_docs, reason = "default.toml documents every key")]
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    pub endpoint: String,
    pub hf_home: String,
    pub hf_token: String,
    pub offline: bool,
}

/// Where an adapter's pipeline, prompts and limits come from.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum PipelineChoice {
    /// Its own files, else the base's.
    Adapter,
    /// Always the base's.
    Base,
    /// Its own files, else mean pooling and nothing more.
    SentenceTransformers,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// Lines for machines.
    Json,
}

/// `[[models]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Served name; none: the Hub id or the folder's name.
    pub name: Option<String>,
    /// A folder or a Hub id.
    pub source: String,
    /// For a folder that holds only a PEFT checkpoint: its base.
    pub base: Option<String>,
    /// Adapters of this model.
    #[serde(default)]
    pub adapters: Vec<Adapter>,
}

/// `[[models.adapters]]`, or `[[adapters]]` where the model is found by shapes.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Served name.
    pub name: String,
    /// A folder or a Hub id.
    pub source: String,
    /// The served name of its base; none: the one model that it fits.
    pub base: Option<String>,
}

/// Elements of a list in a request that are read: more of the shortest would take many times the memory of its body.
pub const INPUTS_MAX: usize = 1 << 20;

impl Config {
    /// What types alone cannot refuse.
    fn check(&self) -> Result<()> {
        let limits = &self.limits;
        let bounds = [
            ("limits.max_queued_tokens", limits.max_queued_tokens),
            ("limits.max_concurrent_requests", limits.max_concurrent_requests),
            ("limits.max_inputs", limits.max_inputs),
            ("limits.max_body_bytes", limits.max_body_bytes),
            ("limits.max_buffered_bytes", limits.max_buffered_bytes),
            ("limits.request_timeout_s", limits.request_timeout_s as usize),
        ];
        if !(0.0..=1.0).contains(&limits.golden_cosine_min) {
            return Err(Error::Config("limits.golden_cosine_min must be between 0 and 1".into()));
        }
        if limits.max_inputs > INPUTS_MAX {
            return Err(Error::Config(format!("limits.max_inputs must be at most {INPUTS_MAX}")));
        }
        if limits.max_buffered_bytes < limits.max_body_bytes {
            let reason =
                "limits.max_buffered_bytes must not be below limits.max_body_bytes, or no such body is ever read";
            return Err(Error::Config(reason.into()));
        }
        match bounds.iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(Error::Config(format!("{key} must be at least 1"))),
            None => Ok(()),
        }
    }

    /// As TOML, secrets hidden.
    pub fn show(&self) -> String {
        let mut shown = self.clone();
        for secret in [&mut shown.server.api_key, &mut shown.hub.hf_token] {
            if !secret.is_empty() {
                *secret = "***".into();
            }
        }
        toml::to_string_pretty(&shown).expect("a config is TOML")
    }
}
