//! LayerNorm and RMSNorm. See the CPU twin of the same name.

use super::array::Array;
use super::launch::{Launch, suffix};
use crate::error::Result;
use crate::kernels::NormKind;
use candle_core::DType;

/// See the CPU twin. The result is f32 where `x` or the residual is, else of their type; weights are f32.
pub fn norm(
    x: &Array,
    residual: Option<&Array>,
    kind: NormKind,
    weight: &Array,
    bias: Option<&Array>,
    eps: f32,
) -> Result<Array> {
    let rows = x.rows()?;
    let other = residual.map_or(x.dtype(), Array::dtype);
    let dtype = if other == x.dtype() { other } else { DType::F32 };
    let y = Array::new(x.gpu(), dtype, x.dims())?;
    let launch = Launch::on(x.gpu()).array(&y).array(x).optional(residual).array(weight).optional(bias);
    let launch = launch.int(i32::from(kind == NormKind::Layer)).float(eps);
    let launch = launch.sizes([rows.inner, rows.width, rows.outer_stride, rows.inner_stride]);
    launch.run(&format!("norm_{}_{}", suffix(x.dtype()), suffix(other)), [rows.outer * rows.inner, 1])?;
    Ok(y)
}

/// See the CPU twin; of f32.
pub fn unit(x: &Array) -> Result<Array> {
    let [rows, width, stride] = x.matrix()?;
    let y = Array::new(x.gpu(), DType::F32, x.dims())?;
    Launch::on(x.gpu()).array(&y).array(x).sizes([width, stride]).run("unit_f32", [rows, 1])?;
    Ok(y)
}
