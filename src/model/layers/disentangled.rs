//! Relative positions with vectors of their own (DeBERTa, arXiv:2006.03654), projected once for the base and once more
//! for each adapter of a batch that changes the projection.

use super::{Linear, Loader, Norm};
use crate::error::Result;
use crate::kernels::{self, disentangled};
use crate::model::delta::{Adapter, Plan, joined};
use crate::model::spec::{self, PositionProjection};
use candle_core::Tensor;

/// Relative positions of one layer.
pub struct Disentangled {
    /// Normed vectors of all positions, `[2 * span, hidden]`.
    table: Tensor,
    keys: Option<Projected>,
    queries: Option<Projected>,
    /// Place in the table by distance, see [`kernels::Disentangled`].
    places: Vec<u32>,
}

/// The table as the base's keys or queries, and what made it so.
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
        let tables = loader.shared(spec.table.path.clone(), |loader| {
            let table = loader.tensor(&spec.table.path, "weight", &[spec.table.rows, qkv.inputs()])?;
            let norm = spec.norm.as_ref().map(|norm| Norm::load_fixed(norm, qkv.inputs(), loader)).transpose()?;
            Ok(vec![norm.map_or(Ok(table.clone()), |norm| norm.forward(&table, &Plan::default()))?])
        })?;
        let table = tables[0].clone();
        let mut project = |projection: &Option<PositionProjection>, first: usize| -> Result<Option<Projected>> {
            let (own, first) = match projection {
                None => return Ok(None),
                Some(PositionProjection::Shared) => (None, first),
                Some(PositionProjection::Own(own)) => (Some(Linear::load(own, loader)?), 0),
            };
            let base = own.as_ref().unwrap_or(qkv).base_columns(&table, first, width)?;
            Ok(Some(Projected { base, own, columns: (first, width) }))
        };
        let (keys, queries) = (project(&spec.key, width)?, project(&spec.query, 0)?);
        let span = loader.tokens_max as i64;
        let places = ((1 - span)..span).map(|distance| place(distance, spec)).collect();
        Ok(Self { table, keys, queries, places })
    }

    /// Attention of packed `q`, `k`, `v [tokens, heads, head_width]` -> `[tokens, heads * head_width]`.
    pub fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        offsets: &[usize],
        scale: f32,
        qkv: &Linear,
        plan: &Plan,
    ) -> Result<Tensor> {
        let projected = [&self.keys, &self.queries];
        let changes = |adapter: &Adapter| projected.into_iter().flatten().any(|p| p.is_changed(qkv, adapter));
        let mut parts = Vec::new();
        for (rows, adapter) in plan.ranges(q.dims()[0], changes) {
            let of = |p: &Option<Projected>| p.as_ref().map(|p| p.of(&self.table, qkv, adapter)).transpose();
            let (keys, queries) = (of(&self.keys)?, of(&self.queries)?);
            let inside = offsets.iter().filter(|offset| (rows.start..=rows.end).contains(offset));
            let offsets: Vec<usize> = inside.map(|offset| offset - rows.start).collect();
            let (keys, queries) = (keys.as_ref(), queries.as_ref());
            let op = kernels::Disentangled { offsets: &offsets, scale, keys, queries, places: &self.places };
            let part = |t: &Tensor| t.narrow(0, rows.start, rows.len());
            parts.push(disentangled(&part(q)?, &part(k)?, &part(v)?, &op)?);
        }
        joined(parts)
    }
}

impl Projected {
    fn is_changed(&self, qkv: &Linear, adapter: &Adapter) -> bool {
        self.own.as_ref().unwrap_or(qkv).is_changed_at(self.columns.0, self.columns.1, adapter)
    }

    /// The projected table as an adapter has it, or the base.
    fn of(&self, table: &Tensor, qkv: &Linear, adapter: Option<&Adapter>) -> Result<Tensor> {
        let Some(adapter) = adapter else { return Ok(self.base.clone()) };
        let changed = self.base.copy()?;
        self.own.as_ref().unwrap_or(qkv).change_columns(&changed, table, self.columns.0, adapter)?;
        Ok(changed)
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
