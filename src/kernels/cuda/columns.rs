//! Rows and columns copied, scaled and added up. See the CPU twin of the same name.

use super::array::{Array, Rows};
use super::launch::{Launch, suffix};
use crate::error::{Error, Result};
use candle_core::DType;

/// Elements of a block, where they are counted one by one.
const ELEMENTS: usize = 1024;

/// What is done to rows on the way from one place to another.
#[derive(Clone, Copy, Default)]
pub(super) struct Copied<'a> {
    /// Which rows are taken, of the outermost dimension; the highest number is a row of zeros. All in order where
    /// there are none.
    pub ids: Option<&'a Array>,
    /// Added to every index of the outermost dimension: f32, `[inner, width]`.
    pub addend: Option<&'a Array>,
}

/// `y = x`, with conversion, in place; both may be windows with dense rows.
pub fn assign(y: &Array, x: &Array) -> Result<()> {
    copy_rows(y, x, Copied::default())
}

pub(super) fn copy_rows(y: &Array, x: &Array, copied: Copied) -> Result<()> {
    let x = &x.whole()?;
    let (from, to) = (x.rows()?, y.rows()?);
    let is_same = copied.ids.is_some() || from.outer == to.outer;
    if !is_same || (from.inner, from.width) != (to.inner, to.width) {
        return Err(Error::Internal(format!("rows of {x:?} are none of {y:?}")));
    }
    let Rows { outer, inner, width, outer_stride, inner_stride } = to;
    let addend = copied.addend.map(|addend| addend.dense(inner * width)).transpose()?;
    let kernel = format!("copy_{}_{}", suffix(x.dtype()), suffix(y.dtype()));
    let launch = Launch::on(y.gpu()).array(y).array(x).optional(copied.ids).optional(addend);
    let launch = launch.sizes([inner, width, from.outer_stride, from.inner_stride]);
    launch.sizes([outer_stride, inner_stride]).run(&kernel, [outer * inner, 1])
}

/// `x [tokens, heads, width]`, which may be a window, plus `addend [heads, width]`, in f32, for every token; of its type.
pub fn add_to_each(x: &Array, addend: &Array) -> Result<Array> {
    let y = Array::new(x.gpu(), x.dtype(), x.dims())?;
    copy_rows(&y, x, Copied { addend: Some(addend), ..Copied::default() })?;
    Ok(y)
}

/// `a + b` of one shape, dense; f32 where one of them is.
pub fn sum(a: &Array, b: &Array) -> Result<Array> {
    let (a, b) = (&a.whole()?, &b.whole()?);
    if a.dims() != b.dims() || !a.is_dense() || !b.is_dense() {
        return Err(Error::Internal(format!("a sum of {a:?} and {b:?}")));
    }
    let dtype = if a.dtype() == b.dtype() { a.dtype() } else { DType::F32 };
    let y = Array::new(a.gpu(), dtype, a.dims())?;
    let kernel = format!("sum_{}_{}", suffix(a.dtype()), suffix(b.dtype()));
    let launch = Launch::on(a.gpu()).array(&y).array(a).array(b).float(1.0).long(a.elements());
    launch.run(&kernel, [a.elements().div_ceil(ELEMENTS), 1])?;
    Ok(y)
}

/// `scale * x`, of f32, dense.
pub fn affine(x: &Array, scale: f32) -> Result<Array> {
    let x = x.to_dtype(DType::F32)?;
    let x = if x.is_dense() { x } else { x.copy()? };
    let y = Array::new(x.gpu(), DType::F32, x.dims())?;
    let launch = Launch::on(x.gpu()).array(&y).array(&x).float(scale).long(x.elements());
    launch.run("affine_f32", [x.elements().div_ceil(ELEMENTS), 1])?;
    Ok(y)
}

/// See the CPU twin; `factor` and `shift` are f32.
pub fn scale_columns(y: &Array, factor: &Array, shift: &Array) -> Result<()> {
    let [rows, columns, stride] = y.matrix()?;
    let launch = Launch::on(y.gpu()).array(y).array(factor).array(shift).sizes([columns, stride]);
    launch.run(&format!("scale_columns_{}", suffix(y.dtype())), [rows, 1])
}

/// See the CPU twin; all three are of one type.
pub fn add_difference(y: &Array, after: &Array, before: &Array, weight: f32) -> Result<()> {
    let [rows, columns, stride] = y.matrix()?;
    let (after, before) = (after.dense(rows * columns)?, before.dense(rows * columns)?);
    let launch = Launch::on(y.gpu()).array(y).array(after).array(before).float(weight).sizes([columns, stride]);
    launch.run(&format!("add_difference_{}", suffix(y.dtype())), [rows, 1])
}

/// `y[rows[i], :] += shares[i] * x[i, :]`; no row comes twice, `y` is f32.
pub fn scatter_add(y: &Array, x: &Array, rows: &[u32], shares: &Array) -> Result<()> {
    let width = y.dense(y.elements())?.dims()[1];
    let x = x.dense(rows.len() * width)?;
    let places = Array::of_numbers(y.gpu(), rows)?;
    let launch = Launch::on(y.gpu()).array(y).array(x).array(&places).array(shares).sizes([width]);
    launch.run(&format!("scatter_add_{}", suffix(x.dtype())), [rows.len(), 1])
}

/// Arrays of one type one after the other along a dimension.
pub fn joined(parts: &[&Array], dimension: usize) -> Result<Array> {
    let parts: Vec<Array> = parts.iter().map(|part| part.whole()).collect::<Result<_>>()?;
    let Some(first) = parts.first() else { return Err(Error::Internal("nothing to join".into())) };
    let mut dims = first.dims().to_vec();
    dims[dimension] = parts.iter().map(|part| part.dims()[dimension]).sum();
    let whole = Array::new(first.gpu(), first.dtype(), &dims)?;
    let mut start = 0;
    for part in &parts {
        let count = part.dims()[dimension];
        assign(&whole.narrow(dimension, start, count)?, part)?;
        start += count;
    }
    Ok(whole)
}
