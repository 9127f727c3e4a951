//! What an initialization took out of the base's weights: PEFT takes it out again whenever it loads such an adapter.

use crate::adapters::module::Module;
use crate::adapters::ways_out::MERGE;
use crate::error::Result;
use candle_core::{Device, Tensor};
use faer::Mat;

/// Which terms of a module's weight `[out, in]` are taken out, as many as the update's rank. Each is the weight projected
/// on some orthonormal directions of its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// OLoRA's (arXiv:2406.01775), the first terms of the QR decomposition: the directions span the first columns.
    Olora,
    /// PiSSA's (arXiv:2404.02948), the largest terms of the singular value decomposition.
    Pissa,
}

impl Residual {
    /// What is taken out of a module's weight, as an update of this rank. `scale` is that of the adapter's own update.
    pub fn taken(self, module: &Module, rank: usize, scale: f64) -> Result<[Tensor; 2]> {
        // [in, out], so that the weight's columns are rows.
        let weight = module.weight()?;
        if rank > module.inputs().min(module.outputs()) {
            return Err(module.fail(&format!("{self:?} of rank {rank} does not fit its weight {:?}", module.shape)));
        }
        let rows = weight.to_vec2::<f32>()?;
        let directions = match self {
            Self::Olora => first_columns(&rows[..rank]),
            Self::Pissa => largest(&rows, rank),
        };
        let Some(directions) = directions else {
            let reason = format!("{self:?} of rank {rank} of this weight has no definite residual");
            return Err(module.fail(&format!("{reason}; {MERGE}")));
        };
        let elements = (0..rank).flat_map(|i| directions.col(i).iter().map(|x| *x as f32)).collect();
        let b = Tensor::from_vec(elements, (rank, module.outputs()), &Device::Cpu)?;
        // PiSSA divides by the scale what the adapter begins with, OLoRA does not.
        let share = if self == Self::Olora { scale } else { 1.0 };
        Ok([(weight.matmul(&b.t()?)? * share)?, b])
    }
}

/// Orthonormal columns that span some rows; none where the rows depend on each other.
fn first_columns(rows: &[Vec<f32>]) -> Option<Mat<f64>> {
    let qr = transposed(rows).qr();
    let longest =
        rows.iter().map(|row| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()).fold(0.0, f64::max);
    let definite = (0..rows.len()).all(|i| qr.R()[(i, i)].abs() > longest * 1e-7);
    definite.then(|| qr.compute_thin_Q())
}

/// The left singular vectors of the `count` largest singular values; none where the next value is as large as the last
/// of them, or they do not converge.
fn largest(rows: &[Vec<f32>], count: usize) -> Option<Mat<f64>> {
    let svd = transposed(rows).thin_svd().ok()?;
    let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let definite = values.get(count).is_none_or(|next| values[count - 1] - next > values[0] * 1e-7);
    definite.then(|| svd.U().subcols(0, count).to_owned())
}

fn transposed(rows: &[Vec<f32>]) -> Mat<f64> {
    Mat::from_fn(rows[0].len(), rows.len(), |i, j| f64::from(rows[j][i]))
}
