//! What is there once loading is done: the names, and a queue before the devices.

use crate::config::Config;
use crate::engine::{Engine, Workers};
use crate::error::Result;
use crate::hub::Hub;
use crate::registry::Registry;

/// What is served.
pub struct Serving {
    /// Names.
    pub registry: Registry,
    /// The queue, and what computes.
    pub engine: Engine,
}

impl Serving {
    /// Loads the registry, and starts the engine.
    pub fn load(config: &Config, hub: &Hub) -> Result<(Self, Workers)> {
        let registry = Registry::load(config, hub)?;
        let places = registry.places(&config.limits)?;
        let (engine, workers) = Engine::start(&places, config.limits.max_queued_tokens, config.server.threads)?;
        Ok((Self { registry, engine }, workers))
    }
}
