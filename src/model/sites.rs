//! Which modules of a model adapters can change, and what the base has there.

use crate::error::Result;
use candle_core::Tensor;
use std::collections::HashMap;

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
    weights: HashMap<Site, Weight>,
}

/// What the base has at a site.
#[derive(Clone, Debug)]
pub struct Weight {
    /// `[in, out]`, a window of a stacked projection, or an embedding's `[rows, width]`; in the base's number format.
    pub weight: Tensor,
    /// A linear module's, `[out]`.
    pub bias: Option<Tensor>,
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

    /// Keeps hold of columns `first..first + columns` of a stacked projection as a linear site's.
    pub(super) fn hold(
        &mut self,
        (site, first, columns): (Site, usize, usize),
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<()> {
        let bias = bias.map(|bias| bias.narrow(0, first, columns)).transpose()?;
        self.weights.insert(site, Weight { weight: weight.narrow(1, first, columns)?, bias });
        Ok(())
    }

    /// What the base has there.
    pub fn weight(&self, site: Site) -> Option<&Weight> {
        self.weights.get(&site)
    }

    /// The site of an embedding of this path and shape `[rows, width]`.
    pub(super) fn add_table(&mut self, path: &str, shape: [usize; 2], rows: &Tensor) -> Site {
        let site = self.add(path, SiteKind::Table, shape);
        self.weights.insert(site, Weight { weight: rows.clone(), bias: None });
        site
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
