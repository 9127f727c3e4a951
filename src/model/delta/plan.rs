//! Which adapters touch which rows of a packed batch.

use super::{Adapter, Delta, LowRank};
use crate::error::Result;
use crate::kernels::{Attended, Late, Spans, Tensor, Touched, Update, Updates, product};
use crate::model::sites::Site;
use std::ops::Range;
use std::sync::Arc;

/// Which adapters touch which rows of a packed batch; rows of no adapter are not in it and cost nothing.
#[derive(Default)]
pub struct Plan {
    touched: Vec<(Range<usize>, Arc<Adapter>)>,
    /// The same where a GPU reads it.
    grouped: Touched,
}

impl Plan {
    /// From segments of packed rows, of whole sequences with these offsets; neighbours of one adapter become one.
    pub fn new(
        segments: impl IntoIterator<Item = (Range<usize>, Option<Arc<Adapter>>)>,
        offsets: &[usize],
    ) -> Result<Self> {
        let mut touched: Vec<(Range<usize>, Arc<Adapter>)> = Vec::new();
        for (rows, adapter) in segments {
            let Some(adapter) = adapter else { continue };
            match touched.last_mut() {
                Some((last, same)) if last.end == rows.start && Arc::ptr_eq(same, &adapter) => last.end = rows.end,
                _ => touched.push((rows, adapter)),
            }
        }
        let factors = touched.iter().filter_map(|(rows, adapter)| Some((rows.clone(), adapter.factors()?)));
        let grouped = Touched::new(factors, offsets)?;
        Ok(Self { touched, grouped })
    }

    /// What is added to the base's product of `x [tokens, in]` at linear sites, each with its columns there, first and count,
    /// and on a GPU how these are scaled and shifted after it, but for what is left to the attention that reads it; nothing of
    /// adapters that change a site otherwise. `spans` are the same sites.
    pub(in crate::model) fn updates(
        &self,
        sites: &[(Site, usize, usize)],
        spans: &Spans,
        x: &Tensor,
        attended: Option<&Attended>,
    ) -> Result<(Updates, Option<Late>)> {
        if !x.device().is_cpu() {
            return self.grouped.updates(spans, x, attended);
        }
        let mut updates = Vec::new();
        for (rows, adapter) in &self.touched {
            let at = |(site, first, count): &(Site, usize, usize)| {
                Some((*site, adapter.delta(*site)?.as_update()?, *first..first + count))
            };
            // Sites that share a matrix share its product.
            let mut shared: Option<(&Tensor, Tensor)> = None;
            for (site, LowRank { a, b }, outputs) in sites.iter().filter_map(at) {
                let (all, first) = adapter.beside(site).unwrap_or((a, 0));
                let (of, made) = match shared.take() {
                    Some(shared) if shared.0.cpu()?.id() == all.cpu()?.id() => shared,
                    _ => (all, product(&x.narrow(0, rows.start, rows.len())?, all, None)?),
                };
                let left = made.narrow(1, first, a.dims()[1])?;
                shared = Some((of, made));
                let (left, right) = (left.cpu()?.clone(), b.cpu()?.clone());
                updates.push(Update { rows: rows.clone(), outputs, left, right });
            }
        }
        Ok((Updates::Each(updates), None))
    }

    /// Changes what the base made at the linear `site` of `x [tokens, in]`, `y [tokens, out]`, the site's columns, as those
    /// adapters do that change it in other ways than [`Plan::updates`].
    pub(in crate::model) fn change_otherwise(&self, site: Site, x: &Tensor, y: &Tensor) -> Result<()> {
        for (rows, adapter) in self.changing_otherwise(site) {
            adapter.change(site, &x.narrow(0, rows.start, rows.len())?, &y.narrow(0, rows.start, rows.len())?)?;
        }
        Ok(())
    }

    /// Whether there are such.
    pub(in crate::model) fn changes_otherwise(&self, site: Site) -> bool {
        self.changing_otherwise(site).next().is_some()
    }

    fn changing_otherwise(&self, site: Site) -> impl Iterator<Item = &(Range<usize>, Arc<Adapter>)> {
        let is_other = move |adapter: &Adapter| adapter.delta(site).is_some() && !adapter.is_among_updates(site);
        self.touched.iter().filter(move |(_, adapter)| is_other(adapter))
    }

    /// Rows whose adapters change any of a projection's sites; neighbours as one.
    pub(in crate::model) fn changed_rows(&self, sites: &[(Site, usize, usize)]) -> Vec<Range<usize>> {
        let is_changed = |adapter: &Adapter| sites.iter().any(|(site, ..)| adapter.delta(*site).is_some());
        let changed = self.touched.iter().filter(|(_, adapter)| is_changed(adapter)).map(|(rows, _)| rows.clone());
        let changed: Vec<Range<usize>> = changed.collect();
        let neighbours = changed.chunk_by(|one, next| one.end == next.start);
        neighbours.map(|all| all[0].start..all[all.len() - 1].end).collect()
    }

    /// Whether some row's adapter changes a site.
    pub(in crate::model) fn changes(&self, site: Site) -> bool {
        self.touched.iter().any(|(_, adapter)| adapter.delta(site).is_some())
    }

    /// The rows of a batch of `tokens`, made range by range: with the delta of `site`, or with none by the base alone.
    pub(in crate::model) fn by_range(
        &self,
        tokens: usize,
        site: Site,
        make: impl Fn(Range<usize>, Option<&Delta>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let ranges = self.ranges(tokens, |adapter| adapter.delta(site).is_some()).into_iter();
        let made = ranges.map(|(rows, adapter)| make(rows, adapter.and_then(|adapter| adapter.delta(site))));
        Tensor::joined(&made.collect::<Result<Vec<_>>>()?.iter().collect::<Vec<_>>(), 0)
    }

    /// All rows of a batch of `tokens` as ranges, those of adapters for which `differs` holds with their adapter.
    pub(in crate::model) fn ranges(
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
        // A batch without tokens is one range.
        ranges.retain(|(rows, _)| !rows.is_empty() || tokens == 0);
        ranges
    }
}
