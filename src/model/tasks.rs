//! Adapters inside a base's own checkpoint: stacked low-rank updates, see [`spec::Tasks`].

use super::checkpoint::Checkpoint;
use super::delta::{Adapter, Delta, LinearDelta, LowRank, TableDelta};
use super::sites::{SiteKind, Sites};
use super::spec;
use crate::error::Result;
use crate::kernels::Device;
use candle_core::DType;
use std::sync::Arc;

/// One adapter a task, by name; a site without updates in the checkpoint stays as it is.
pub fn load(
    spec: &spec::Tasks,
    sites: &Sites,
    checkpoint: &Checkpoint,
    device: &Device,
    dtype: DType,
) -> Result<Vec<(String, Arc<Adapter>)>> {
    let (count, rank) = (spec.names.len(), spec.rank);
    let mut deltas = vec![Vec::new(); count];
    for (site, path) in sites.iter() {
        let (a, b) = (format!("{path}.lora_A"), format!("{path}.lora_B"));
        if checkpoint.shape(&a).is_none() && checkpoint.shape(&b).is_none() {
            continue;
        }
        let [outer, inner] = sites.shape(site);
        // [tasks, in, rank] and [tasks, rank, out]; of an embedding that is how they lie.
        let (a, b) = match sites.kind(site) {
            SiteKind::Linear => {
                let a = checkpoint.take(&a, &[count, rank, inner])?.transpose(1, 2)?;
                (a, checkpoint.take(&b, &[count, outer, rank])?.transpose(1, 2)?)
            }
            SiteKind::Norm | SiteKind::Convolution => continue,
            SiteKind::Table => {
                let a = checkpoint.take(&a, &[count, outer, rank])?;
                (a, checkpoint.take(&b, &[count, rank, inner])?)
            }
        };
        for (task, deltas) in deltas.iter_mut().enumerate() {
            let b = (b.get(task)?.contiguous()? * spec.scale)?;
            let update = LowRank::new(a.get(task)?.contiguous()?, b);
            let delta = match sites.kind(site) {
                SiteKind::Table => Delta::Table(TableDelta { update: Some(update), ..TableDelta::default() }),
                _ => Delta::Linear(LinearDelta::low_rank(update)),
            };
            deltas.push((site, delta));
        }
    }
    let adapters =
        deltas.into_iter().map(|deltas| Ok(Arc::new(Adapter::new(deltas, true).prepared(sites, device, dtype)?)));
    let named = spec.names.iter().cloned().zip(adapters.collect::<Result<Vec<_>>>()?);
    Ok(named.collect())
}
