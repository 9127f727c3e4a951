//! What adapters change: deltas by site.

mod adapter;
mod linear;
mod norm;
mod plan;
mod table;

pub use adapter::Adapter;
pub use linear::{LinearDelta, LowRank, Magnitude};
pub use norm::NormDelta;
pub use plan::Plan;
pub use table::{OwnRows, TableDelta};

use super::sites::Weight;
use crate::error::{Error, Result};
use crate::kernels::{Device, Tensor, add_difference};
use candle_core::DType;

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

    fn as_linear(&self) -> Option<&LinearDelta> {
        match self {
            Self::Linear(delta) => Some(delta),
            Self::Table(_) | Self::Norm(_) | Self::Blend(_) => None,
        }
    }

    /// The update that it is, where it is nothing else.
    fn as_update(&self) -> Option<&LowRank> {
        self.as_linear()?.as_update()
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

    /// The same on a device, matrices in `dtype` there, over what the base has at its site.
    fn placed(&self, device: &Device, dtype: DType, base: Option<&Weight>) -> Result<Self> {
        match self {
            Self::Linear(delta) => Ok(Self::Linear(delta.placed(device, dtype, base)?)),
            Self::Table(delta) => Ok(Self::Table(delta.placed(device, dtype)?)),
            Self::Norm(delta) => Ok(Self::Norm(delta.placed(device)?)),
            Self::Blend(_) => Err(Error::Internal("a blend is of adapters that are placed already".into())),
        }
    }
}
