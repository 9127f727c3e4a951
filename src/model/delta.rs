//! What adapters change: sites of a model, deltas by site, and which rows of a batch they touch.

use crate::error::Result;
use crate::kernels::{add_product, product};
use candle_core::Tensor;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A module that an adapter can change, as its place in the model's [`Sites`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site(usize);

/// What a site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// A linear module; its shape is `[out, in]`.
    Linear,
    /// An embedding; its shape is `[rows, width]`.
    Table,
}

/// Every site of a model, by checkpoint path.
#[derive(Debug, Default)]
pub struct Sites {
    by_path: HashMap<String, Site>,
    all: Vec<(String, SiteKind, [usize; 2])>,
    /// How many of them are other names of others.
    aliases: usize,
    /// The base's rows of its embeddings, in its number format.
    tables: HashMap<Site, Tensor>,
}

impl Sites {
    /// The site of a linear module of this path and shape `[out, in]`; the same one when a module is used twice.
    pub(super) fn add_linear(&mut self, path: &str, shape: [usize; 2]) -> Site {
        self.add(path, SiteKind::Linear, shape)
    }

    /// The same of rows that adapters may know as a module of this path.
    pub(super) fn add_alias(&mut self, path: &str, shape: [usize; 2]) -> Site {
        self.aliases += usize::from(!self.by_path.contains_key(path));
        self.add(path, SiteKind::Linear, shape)
    }

    /// The site of an embedding of this path and shape `[rows, width]`.
    pub(super) fn add_table(&mut self, path: &str, shape: [usize; 2], rows: &Tensor) -> Site {
        let site = self.add(path, SiteKind::Table, shape);
        self.tables.insert(site, rows.clone());
        site
    }

    /// The base's rows of an embedding, in its number format.
    pub fn table(&self, site: Site) -> Option<&Tensor> {
        self.tables.get(&site)
    }

    fn add(&mut self, path: &str, kind: SiteKind, shape: [usize; 2]) -> Site {
        let next = Site(self.all.len());
        let site = *self.by_path.entry(path.to_owned()).or_insert(next);
        if site == next {
            self.all.push((path.to_owned(), kind, shape));
        }
        site
    }

    /// The site of this kind at a checkpoint path.
    pub fn find(&self, path: &str, kind: SiteKind) -> Option<Site> {
        self.by_path.get(path).copied().filter(|site| self.kind(*site) == kind)
    }

    /// What it is.
    pub fn kind(&self, site: Site) -> SiteKind {
        self.all[site.0].1
    }

    /// Its checkpoint path.
    pub fn path(&self, site: Site) -> &str {
        &self.all[site.0].0
    }

    /// Its weight's shape; see [`SiteKind`].
    pub fn shape(&self, site: Site) -> [usize; 2] {
        self.all[site.0].2
    }

    /// How many modules there are, each counted once.
    pub fn modules(&self) -> usize {
        self.all.len() - self.aliases
    }

    /// All of them, in the order of the forward pass.
    pub fn iter(&self) -> impl Iterator<Item = (Site, &str)> {
        self.all.iter().enumerate().map(|(i, (path, ..))| (Site(i), path.as_str()))
    }
}

/// How an adapter changes the output of one site.
#[derive(Clone, Debug)]
pub enum Delta {
    /// `y += (x a) b + bias`, the scale already in `b` and `bias`; of an embedding, where `x` picks rows of `a`, the same.
    LowRank {
        /// `[in, rank]`, or `[rows, rank]`.
        a: Tensor,
        /// `[rank, out]`, or `[rank, width]`.
        b: Tensor,
        /// `[1, out]`.
        bias: Option<Tensor>,
    },
}

impl Delta {
    /// Adds what the rows `x [rows, in]` get to `y [rows, out]`, a window, in place.
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        match self {
            Self::LowRank { a, b, bias } => {
                add_product(y, &product(x, a, None)?, b)?;
                if let Some(bias) = bias {
                    add_product(y, &Tensor::ones((x.dims()[0], 1), bias.dtype(), x.device())?, bias)?;
                }
                Ok(())
            }
        }
    }

    /// Adds what the embedding's rows `ids` get to `y [ids, width]`, in place.
    fn look_up(&self, ids: &Tensor, y: &Tensor) -> Result<()> {
        match self {
            Self::LowRank { a, b, .. } => Ok(add_product(y, &a.index_select(ids, 0)?, b)?),
        }
    }

    /// Rank of its update.
    pub fn rank(&self) -> usize {
        match self {
            Self::LowRank { a, .. } => a.dims()[1],
        }
    }

    /// Bytes it occupies.
    pub fn bytes(&self) -> usize {
        match self {
            Self::LowRank { a, b, bias } => {
                [a, b].into_iter().chain(bias).map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
            }
        }
    }
}

/// One adapter's deltas on one model.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    deltas: HashMap<Site, Delta>,
}

impl Adapter {
    /// An adapter of these deltas.
    pub fn new(deltas: impl IntoIterator<Item = (Site, Delta)>) -> Self {
        Self { deltas: deltas.into_iter().collect() }
    }

    /// Highest rank of a delta.
    pub fn rank(&self) -> usize {
        self.deltas.values().map(Delta::rank).max().unwrap_or_default()
    }

    /// Bytes of all deltas.
    pub fn bytes(&self) -> usize {
        self.deltas.values().map(Delta::bytes).sum()
    }

    /// Whether it changes a site.
    pub(super) fn changes(&self, site: Site) -> bool {
        self.deltas.contains_key(&site)
    }

    /// Adds its delta of `site`, where it has one, to `y [rows, out]` in place, given the input `x [rows, in]`.
    pub(super) fn add(&self, site: Site, x: &Tensor, y: &Tensor) -> Result<()> {
        self.deltas.get(&site).map_or(Ok(()), |delta| delta.add(x, y))
    }

    /// Its deltas, in no order.
    pub fn deltas(&self) -> impl Iterator<Item = (Site, &Delta)> {
        self.deltas.iter().map(|(site, delta)| (*site, delta))
    }
}

/// Which adapters touch which rows of a packed batch; rows of no adapter are not in it and cost nothing.
#[derive(Default)]
pub struct Plan {
    touched: Vec<(Range<usize>, Arc<Adapter>)>,
}

impl Plan {
    /// From segments of packed rows; neighbours of one adapter become one.
    pub fn new(segments: impl IntoIterator<Item = (Range<usize>, Option<Arc<Adapter>>)>) -> Self {
        let mut touched: Vec<(Range<usize>, Arc<Adapter>)> = Vec::new();
        for (rows, adapter) in segments {
            let Some(adapter) = adapter else { continue };
            match touched.last_mut() {
                Some((last, same)) if last.end == rows.start && Arc::ptr_eq(same, &adapter) => last.end = rows.end,
                _ => touched.push((rows, adapter)),
            }
        }
        Self { touched }
    }

    /// Adds every delta of `site` to `y [tokens, out]`, the columns of that site, given its input `x [tokens, in]`.
    pub(super) fn apply(&self, site: Site, x: &Tensor, y: &Tensor) -> Result<()> {
        for (rows, adapter) in self.touched.iter().filter(|(_, adapter)| adapter.changes(site)) {
            adapter.add(site, &x.narrow(0, rows.start, rows.len())?, &y.narrow(0, rows.start, rows.len())?)?;
        }
        Ok(())
    }

    /// Adds every delta of the embedding `site` to the rows `y [tokens, width]` that `ids` picked.
    pub(super) fn look_up(&self, site: Site, ids: &Tensor, y: &Tensor) -> Result<()> {
        for (rows, adapter) in &self.touched {
            if let Some(delta) = adapter.deltas.get(&site) {
                delta.look_up(&ids.narrow(0, rows.start, rows.len())?, &y.narrow(0, rows.start, rows.len())?)?;
            }
        }
        Ok(())
    }

    /// All rows of a batch of `tokens` as ranges, those of adapters for which `differs` holds with their adapter.
    pub(super) fn ranges(
        &self,
        tokens: usize,
        differs: impl Fn(&Adapter) -> bool,
    ) -> Vec<(Range<usize>, Option<&Adapter>)> {
        let (mut ranges, mut next) = (Vec::new(), 0);
        for (rows, adapter) in self.touched.iter().filter(|(_, adapter)| differs(adapter)) {
            ranges.push((next..rows.start, None));
            ranges.push((rows.clone(), Some(&**adapter)));
            next = rows.end;
        }
        ranges.push((next..tokens, None));
        ranges.retain(|(rows, _)| !rows.is_empty());
        ranges
    }
}
