//! What adapters change: deltas by site, and which rows of a batch they touch.

use super::sites::{Site, Weight};
use crate::error::Result;
use crate::kernels::{add_product, product, scale_columns};
use candle_core::{DType, Tensor};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

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
        /// DoRA's, where there is one.
        magnitude: Option<Magnitude>,
    },
}

/// New lengths of a linear module's rows (DoRA, arXiv:2402.09353): `y = (W x + s B A x) m / n + bias`, with `n` the
/// lengths of the rows of `W + s B A`.
#[derive(Clone, Debug)]
pub struct Magnitude {
    /// `m / n`, `[out]`.
    factor: Tensor,
    /// What gives the bias back its own length, `[out]`.
    shift: Tensor,
}

impl Magnitude {
    /// From `m [out]`, and the update's `a [in, rank]` and `b [rank, out]` on a linear site.
    pub fn new(m: &Tensor, a: &Tensor, b: &Tensor, base: &Weight) -> Result<Self> {
        let whole = (base.weight.to_dtype(DType::F32)? + a.matmul(b)?)?;
        let factor = (m / whole.sqr()?.sum(0)?.sqrt()?)?;
        let shift = match &base.bias {
            Some(bias) => (bias - (bias * &factor)?)?,
            None => factor.zeros_like()?,
        };
        Ok(Self { factor, shift })
    }
}

impl Delta {
    /// Adds what the rows `x [rows, in]` get to `y [rows, out]`, a window, in place.
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        match self {
            Self::LowRank { a, b, bias, magnitude } => {
                add_product(y, &product(x, a, None)?, b)?;
                if let Some(Magnitude { factor, shift }) = magnitude {
                    scale_columns(y, factor, shift)?;
                }
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
            Self::LowRank { a, b, bias, magnitude } => {
                let magnitude = magnitude.iter().flat_map(|magnitude| [&magnitude.factor, &magnitude.shift]);
                [a, b]
                    .into_iter()
                    .chain(bias)
                    .chain(magnitude)
                    .map(|t| t.elem_count() * t.dtype().size_in_bytes())
                    .sum()
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
