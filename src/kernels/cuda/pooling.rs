//! Pooling. See the CPU twin of the same name.

use super::array::Array;
use super::launch::Launch;
use crate::error::Result;
use crate::kernels::Pooling;
use candle_core::DType;

/// Columns of a block.
const COLUMNS: usize = 32;

/// See the CPU twin; of f32.
pub fn pool(hidden: &Array, offsets: &[usize], left_out: &[usize], mode: Pooling) -> Result<Array> {
    let hidden = hidden.to_dtype(DType::F32)?;
    let [_, width, stride] = hidden.matrix()?;
    let (gpu, sequences) = (hidden.gpu(), offsets.len() - 1);
    let numbers = |all: &[usize]| all.iter().map(|number| *number as u32).collect::<Vec<u32>>();
    let offsets = Array::of_numbers(gpu, &numbers(offsets))?;
    let left_out = match left_out {
        [] => None,
        some => Some(Array::of_numbers(gpu, &numbers(some))?),
    };
    let y = Array::new(gpu, DType::F32, &[sequences, width])?;
    let launch = Launch::on(gpu).array(&y).array(&hidden).array(&offsets).optional(left_out.as_ref());
    let launch = launch.int(code(mode)).sizes([width, stride]);
    launch.run("pool_f32", [sequences, width.div_ceil(COLUMNS)])?;
    Ok(y)
}

/// What pooling.cu calls it.
fn code(mode: Pooling) -> i32 {
    match mode {
        Pooling::Cls => 0,
        Pooling::Max => 1,
        Pooling::Mean => 2,
        Pooling::MeanSqrtLen => 3,
        Pooling::WeightedMean => 4,
        Pooling::LastToken => 5,
    }
}
