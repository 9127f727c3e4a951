//! Rotary positions. See the CPU twin of the same name.

use super::array::Array;
use super::launch::{Launch, suffix};
use crate::error::{Error, Result};

/// See the CPU twin; `positions` has one a token, in u32, and the result is of the type of `x`.
pub fn rotate(x: &Array, cos: &Array, sin: &Array, positions: &Array) -> Result<Array> {
    let rows = x.rows()?;
    if positions.elements() != rows.outer {
        return Err(Error::Internal(format!("{positions:?} of tokens {x:?}")));
    }
    let y = Array::new(x.gpu(), x.dtype(), x.dims())?;
    let launch = Launch::on(x.gpu()).array(&y).array(x).array(cos).array(sin).array(positions);
    let launch = launch.sizes([rows.inner, rows.width, rows.outer_stride, rows.inner_stride]);
    launch.run(&format!("rotate_{}", suffix(x.dtype())), [rows.outer, 1])?;
    Ok(y)
}
