//! Which modules of a model adapters can change, and what the base has there.

use crate::error::Result;
use crate::kernels::{Packed, Tensor};
use candle_core::DType;
use std::collections::HashMap;
use std::ops::Range;

/// A module that an adapter can change, as its place in the model's [`Sites`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site(usize);

impl Site {
    /// Its place.
    pub(super) fn number(self) -> usize {
        self.0
    }
}

/// What a site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// A linear module; its shape is `[out, in]`.
    Linear,
    /// An embedding; its shape is `[rows, width]`.
    Table,
    /// A normalization; its shape is `[1, width]`.
    Norm,
    /// A convolution, of which adapters can change the bias alone; its shape is `[out, in * kernel]`.
    Convolution,
}

/// Every site of a model, by checkpoint path.
#[derive(Debug, Default)]
pub struct Sites {
    by_path: HashMap<String, Site>,
    all: Vec<Entry>,
    weights: HashMap<Site, Weight>,
    /// Stacked projections met so far.
    projections: usize,
    /// The beginning of paths, and what stands there instead while it is set.
    pub(super) known_as: Option<(String, String)>,
}

#[derive(Debug)]
struct Entry {
    path: String,
    kind: SiteKind,
    shape: [usize; 2],
    has_bias: bool,
    /// Whether its rows are other sites' too.
    is_alias: bool,
    /// Whether its weight is read as it is, past what adapters lay over it.
    is_bare: bool,
    /// A linear site's stacked projection, and its columns there.
    place: Option<(usize, Range<usize>)>,
}

/// What the base has at a site.
#[derive(Clone, Debug)]
pub struct Weight {
    /// `[in, out]`, some columns of a stacked projection, or an embedding's `[rows, width]`.
    pub weight: Packed,
    /// A linear module's, `[out]`.
    pub bias: Option<Tensor>,
}

impl Weight {
    /// The bias on the host, in f32.
    pub fn host_bias(&self) -> Result<Option<candle_core::Tensor>> {
        self.bias.as_ref().map(|bias| Ok(bias.to_host()?.to_dtype(DType::F32)?)).transpose()
    }
}

impl Sites {
    /// The site of a linear module of this path and shape `[out, in]`; the same one when a module is used twice.
    pub(super) fn add_linear(&mut self, path: &str, shape: [usize; 2], has_bias: bool) -> Site {
        self.add(path, SiteKind::Linear, shape, has_bias)
    }

    /// The same of rows that adapters may know as a module of this path.
    pub(super) fn add_alias(&mut self, path: &str, shape: [usize; 2], has_bias: bool) -> Site {
        let site = self.add(path, SiteKind::Linear, shape, has_bias);
        self.all[site.0].is_alias = true;
        site
    }

    /// The site of a normalization of this path over `width`.
    pub(super) fn add_norm(&mut self, path: &str, width: usize, has_bias: bool) -> Site {
        self.add(path, SiteKind::Norm, [1, width], has_bias)
    }

    /// The site of an embedding of this path and shape `[rows, width]`.
    pub(super) fn add_table(&mut self, path: &str, shape: [usize; 2], rows: &Tensor) -> Site {
        let site = self.add(path, SiteKind::Table, shape, false);
        self.weights.insert(site, Weight { weight: Packed::plain(rows.clone()), bias: None });
        site
    }

    /// The same of an embedding whose weight the model reads as it is.
    pub(super) fn add_bare_table(&mut self, path: &str, shape: [usize; 2], rows: &Tensor) -> Site {
        let site = self.add_table(path, shape, rows);
        self.all[site.0].is_bare = true;
        site
    }

    /// The site of a convolution of this path and shape `[out, in * kernel]`, its weight as [`Weight`] has it.
    pub(super) fn add_convolution(&mut self, path: &str, shape: [usize; 2], weight: Weight) -> Site {
        let site = self.add(path, SiteKind::Convolution, shape, true);
        self.weights.insert(site, weight);
        site
    }

    /// Keeps hold of a stacked projection's columns, first and count, as linear sites' weights.
    pub(super) fn hold(
        &mut self,
        parts: &[(Site, usize, usize)],
        weight: &Packed,
        bias: Option<&Tensor>,
    ) -> Result<()> {
        for (site, first, columns) in parts {
            let bias = bias.map(|bias| bias.narrow(0, *first, *columns)).transpose()?;
            self.weights.insert(*site, Weight { weight: weight.columns(*first, *columns), bias });
            self.all[site.0].place = Some((self.projections, *first..first + columns));
        }
        self.projections += 1;
        Ok(())
    }

    fn add(&mut self, path: &str, kind: SiteKind, shape: [usize; 2], has_bias: bool) -> Site {
        let known_as = self.known_as.as_ref().and_then(|(from, to)| Some(format!("{to}{}", path.strip_prefix(from)?)));
        let path = known_as.unwrap_or_else(|| path.to_owned());
        let next = Site(self.all.len());
        let site = *self.by_path.entry(path.clone()).or_insert(next);
        if site == next {
            self.all.push(Entry { path, kind, shape, has_bias, is_alias: false, is_bare: false, place: None });
        }
        site
    }

    /// The site at a checkpoint path.
    pub fn find(&self, path: &str) -> Option<Site> {
        self.by_path.get(path).copied()
    }

    /// What it is.
    pub fn kind(&self, site: Site) -> SiteKind {
        self.all[site.0].kind
    }

    /// Its checkpoint path.
    pub fn path(&self, site: Site) -> &str {
        &self.all[site.0].path
    }

    /// Its weight's shape; see [`SiteKind`].
    pub fn shape(&self, site: Site) -> [usize; 2] {
        self.all[site.0].shape
    }

    /// Whether it has a bias.
    pub fn has_bias(&self, site: Site) -> bool {
        self.all[site.0].has_bias
    }

    /// Whether an update of it changes nothing, since the model reads its weight past whatever is laid over it.
    pub fn is_bare(&self, site: Site) -> bool {
        self.all[site.0].is_bare
    }

    /// What the base has there; none for a normalization.
    pub fn weight(&self, site: Site) -> Option<&Weight> {
        self.weights.get(&site)
    }

    /// Of which type its weight's numbers are, where they are plain; else the other one.
    pub(super) fn dtype(&self, site: Site, other: DType) -> DType {
        self.weight(site).and_then(|weight| weight.weight.dtype()).unwrap_or(other)
    }

    /// Whether two sites have rows in common, under different names.
    pub fn overlap(&self, a: Site, b: Site) -> bool {
        match (&self.all[a.0].place, &self.all[b.0].place) {
            (Some((p, a)), Some((q, b))) => p == q && a.start < b.end && b.start < a.end,
            _ => false,
        }
    }

    /// A linear site's stacked projection, by a number, and its columns there.
    pub fn place(&self, site: Site) -> Option<(usize, Range<usize>)> {
        self.all[site.0].place.clone()
    }

    /// Whether its rows are other sites' too, to which they belong in the checkpoint.
    pub fn is_alias(&self, site: Site) -> bool {
        self.all[site.0].is_alias
    }

    /// How many linear modules and embeddings there are, each counted once.
    pub fn modules(&self) -> usize {
        self.all
            .iter()
            .filter(|entry| !entry.is_alias && [SiteKind::Linear, SiteKind::Table].contains(&entry.kind))
            .count()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// All of them, in the order of the forward pass.
    pub fn iter(&self) -> impl Iterator<Item = (Site, &str)> {
        self.all.iter().enumerate().map(|(i, entry)| (Site(i), entry.path.as_str()))
    }
}
