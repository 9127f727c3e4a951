//! Relative positions with vectors of their own (DeBERTa, arXiv:2006.03654), projected once for the base and once more
//! for each adapter of a batch that changes the projection.

use super::{Linear, Loader, Norm};
use crate::error::Result;
use crate::kernels::{self, Places, Sequences, Tensor, disentangled};
use crate::model::delta::{Adapter, Plan};
use crate::model::sites::Site;
use crate::model::spec::{self, PositionProjection};
use std::sync::Arc;

/// Relative positions of one layer.
pub struct Disentangled {
    vectors: Vectors,
    keys: Option<Projected>,
    queries: Option<Projected>,
    /// Place in the table by distance, see [`kernels::Disentangled`].
    places: Places,
}

/// Vectors of all positions.
struct Vectors {
    /// `[2 * span, hidden]`, and what adapters know it as.
    table: Tensor,
    site: Site,
    norm: Option<(Norm, Option<Site>)>,
    /// The same normed.
    base: Tensor,
}

/// The vectors as the base's keys or queries, and what made them so.
struct Projected {
    /// `[2 * span, width]`.
    base: Tensor,
    /// None: the layer's own stacked projection.
    own: Option<Linear>,
    /// First column of the projection's output, and how many.
    columns: (usize, usize),
}

impl Disentangled {
    /// From its spec and the layer's stacked projection, of `width` queries and as many keys.
    pub fn load(spec: &spec::Disentangled, width: usize, qkv: &Linear, loader: &mut Loader) -> Result<Self> {
        let vectors = Vectors::load(spec, qkv.inputs(), loader)?;
        let mut project = |projection: &Option<PositionProjection>, first: usize| -> Result<Option<Projected>> {
            let (own, first) = match projection {
                None => return Ok(None),
                Some(PositionProjection::Shared) => (None, first),
                Some(PositionProjection::Own(own)) => (Some(Linear::load(own, loader)?), 0),
            };
            let base = own.as_ref().unwrap_or(qkv).base_columns(&vectors.base, first, width)?;
            Ok(Some(Projected { base, own, columns: (first, width) }))
        };
        let (keys, queries) = (project(&spec.key, width)?, project(&spec.query, 0)?);
        let span = loader.tokens_max as i64;
        let places = ((1 - span)..span).map(|distance| place(distance, spec)).collect();
        let places = Places::new(places, loader.device)?;
        Ok(Self { vectors, keys, queries, places })
    }

    /// Attention of packed `q`, `k`, `v [tokens, heads, head_width]` -> `[tokens, heads * head_width]`.
    pub fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        offsets: &Sequences,
        scale: f32,
        qkv: &Linear,
        plan: &Plan,
    ) -> Result<Tensor> {
        let projected = [&self.keys, &self.queries];
        let changes = |adapter: &Adapter| {
            self.vectors.is_changed(adapter) || projected.into_iter().flatten().any(|p| p.is_changed(qkv, adapter))
        };
        let mut parts = Vec::new();
        for (rows, adapter) in plan.ranges(q.dims()[0], changes) {
            let of = |p: &Option<Projected>| p.as_ref().map(|p| p.of(&self.vectors, qkv, adapter)).transpose();
            let (keys, queries) = (of(&self.keys)?, of(&self.queries)?);
            let is_whole = rows.len() == q.dims()[0];
            let inside = offsets.iter().filter(|offset| (rows.start..=rows.end).contains(offset));
            let own = || Sequences::new(inside.map(|offset| offset - rows.start).collect(), &q.device());
            let own = if is_whole { None } else { Some(own()?) };
            let offsets = own.as_ref().unwrap_or(offsets);
            let (keys, queries) = (keys.as_ref(), queries.as_ref());
            let op = kernels::Disentangled { offsets, scale, keys, queries, places: &self.places };
            let part = |t: &Tensor| t.narrow(0, rows.start, rows.len());
            parts.push(disentangled(&part(q)?, &part(k)?, &part(v)?, &op)?);
        }
        Tensor::joined(&parts.iter().collect::<Vec<_>>(), 0)
    }
}

impl Projected {
    fn is_changed(&self, qkv: &Linear, adapter: &Adapter) -> bool {
        self.own.as_ref().unwrap_or(qkv).is_changed_at(self.columns.0, self.columns.1, adapter)
    }

    /// The projected vectors as an adapter has them, or the base.
    fn of(&self, vectors: &Vectors, qkv: &Linear, adapter: Option<&Adapter>) -> Result<Tensor> {
        let Some(adapter) = adapter else { return Ok(self.base.clone()) };
        let (linear, (first, width)) = (self.own.as_ref().unwrap_or(qkv), self.columns);
        let own = vectors.of(adapter)?;
        let changed = match &own {
            Some(own) => linear.base_columns(own, first, width)?,
            None => self.base.copy()?,
        };
        linear.change_columns(&changed, own.as_ref().unwrap_or(&vectors.base), first, adapter)?;
        Ok(changed)
    }
}

impl Vectors {
    fn load(spec: &spec::Disentangled, width: usize, loader: &mut Loader) -> Result<Self> {
        let spec::Disentangled { table: spec::Table { path, rows }, norm, .. } = spec;
        let norm = norm.as_ref().map(|norm| Norm::load(norm, width, loader)).transpose()?;
        let tables = loader.shared(path.clone(), |loader| {
            let table = loader.tensor(path, "weight", &[*rows, width])?;
            let table = loader.place(&table)?;
            let normed = norm.as_ref().map_or(Ok(table.clone()), |norm| norm.forward(&table, &Plan::default()))?;
            Ok(vec![table, normed])
        })?;
        let (table, base) = (tables[0].clone(), tables[1].clone());
        // Past its own forward pass: what adapters lay over it is not run.
        let site = loader.sites.add_bare_table(path, [*rows, width], &table);
        let path_of_norm = spec.norm.as_ref().map(|norm| norm.path.as_str()).unwrap_or_default();
        let norm = norm.map(|norm| (norm, loader.sites.find(path_of_norm)));
        Ok(Self { table, site, norm, base })
    }

    fn sites(&self) -> impl Iterator<Item = Site> {
        [Some(self.site), self.norm.as_ref().and_then(|(_, site)| *site)].into_iter().flatten()
    }

    fn is_changed(&self, adapter: &Adapter) -> bool {
        self.sites().any(|site| adapter.delta(site).is_some())
    }

    /// The normed vectors `[2 * span, hidden]` of an adapter that changes them.
    fn of(&self, adapter: &Adapter) -> Result<Option<Tensor>> {
        if !self.is_changed(adapter) {
            return Ok(None);
        }
        let rows = self.table.dims()[0];
        let table = match adapter.delta(self.site) {
            Some(delta) => delta.look_up(&self.table, &(0..rows as u32).collect::<Vec<_>>())?,
            None => self.table.clone(),
        };
        let Some((norm, _)) = &self.norm else { return Ok(Some(table)) };
        let own = self.sites().filter_map(|site| Some((site, adapter.delta(site)?.clone())));
        let own = Arc::new(Adapter::new(own, false));
        Ok(Some(norm.forward(&table, &Plan::new([(0..rows, Some(own))], &[0, rows])?)?))
    }
}

/// Place in the table of `query - key`: near distances singly, far ones in logarithmic buckets where the model has them
/// (transformers' `make_log_bucket_position`, in f32 as there), the farthest all together.
fn place(distance: i64, spec: &spec::Disentangled) -> u32 {
    let span = spec.table.rows as i64 / 2;
    let bucket = match spec.buckets {
        Some(buckets) if distance.unsigned_abs() as usize > buckets / 2 => {
            let middle = (buckets / 2) as f32;
            let growth =
                (distance.unsigned_abs() as f32 / middle).ln() / ((spec.distance_max - 1) as f32 / middle).ln();
            distance.signum() * ((growth * (middle - 1.0)).ceil() + middle) as i64
        }
        _ => distance,
    };
    (bucket + span).clamp(0, 2 * span - 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::Table;

    #[test]
    fn far_distances_share_places_and_the_farthest_one() {
        let table = Table { path: String::new(), rows: 512 };
        let spec =
            spec::Disentangled { table, norm: None, key: None, query: None, buckets: Some(256), distance_max: 512 };
        let of = |distance| place(distance, &spec);
        assert_eq!([of(0), of(1), of(-1), of(128), of(-128)], [256, 257, 255, 384, 128]);
        assert_eq!([of(511), of(5000), of(-511), of(-5000)], [511, 511, 1, 0]);
        assert!((-1000..1000).all(|d| of(d) <= of(d + 1)));
    }
}
