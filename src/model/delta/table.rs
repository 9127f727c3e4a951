//! Changes of an embedding.

use super::linear::{LowRank, Magnitude};
use crate::error::Result;
use crate::kernels::{Device, Tensor, add_product, look_up, pick, scale_columns};
use candle_core::{DType, Tensor as Host};
use std::collections::HashMap;

/// How an adapter changes the rows that ids pick.
#[derive(Clone, Debug, Default)]
pub struct TableDelta {
    /// In place of the base's table, `[rows, width]`; it may have more rows, or fewer.
    pub own: Option<Tensor>,
    /// Added to every row.
    pub update: Option<LowRank>,
    /// New lengths of the columns.
    pub magnitude: Option<Magnitude>,
    /// Rows in place of some, whatever else changes.
    pub rows: Option<OwnRows>,
}

/// Rows of some ids.
#[derive(Clone, Debug)]
pub struct OwnRows {
    places: HashMap<u32, usize>,
    /// `[ids, width]`.
    rows: Tensor,
}

/// The base's rows of `ids`, in f32.
pub fn rows(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    look_up(&[(table, ids)])
}

impl OwnRows {
    /// A row of `rows [ids, width]` for each id.
    pub fn new(ids: &[u32], rows: Host) -> Self {
        Self { places: ids.iter().enumerate().map(|(place, id)| (*id, place)).collect(), rows: rows.into() }
    }

    /// `y [ids, width]` with these rows put where `ids` name them.
    fn put(&self, ids: &[u32], y: Tensor) -> Result<Tensor> {
        let found = |id: &u32| self.places.get(id).copied();
        if !ids.iter().any(|id| found(id).is_some()) {
            return Ok(y);
        }
        let end = ids.len();
        // The rows stand below `y`; each token takes the one or the other.
        let picks = ids.iter().enumerate().map(|(token, id)| found(id).map_or(token, |place| end + place) as u32);
        pick(&Tensor::joined(&[&y, &self.rows], 0)?, &picks.collect::<Vec<_>>())
    }
}

impl TableDelta {
    /// The rows `[ids, width]` for `ids` of the base's `table`.
    pub(super) fn look_up(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        let y = rows(self.own.as_ref().unwrap_or(table), ids)?;
        if let Some(LowRank { a, b }) = &self.update {
            add_product(&y, &pick(a, ids)?, b)?;
        }
        if let Some(Magnitude { factor }) = &self.magnitude {
            scale_columns(&y, factor, &factor.scaled(0.0)?)?;
        }
        self.rows.as_ref().map_or(Ok(y.clone()), |rows| rows.put(ids, y))
    }

    /// The same on a device, matrices in `dtype` there.
    pub(super) fn placed(&self, device: &Device, dtype: DType) -> Result<Self> {
        let update = self.update.as_ref().map(|LowRank { a, b }| -> Result<_> {
            // Rows of `a` are picked.
            Ok(LowRank { a: device.place(a.cpu()?, Some(dtype))?, b: device.place(b.cpu()?, Some(dtype))? })
        });
        let rows = self.rows.as_ref().map(|OwnRows { places, rows }| -> Result<_> {
            Ok(OwnRows { places: places.clone(), rows: device.place(rows.cpu()?, None)? })
        });
        Ok(Self {
            own: self.own.as_ref().map(|own| device.place(own.cpu()?, Some(dtype))).transpose()?,
            update: update.transpose()?,
            magnitude: self.magnitude.as_ref().map(|magnitude| magnitude.placed(device)).transpose()?,
            rows: rows.transpose()?,
        })
    }

    pub(super) fn own_rows(&self) -> Option<usize> {
        self.own.as_ref().map(|own| own.dims()[0])
    }

    pub(super) fn rank(&self) -> usize {
        self.update.as_ref().map_or(0, |update| update.a.dims()[1])
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        let update = self.update.iter().flat_map(|update| [&update.a, &update.b]);
        let rest = self.magnitude.iter().map(|magnitude| &magnitude.factor);
        let rows = self.rows.iter().map(|rows| &rows.rows);
        self.own.iter().chain(update).chain(rest).chain(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use candle_core::Tensor;

    #[test]
    fn own_rows_go_before_all_else_and_others_stay() {
        let table = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &Device::Cpu).unwrap();
        let row = Tensor::new(&[[9f32, 9.0]], &Device::Cpu).unwrap();
        let delta = TableDelta { rows: Some(OwnRows::new(&[1], row)), ..TableDelta::default() };
        let y = delta.look_up(&table.into(), &[2, 1, 0, 1]).unwrap().cpu().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y, [[5.0, 6.0], [9.0, 9.0], [1.0, 2.0], [9.0, 9.0]]);
    }
}
