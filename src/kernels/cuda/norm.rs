//! LayerNorm and RMSNorm. See the CPU twin of the same name.

use super::array::Array;
use super::launch::{BLOCK, Launch, suffix};
use crate::error::Result;
use crate::kernels::{NormKind, Normalization};
use candle_core::DType;

/// Columns up to which a warp has a row.
const OF_WARP: usize = 1024;

/// Warps of a block.
const WARPS: usize = BLOCK as usize / 32;

/// See the CPU twin. The result is f32 where `x` or the residual is, else of their type; weights are f32.
pub fn norm(x: &Array, residual: Option<&Array>, norm: &Normalization<Array>) -> Result<Array> {
    let rows = x.rows()?;
    let elements = x.elements();
    let residual = residual.map(|residual| residual.dense(elements)).transpose()?;
    let other = residual.map_or(x.dtype(), Array::dtype);
    let dtype = if other == x.dtype() { other } else { DType::F32 };
    let y = Array::new(x.gpu(), dtype, x.dims())?;
    // Of three types one at least is of 16 bits.
    let halves = [x.dtype(), other, norm.rounded.unwrap_or(DType::BF16)];
    let half = halves.into_iter().find(|dtype| *dtype != DType::F32).unwrap_or(DType::BF16);
    let rounded = norm.rounded.filter(|rounded| dtype == DType::F32 && *rounded == half);
    let rounded = rounded.map(|rounded| Array::new(x.gpu(), rounded, x.dims())).transpose()?;
    let launch = Launch::on(x.gpu()).array(&y).optional(rounded.as_ref()).array(x).optional(residual);
    let launch = launch.array(norm.weight).optional(norm.bias);
    let launch = launch.int(i32::from(norm.kind == NormKind::Layer)).float(norm.eps);
    let count = rows.outer * rows.inner;
    let launch = launch.sizes([count, rows.inner, rows.width, rows.outer_stride, rows.inner_stride]);
    let kernel = format!("norm_{}_{}_{}", suffix(x.dtype()), suffix(other), suffix(half));
    launch.run(&kernel, [blocks(count, rows.width), 1])?;
    Ok(y.with_rounded(rounded))
}

/// See the CPU twin; of f32.
pub fn unit(x: &Array) -> Result<Array> {
    let [rows, width, stride] = x.matrix()?;
    let y = Array::new(x.gpu(), DType::F32, x.dims())?;
    let launch = Launch::on(x.gpu()).array(&y).array(x).sizes([rows, width, stride]);
    launch.run("unit_f32", [blocks(rows, width), 1])?;
    Ok(y)
}

/// A block has a wide row, or one for each of its warps.
fn blocks(rows: usize, width: usize) -> usize {
    if width > OF_WARP { rows } else { rows.div_ceil(WARPS) }
}
