//! What is there once loading is done: on every device the models and a queue.

use crate::config::Config;
use crate::engine::{Engine, Limits};
use crate::error::{Error, Result};
use crate::hub::Hub;
use crate::registry::Registry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// The same on one or several devices.
pub struct Serving {
    replicas: Vec<Replica>,
    /// Where the next search for the least busy begins.
    next: AtomicUsize,
}

/// What is served on one device.
pub struct Replica {
    /// Names.
    pub registry: Registry,
    /// The queue.
    pub engine: Engine,
}

/// The threads of all devices. They end once the serving is dropped and its queues are empty.
pub struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    /// Waits for all of them.
    ///
    /// # Errors
    /// Where one panicked.
    pub fn join(self) -> Result<()> {
        let joined = self.0.into_iter().map(JoinHandle::join).collect::<Vec<_>>();
        match joined.iter().any(std::thread::Result::is_err) {
            true => Err(Error::Internal("a worker panicked".into())),
            false => Ok(()),
        }
    }
}

impl Serving {
    /// Loads all on every device that the configuration names, one after the other.
    pub fn load(config: &Config, hub: &Hub) -> Result<(Self, Workers)> {
        let (mut replicas, mut workers) = (Vec::new(), Vec::new());
        for device in devices(&config.server.device)? {
            let mut config = config.clone();
            config.server.device = device.to_owned();
            let (replica, worker) = Replica::load(&config, hub)?;
            replicas.push(replica);
            workers.push(worker);
        }
        Ok((Self { replicas, next: AtomicUsize::new(0) }, Workers(workers)))
    }

    /// The device with the fewest tokens before it; of equal ones each in turn.
    pub fn replica(&self) -> &Replica {
        let (count, first) = (self.replicas.len(), self.next.fetch_add(1, Ordering::Relaxed));
        let in_turn = (0..count).map(|i| &self.replicas[first.wrapping_add(i) % count]);
        let busy = |replica: &&Replica| (!replica.engine.is_alive(), replica.engine.queued_tokens());
        in_turn.min_by_key(busy).expect("there is a device")
    }

    /// The names, which are the same on all.
    pub fn registry(&self) -> &Registry {
        &self.replicas[0].registry
    }

    /// Whether every device has its worker.
    pub fn is_alive(&self) -> bool {
        self.replicas.iter().all(|replica| replica.engine.is_alive())
    }

    /// Tokens admitted and not yet answered.
    pub fn queued_tokens(&self) -> usize {
        self.replicas.iter().map(|replica| replica.engine.queued_tokens()).sum()
    }
}

/// The devices of a list. Several are GPUs, of which none comes twice: on a CPU other bits would answer under one tag.
fn devices(list: &str) -> Result<Vec<&str>> {
    let devices: Vec<&str> = list.split(',').map(str::trim).collect();
    let is_alone = |device: &&str| ["auto", "cpu"].contains(device);
    let is_again = |place: usize| devices[place].starts_with("cuda") && devices[..place].contains(&devices[place]);
    match devices.as_slice() {
        [_] => Ok(devices),
        several if several.iter().any(is_alone) => {
            Err(Error::Config(format!("device '{list}': several must be GPUs, each by its number")))
        }
        several if (0..several.len()).any(is_again) => Err(Error::Config(format!("device '{list}': one comes twice"))),
        _ => Ok(devices),
    }
}

impl Replica {
    /// Loads the registry, starts the engine, and runs each base once, so that the first request finds it warm.
    fn load(config: &Config, hub: &Hub) -> Result<(Self, JoinHandle<()>)> {
        let registry = Registry::load(config, hub)?;
        let batch_tokens_max = match config.limits.max_batch_tokens {
            0 => registry.batch_tokens_max()?,
            tokens => tokens,
        };
        let (engine, worker) = Engine::start(Limits {
            batch_tokens_max,
            queued_tokens_max: config.limits.max_queued_tokens,
            threads: config.server.threads,
        })?;
        registry.warm_up(&engine)?;
        Ok((Self { registry, engine }, worker))
    }
}

#[cfg(test)]
mod tests {
    use super::devices;

    #[test]
    fn several_devices_are_gpus_of_which_none_comes_twice() {
        assert_eq!(devices("cuda:0, cuda:1").unwrap(), ["cuda:0", "cuda:1"]);
        assert_eq!(devices("auto").unwrap(), ["auto"]);
        for wrong in ["cpu,cuda:0", "cuda:0,auto", "cuda:1,cuda:0,cuda:1"] {
            assert!(devices(wrong).is_err(), "{wrong}");
        }
    }
}
