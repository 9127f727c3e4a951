//! Rows picked by number. See the CPU twin of the same name.

use super::array::Array;
use super::columns::{Copied, copy_rows};
use crate::error::{Error, Result};
use candle_core::DType;

/// What stands for a row of zeros.
const NONE: u32 = u32::MAX;

/// See the CPU twin; the result is f32.
pub fn look_up(table: &Array, ids: &[u32], onto: Option<&Array>) -> Result<Array> {
    let rows = table.dims()[0];
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        return Err(Error::Internal(format!("row {id} of a table of {rows}")));
    }
    picked(table, ids, onto, DType::F32)
}

/// See the CPU twin; the result is of the type of `x`, whose [rest](Array::rest) is left.
pub fn pick(x: &Array, ids: &[u32]) -> Result<Array> {
    let x = &x.to_dtype(x.dtype())?;
    let inside = |id: &u32| if (*id as usize) < x.dims()[0] { *id } else { NONE };
    picked(x, &ids.iter().map(inside).collect::<Vec<u32>>(), None, x.dtype())
}

fn picked(x: &Array, ids: &[u32], onto: Option<&Array>, dtype: DType) -> Result<Array> {
    let y = Array::new(x.gpu(), dtype, &[ids.len(), x.dims()[1]])?;
    let ids = Array::of_numbers(x.gpu(), ids)?;
    copy_rows(&y, x, Copied { ids: Some(&ids), onto, addend: None })?;
    Ok(y)
}
