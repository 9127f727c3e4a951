//! Rows picked by number. See the CPU twin of the same name.

use super::array::Array;
use super::columns::{Copied, copy_rows};
use super::launch::{Launch, suffix};
use crate::error::{Error, Result};
use candle_core::DType;

/// What stands for a row of zeros.
const NONE: u32 = u32::MAX;

/// Tables of which rows are added up at once.
const TABLES_MAX: usize = 3;

/// See the CPU twin; of tables of one type, in f32.
pub fn look_up(tables: &[(&Array, &[u32])]) -> Result<Array> {
    let Some((first, ids)) = tables.first().filter(|_| tables.len() <= TABLES_MAX) else {
        return Err(Error::Internal(format!("rows of {} tables", tables.len())));
    };
    let width = first.dims()[1];
    let y = Array::new(first.gpu(), DType::F32, &[ids.len(), width])?;
    let mut launch = Launch::on(first.gpu()).array(&y);
    // They must be there until it is launched.
    let mut places = Vec::new();
    for place in 0..TABLES_MAX {
        let Some((table, others)) = tables.get(place) else {
            launch = launch.optional(None).optional(None);
            continue;
        };
        let rows = table.dense(table.dims()[0] * width)?.dims()[0];
        if (table.dtype(), others.len()) != (first.dtype(), ids.len()) {
            return Err(Error::Internal(format!(
                "{} rows of {table:?} beside {} of {first:?}",
                others.len(),
                ids.len()
            )));
        }
        // The largest of many is found much sooner than the first that is too large.
        if let Some(id) = others.iter().copied().max().filter(|id| *id as usize >= rows) {
            return Err(Error::Internal(format!("row {id} of a table of {rows}")));
        }
        let ids = Array::of_numbers(first.gpu(), others)?;
        launch = launch.array(table).array(&ids);
        places.push(ids);
    }
    launch.sizes([width]).run(&format!("look_up_{}", suffix(first.dtype())), [ids.len(), 1])?;
    Ok(y)
}

/// See the CPU twin; the result is of the type of `x`, whose [rest](Array::rest) is left.
pub fn pick(x: &Array, ids: &[u32]) -> Result<Array> {
    let x = &x.to_dtype(x.dtype())?;
    let inside = |id: &u32| if (*id as usize) < x.dims()[0] { *id } else { NONE };
    let ids = Array::of_numbers(x.gpu(), &ids.iter().map(inside).collect::<Vec<u32>>())?;
    let y = Array::new(x.gpu(), x.dtype(), &[ids.elements(), x.dims()[1]])?;
    copy_rows(&y, x, Copied { ids: Some(&ids), addend: None })?;
    Ok(y)
}
