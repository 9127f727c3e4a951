//! An adapter: its deltas, and how a model's device takes them.

use super::{Delta, LinearDelta};
use crate::error::{Error, Result};
use crate::kernels::{Change, Device, Factors, HostFactors, Tensor};
use crate::model::sites::{Site, SiteKind, Sites};
use candle_core::{DType, Tensor as Host};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

/// One adapter's deltas on one model: as its files have them, see [`Adapter::new`]; [prepared](Adapter::prepared) for the
/// model's device, and so on the host; from there [laid](crate::model::Model::lay) on a GPU; or a [blend](Adapter::blend) of others
/// that are all on the host or all laid.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    deltas: HashMap<Site, Delta>,
    updates: Updates,
    /// What it blends.
    parts: Vec<(Arc<Adapter>, f32)>,
    is_sum: bool,
    bytes: OnceLock<usize>,
    footprint: OnceLock<u64>,
}

/// All updates of an adapter as its model's device takes them, on a GPU with all else that changes products; those in its
/// deltas are windows of them.
#[derive(Clone, Debug)]
enum Updates {
    /// On the CPU, and of what is not prepared: the matrices `a` of sites with one input side by side, `[in, ranks]`, and where a
    /// site's begins.
    Joined(HashMap<Site, (Tensor, usize)>),
    /// On the host for a GPU, those of these sites.
    Host(HostFactors, Vec<Site>),
    /// On a GPU.
    There(Box<Factors>),
}

impl Default for Updates {
    fn default() -> Self {
        Self::Joined(HashMap::new())
    }
}

impl Adapter {
    /// An adapter of these deltas. `is_sum`: whether each is a sum with what the base gives, so that several adapters on
    /// one model mean the sum of all.
    pub fn new(deltas: impl IntoIterator<Item = (Site, Delta)>, is_sum: bool) -> Self {
        Self { deltas: deltas.into_iter().collect(), is_sum, ..Self::default() }
    }

    /// The same on the host as a model of these sites takes it: as it is on the CPU; as it is brought to a GPU, where
    /// matrices are in `dtype`.
    pub fn prepared(self, sites: &Sites, device: &Device, dtype: DType) -> Result<Self> {
        match device {
            Device::Cpu => self.joined(sites),
            Device::Gpu(_) => self.gathered(sites, dtype),
        }
    }

    /// The same with all that changes products in one piece of memory a type.
    fn gathered(mut self, sites: &Sites, dtype: DType) -> Result<Self> {
        // Kernels read factors of one type; a weight of another, such as a router's, has its changes beside it, and so
        // has a convolution, whose product is its own.
        let is_read = |site: Site| sites.kind(site) == SiteKind::Linear && sites.dtype(site, dtype) == dtype;
        let changes = self.deltas.iter().filter(|(site, _)| is_read(**site));
        let changes = changes.filter_map(|(site, delta)| Some((*site, delta.as_linear()?.as_change()?)));
        let (changed, changes): (Vec<Site>, Vec<Change<&Tensor>>) = changes.unzip();
        let numbered = changed.iter().zip(changes);
        let numbered = numbered.map(|(site, change)| Ok((site.number(), change.map(Tensor::cpu, Tensor::cpu)?)));
        let factors = HostFactors::new(sites.count(), dtype, &numbered.collect::<Result<Vec<_>>>()?)?;
        for (place, site) in changed.iter().enumerate() {
            self.deltas.insert(*site, Delta::Linear(LinearDelta::of_change(factors.windows(place)?)));
        }
        Ok(Self { updates: Updates::Host(factors, changed), ..self })
    }

    /// The same, which is [prepared](Self::prepared), on the GPU of a model of these sites.
    pub(in crate::model) fn placed(&self, sites: &Sites, device: &Device, dtype: DType) -> Result<Self> {
        let not_prepared = || Error::Internal("an adapter is placed that is not prepared for a GPU".into());
        let Updates::Host(factors, changed) = &self.updates else { return Err(not_prepared()) };
        let factors = Factors::new(device, factors)?.ok_or_else(not_prepared)?;
        let mut deltas = HashMap::with_capacity(self.deltas.len());
        for (place, site) in changed.iter().enumerate() {
            deltas.insert(*site, Delta::Linear(LinearDelta::of_change(factors.windows(place)?)));
        }
        for (site, delta) in self.deltas.iter().filter(|(site, _)| !changed.contains(site)) {
            deltas.insert(*site, delta.placed(device, sites.dtype(*site, dtype), sites.weight(*site))?);
        }
        Ok(Self { deltas, updates: Updates::There(factors.into()), is_sum: self.is_sum, ..Self::default() })
    }

    /// The same with matrices that multiply one input put side by side, so that one product is enough.
    fn joined(mut self, sites: &Sites) -> Result<Self> {
        for (site, delta) in &mut self.deltas {
            if let Delta::Linear(delta) = delta {
                *delta = std::mem::take(delta).over(sites.weight(*site))?;
            }
        }
        let mut beside = HashMap::new();
        let mut projections: HashMap<usize, BTreeMap<usize, Site>> = HashMap::new();
        for (site, delta) in &self.deltas {
            if let (Some((projection, columns)), Some(_)) = (sites.place(*site), delta.as_update()) {
                projections.entry(projection).or_default().insert(columns.start, *site);
            }
        }
        for group in projections.values().filter(|group| group.len() > 1) {
            let updates = group.values().filter_map(|site| self.deltas[site].as_update());
            let all = updates.map(|update| update.a.cpu()).collect::<Result<Vec<_>>>()?;
            let all = Tensor::from(Host::cat(&all, 1)?);
            let mut first = 0;
            for site in group.values() {
                if let Some(Delta::Linear(delta)) = self.deltas.get_mut(site) {
                    let rank = delta.rank();
                    *delta = std::mem::take(delta).with_a(all.narrow(1, first, rank)?);
                    beside.insert(*site, (all.clone(), first));
                    first += rank;
                }
            }
        }
        Ok(Self { updates: Updates::Joined(beside), ..self })
    }

    /// Whether what it does at a linear site is among [`Plan::updates`](super::Plan::updates).
    pub(super) fn is_among_updates(&self, site: Site) -> bool {
        match &self.updates {
            Updates::There(factors) => factors.changes(site.number()),
            _ => self.delta(site).is_some_and(|delta| delta.as_update().is_some()),
        }
    }

    /// All its updates, where a GPU reads them.
    pub(super) fn factors(&self) -> Option<&Factors> {
        match &self.updates {
            Updates::There(factors) => Some(factors),
            _ => None,
        }
    }

    /// The matrix in which a site's `a` stands beside others, and its first column there.
    pub(super) fn beside(&self, site: Site) -> Option<(&Tensor, usize)> {
        match &self.updates {
            Updates::Joined(beside) => beside.get(&site).map(|(all, first)| (all, *first)),
            _ => None,
        }
    }

    /// Several at once, each times a weight; each must be a sum, see [`Adapter::is_sum`].
    pub fn blend(parts: &[(Arc<Adapter>, f32)]) -> Self {
        let mut sites: HashMap<Site, Vec<(f32, Delta)>> = HashMap::new();
        for (adapter, weight) in parts {
            for (site, delta) in &adapter.deltas {
                sites.entry(*site).or_default().push((*weight, delta.clone()));
            }
        }
        let blend = Self::new(sites.into_iter().map(|(site, parts)| (site, Delta::Blend(parts))), true);
        Self { parts: parts.to_vec(), ..blend }
    }

    /// What it blends, with weights; nothing of one that is no blend.
    pub fn parts(&self) -> &[(Arc<Self>, f32)] {
        &self.parts
    }

    /// One that changes nothing, at the linear sites that this changes: a pass with it rounds where one with this does.
    pub fn neutral(&self) -> Self {
        let sites = self.deltas.iter().filter(|(_, delta)| delta.as_linear().is_some()).map(|(site, _)| *site);
        Self::new(sites.map(|site| (site, Delta::Linear(LinearDelta::default()))), true)
    }

    /// Whether it can be blended with others.
    pub fn is_sum(&self) -> bool {
        self.is_sum
    }

    /// Highest rank of a delta.
    pub fn rank(&self) -> usize {
        self.deltas.values().map(Delta::rank).max().unwrap_or_default()
    }

    /// Bytes of all deltas.
    pub fn bytes(&self) -> usize {
        *self.bytes.get_or_init(|| self.deltas.values().map(Delta::bytes).sum())
    }

    /// Equal for adapters of one model that change the same sites, and hardly ever for others.
    pub fn footprint(&self) -> u64 {
        *self.footprint.get_or_init(|| {
            let mut sites: Vec<usize> = self.deltas.keys().map(|site| site.number()).collect();
            sites.sort_unstable();
            let mut hasher = DefaultHasher::new();
            sites.hash(&mut hasher);
            hasher.finish()
        })
    }

    /// Its delta of a site.
    pub(in crate::model) fn delta(&self, site: Site) -> Option<&Delta> {
        self.deltas.get(&site)
    }

    /// Changes what the base made at `site` of the rows `x [rows, in]`, `y [rows, out]`, in place.
    pub(in crate::model) fn change(&self, site: Site, x: &Tensor, y: &Tensor) -> Result<()> {
        self.delta(site).map_or(Ok(()), |delta| delta.change(x, y))
    }

    /// Rows of the table at `site` as it has them, where that is not the base's number of rows.
    pub fn table_rows(&self, site: Site) -> Option<usize> {
        match self.delta(site) {
            Some(Delta::Table(delta)) => delta.own_rows(),
            _ => None,
        }
    }

    /// Its deltas, in no order.
    pub fn deltas(&self) -> impl Iterator<Item = (Site, &Delta)> {
        self.deltas.iter().map(|(site, delta)| (*site, delta))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_of_the_same_sites_have_the_same_footprint_and_others_have_not() {
        let mut sites = Sites::default();
        let [q, k, v] = ["q", "k", "v"].map(|path| sites.add_linear(path, [2, 2], false));
        let footprint = |changed: &[Site]| {
            let delta = || Delta::Linear(LinearDelta::default());
            Adapter::new(changed.iter().map(|site| (*site, delta())), true).footprint()
        };
        assert_eq!(footprint(&[q, v]), footprint(&[v, q]));
        let others = [&[][..], &[q], &[v], &[q, k], &[q, k, v]].map(footprint);
        assert!(!others.contains(&footprint(&[q, v])));
    }
}
