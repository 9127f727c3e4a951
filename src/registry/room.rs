//! What every device has room for beside the models.

use super::{Registry, Route};
use crate::config::Limits;
use crate::engine::{Place, Replica, Target};
use crate::error::{Error, Result};
use crate::model::{Adapter, Device};
use std::sync::Arc;

impl Registry {
    /// The devices with their bounds: those of the configuration, and where it leaves them open what suits every model,
    /// whatever follows it.
    pub fn places(&self, limits: &Limits) -> Result<Vec<Place>> {
        let targets: Vec<&Target> = self.routes().map(|route| &*route.target).collect();
        let place = |(index, device): (usize, &Device)| {
            let adapter_bytes_max = self.adapter_bytes_max(device, limits.max_adapter_bytes)?;
            let tried = distinct(targets.iter().map(|target| &target.replicas[index]), |a, b| {
                Arc::ptr_eq(&a.model, &b.model) && Arc::ptr_eq(&a.pipeline, &b.pipeline)
            });
            let tokens = |Replica { model, pipeline }: &Replica| match limits.max_batch_tokens {
                0 => model.batch_tokens_max(pipeline, adapter_bytes_max),
                tokens => Ok(tokens),
            };
            let mut tokens = tried.into_iter().map(tokens);
            let batch_tokens_max = tokens.try_fold(usize::MAX, |least, tokens| Result::Ok(least.min(tokens?)))?;
            // Where kernels are emulated there is nothing to choose, and it takes long.
            if !device.is_cpu() && !device.is_emulated() {
                self.warm_up(index, batch_tokens_max)?;
            }
            Ok(Place { device: device.clone(), batch_tokens_max, adapter_bytes_max })
        };
        self.devices.iter().enumerate().map(place).collect()
    }

    /// Warms a device up for every model of its own, once; what follows it, and adapters, choose little.
    fn warm_up(&self, device: usize, batch_tokens_max: usize) -> Result<()> {
        let bases = self.routes().map(|route| &route.target).filter(|target| target.adapter.is_none());
        let bases = distinct(bases.map(|target| &target.replicas[device]), |a, b| Arc::ptr_eq(&a.model, &b.model));
        bases.into_iter().try_for_each(|Replica { model, pipeline }| model.warm_up(pipeline, batch_tokens_max))
    }

    /// All adapters, where half of what is free has room for them.
    fn adapter_bytes_max(&self, device: &Device, configured: usize) -> Result<usize> {
        let Some((free, _)) = device.memory()? else { return Ok(0) };
        let mut adapters: Vec<&Arc<Adapter>> =
            self.routes().filter_map(|route| route.target.adapter.as_ref()).collect();
        adapters.sort_by_key(|adapter| Arc::as_ptr(adapter));
        adapters.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let bytes = adapters.into_iter().map(|adapter| adapter.bytes()).sum::<usize>();
        let bytes = bytes.min(if configured == 0 { free / 2 } else { configured });
        if bytes > free / 4 * 3 {
            let reason =
                format!("limits.max_adapter_bytes leaves batches no room: models leave {free} bytes free on {device}");
            return Err(Error::Config(reason));
        }
        Ok(bytes)
    }

    fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.served.iter().flat_map(|served| served.routes.iter())
    }
}

/// Those that are the same as none before; there are few.
fn distinct<T>(all: impl Iterator<Item = T>, is_same: impl Fn(&T, &T) -> bool) -> Vec<T> {
    all.fold(Vec::new(), |mut found, one| {
        if !found.iter().any(|other| is_same(other, &one)) {
            found.push(one);
        }
        found
    })
}
