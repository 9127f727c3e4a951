//! Matrix products, by cuBLASLt. See the CPU twin of the same name.

use super::array::Array;
use super::gpu::Multiplication;
use crate::error::{Error, Result};
use candle_core::DType;

/// See the CPU twin; `x` is rounded to the weight's type, which is the result's.
pub fn product(x: &Array, weight: &Array, bias: Option<&Array>) -> Result<Array> {
    let y = Array::new(x.gpu(), weight.dtype(), &[x.dims()[0], weight.dims()[1]])?;
    let bias = bias.map(|bias| bias.to_dtype(weight.dtype())).transpose()?;
    multiply(&y, x, weight, bias.as_ref(), false)?;
    Ok(y)
}

/// See the CPU twin; `y` may be a window.
pub fn add_product(y: &Array, x: &Array, weight: &Array) -> Result<()> {
    multiply(y, x, weight, None, true)
}

/// See the CPU twin; `y` may be a window.
pub fn set_product(y: &Array, x: &Array, weight: &Array) -> Result<()> {
    multiply(y, x, weight, None, false)
}

fn multiply(y: &Array, x: &Array, weight: &Array, bias: Option<&Array>, accumulate: bool) -> Result<()> {
    let x = x.to_dtype(weight.dtype())?;
    let ([rows, inputs, x_stride], [y_rows, outputs, y_stride]) = (x.matrix()?, y.matrix()?);
    let (w_stride, is_transposed) = match (weight.dims(), weight.strides()) {
        (&[w_inputs, w_outputs], _) if (w_inputs, w_outputs, y_rows) != (inputs, outputs, rows) => {
            return Err(Error::Internal(format!("{x:?} times {weight:?} is no {y:?}")));
        }
        (_, &[1, stride]) => (stride, true),
        (_, &[stride, 1]) => (stride, false),
        _ => return Err(Error::Internal(format!("{weight:?} is no matrix"))),
    };
    if rows == 0 {
        return Ok(());
    }
    if y.dtype() != weight.dtype() && y.dtype() != DType::F32 {
        return Err(Error::Internal(format!("a product of {weight:?} in {y:?}")));
    }
    y.gpu().multiply(&Multiplication {
        rows,
        inputs,
        outputs,
        dtype: weight.dtype(),
        dtype_out: y.dtype(),
        x: (x.address(), x_stride),
        w: (weight.address(), w_stride),
        is_transposed,
        y: (y.address(), y_stride),
        bias: bias.map(Array::address),
        accumulate,
    })
}
