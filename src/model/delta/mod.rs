//! What adapters change: deltas by site.

mod linear;
mod norm;
mod plan;
mod table;

pub use linear::{LinearDelta, LowRank, Magnitude};
pub use norm::NormDelta;
pub use plan::Plan;
pub use table::{OwnRows, TableDelta};

use super::sites::{Site, Sites};
use crate::error::{Error, Result};
use crate::kernels::{Device, Factors, Tensor, add_difference};
use candle_core::{DType, Tensor as Host};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// How an adapter changes one site, by the site's kind.
#[derive(Clone, Debug)]
pub enum Delta {
    /// Of a linear module.
    Linear(LinearDelta),
    /// Of an embedding.
    Table(TableDelta),
    /// Of a normalization.
    Norm(NormDelta),
    /// Several of one site, each a sum with the base: what each adds, times its weight.
    Blend(Vec<(f32, Delta)>),
}

impl Delta {
    /// Changes what the base made of the rows `x [rows, in]`, `y [rows, out]`, a window, in place.
    fn change(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        match self {
            Self::Linear(delta) => delta.change(x, y),
            Self::Blend(parts) => {
                let before = y.copy()?;
                for (weight, delta) in parts {
                    let after = before.copy()?;
                    delta.change(x, &after)?;
                    add_difference(y, &after, &before, *weight)?;
                }
                Ok(())
            }
            Self::Table(_) | Self::Norm(_) => Ok(()),
        }
    }

    /// The update that it is, where it is nothing else.
    fn as_update(&self) -> Option<&LowRank> {
        match self {
            Self::Linear(delta) => delta.as_update(),
            Self::Table(_) | Self::Norm(_) | Self::Blend(_) => None,
        }
    }

    /// The rows `[ids, width]` that it gives for `ids` of the base's `table [rows, width]`.
    pub(super) fn look_up(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Table(delta) => delta.look_up(table, ids),
            Self::Blend(parts) => {
                let base = table::rows(table, ids)?;
                let sum = base.copy()?;
                for (weight, delta) in parts {
                    add_difference(&sum, &delta.look_up(table, ids)?, &base, *weight)?;
                }
                Ok(sum)
            }
            Self::Linear(_) | Self::Norm(_) => table::rows(table, ids),
        }
    }

    /// Rank of its update; 0 where it has none.
    pub fn rank(&self) -> usize {
        match self {
            Self::Linear(delta) => delta.rank(),
            Self::Table(delta) => delta.rank(),
            Self::Norm(_) => 0,
            Self::Blend(parts) => parts.iter().map(|(_, delta)| delta.rank()).sum(),
        }
    }

    /// Bytes that it occupies beside the base.
    pub fn bytes(&self) -> usize {
        let tensors = match self {
            Self::Linear(delta) => delta.tensors(),
            Self::Table(delta) => delta.tensors(),
            Self::Norm(delta) => delta.tensors(),
            Self::Blend(parts) => return parts.iter().map(|(_, delta)| delta.bytes()).sum(),
        };
        tensors.into_iter().map(Tensor::bytes).sum()
    }

    /// The same on a device, matrices in `dtype` there.
    fn placed(&self, device: &Device, dtype: DType) -> Result<Self> {
        match self {
            Self::Linear(delta) => Ok(Self::Linear(delta.placed(device, dtype)?)),
            Self::Table(delta) => Ok(Self::Table(delta.placed(device, dtype)?)),
            Self::Norm(delta) => Ok(Self::Norm(delta.placed(device)?)),
            Self::Blend(_) => Err(Error::Internal("a blend is of adapters that are placed already".into())),
        }
    }
}

/// One adapter's deltas on one model.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    deltas: HashMap<Site, Delta>,
    /// The matrices `a` of sites with one input side by side, `[in, ranks]`, and where a site's begins.
    beside: HashMap<Site, (Tensor, usize)>,
    /// All updates, where a GPU reads them; those in `deltas` are windows of them.
    factors: Option<Factors>,
    is_sum: bool,
}

impl Adapter {
    /// An adapter of these deltas. `is_sum`: whether each is a sum with what the base gives, so that several adapters on
    /// one model mean the sum of all.
    pub fn new(deltas: impl IntoIterator<Item = (Site, Delta)>, is_sum: bool) -> Self {
        Self { deltas: deltas.into_iter().collect(), is_sum, ..Self::default() }
    }

    /// The same where a model of these sites lies, matrices in `dtype` on a GPU.
    pub fn placed(self, sites: &Sites, device: &Device, dtype: DType) -> Result<Self> {
        if device.is_cpu() {
            return self.joined(sites);
        }
        // Kernels read factors of one type; a weight of another, such as a router's, has its updates beside it.
        let of_site = |site: Site| sites.weight(site).and_then(|weight| weight.weight.dtype()).unwrap_or(dtype);
        let updates = self.deltas.iter().filter(|(site, _)| of_site(**site) == dtype);
        let updates = updates.filter_map(|(site, delta)| Some((*site, delta.as_update()?)));
        let (updated, updates): (Vec<Site>, Vec<&LowRank>) = updates.unzip();
        let factors =
            updated.iter().zip(&updates).map(|(site, LowRank { a, b })| Ok((site.number(), a.cpu()?, b.cpu()?)));
        let factors = Factors::new(device, sites.count(), dtype, &factors.collect::<Result<Vec<_>>>()?)?;
        let mut deltas = HashMap::with_capacity(self.deltas.len());
        for (site, delta) in &self.deltas {
            let window = updated.iter().position(|updated| updated == site);
            let delta = match (window, &factors) {
                (Some(place), Some(factors)) => {
                    let [a, b] = factors.windows(place)?;
                    Delta::Linear(LinearDelta::low_rank(LowRank { a, b }))
                }
                _ => delta.placed(device, of_site(*site))?,
            };
            deltas.insert(*site, delta);
        }
        Ok(Self { deltas, factors, ..self })
    }

    /// The same with matrices that multiply one input put side by side, so that one product is enough.
    fn joined(mut self, sites: &Sites) -> Result<Self> {
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
                    self.beside.insert(*site, (all.clone(), first));
                    first += rank;
                }
            }
        }
        Ok(self)
    }

    /// Whether what it does at a linear site is an update that is added to the base's product, see [`Plan::updates`].
    pub(super) fn adds(&self, site: Site) -> bool {
        match &self.factors {
            Some(factors) => factors.changes(site.number()),
            None => self.delta(site).is_some_and(|delta| delta.as_update().is_some()),
        }
    }

    /// All its updates, where a GPU reads them.
    pub(super) fn factors(&self) -> Option<&Factors> {
        self.factors.as_ref()
    }

    /// The matrix in which a site's `a` stands beside others, and its first column there.
    pub(super) fn beside(&self, site: Site) -> Option<(&Tensor, usize)> {
        self.beside.get(&site).map(|(all, first)| (all, *first))
    }

    /// Several at once, each times a weight; each must be a sum, see [`Adapter::is_sum`].
    pub fn blend(parts: &[(Arc<Adapter>, f32)]) -> Self {
        let mut sites: HashMap<Site, Vec<(f32, Delta)>> = HashMap::new();
        for (adapter, weight) in parts {
            for (site, delta) in &adapter.deltas {
                sites.entry(*site).or_default().push((*weight, delta.clone()));
            }
        }
        Self::new(sites.into_iter().map(|(site, parts)| (site, Delta::Blend(parts))), true)
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
        self.deltas.values().map(Delta::bytes).sum()
    }

    /// Its delta of a site.
    pub(super) fn delta(&self, site: Site) -> Option<&Delta> {
        self.deltas.get(&site)
    }

    /// Changes what the base made at `site` of the rows `x [rows, in]`, `y [rows, out]`, in place.
    pub(super) fn change(&self, site: Site, x: &Tensor, y: &Tensor) -> Result<()> {
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
