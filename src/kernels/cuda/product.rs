//! Matrix products, by cuBLASLt. See the CPU twin of the same name.

use super::activation::activate;
use super::array::Array;
use super::command::Command;
use super::delta::Grouped;
use super::matmul::{Element, Matmul, Operand};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Active};
use candle_core::DType;

/// `f(x W + b)`, see the CPU twins, with the changes of a batch's adapters before `f`.
pub struct Projection<'a> {
    /// `[rows, in]`, of the weight's type.
    pub x: &'a Array,
    /// `[in, out]`.
    pub weight: &'a Array,
    /// `[out]`.
    pub bias: Option<&'a Array>,
    /// What adapters change.
    pub updates: Option<&'a Grouped>,
    /// `f`.
    pub active: Option<Active>,
}

impl Projection<'_> {
    /// The result, of the weight's type.
    pub fn run(&self) -> Result<Array> {
        let Self { x, weight, updates, .. } = *self;
        let y = Array::new(x.gpu(), weight.dtype(), &[x.dims()[0], weight.dims()[1]])?;
        let bias = self.bias.map(|bias| bias.to_dtype(weight.dtype())).transpose()?;
        // Before any other activation a sum is rounded, as it is where an update is added to it: a row of the base must
        // not depend on whether another row has an adapter.
        let is_rectified = updates.is_none() && self.active == Some(Active::plain(Activation::Relu));
        multiply(&y, x, weight, Followed { bias: bias.as_ref(), accumulate: false, is_rectified })?;
        if let Some(updates) = updates {
            updates.expand(&y)?;
        }
        match self.active.filter(|_| !is_rectified) {
            Some(Active { activation, gate }) => activate(&y, activation, gate),
            None => Ok(y),
        }
    }
}

/// What is done with a product's sums.
#[derive(Default)]
struct Followed<'a> {
    bias: Option<&'a Array>,
    accumulate: bool,
    is_rectified: bool,
}

/// See the CPU twin; `y` may be a window.
pub fn add_product(y: &Array, x: &Array, weight: &Array) -> Result<()> {
    multiply(y, x, weight, Followed { accumulate: true, ..Followed::default() })
}

/// See the CPU twin; `y` may be a window.
pub fn set_product(y: &Array, x: &Array, weight: &Array) -> Result<()> {
    multiply(y, x, weight, Followed::default())
}

fn multiply(y: &Array, x: &Array, weight: &Array, followed: Followed) -> Result<()> {
    let x = x.to_dtype(weight.dtype())?;
    let ([rows, inputs, x_stride], [y_rows, outputs, y_stride]) = (x.matrix()?, y.matrix()?);
    let (w_stride, is_transposed) = match (weight.dims(), weight.strides()) {
        (&[w_inputs, w_outputs], _) if (w_inputs, w_outputs, y_rows) != (inputs, outputs, rows) => {
            return Err(Error::Internal(format!("{x:?} times {weight:?} is no {y:?}")));
        }
        // A single row's stride is anything.
        (_, &[1, stride]) => (stride.max(inputs), true),
        (_, &[stride, 1]) => (stride.max(outputs), false),
        _ => return Err(Error::Internal(format!("{weight:?} is no matrix"))),
    };
    if rows == 0 {
        return Ok(());
    }
    if y.dtype() != weight.dtype() && y.dtype() != DType::F32 {
        return Err(Error::Internal(format!("a product of {weight:?} in {y:?}")));
    }
    let operand = |array: &Array, stride: usize| Operand { address: array.address(), stride };
    y.gpu().run(Command::Multiply(Matmul {
        rows,
        inputs,
        outputs,
        element: Element::of(weight.dtype()),
        element_out: Element::of(y.dtype()),
        x: operand(&x, x_stride),
        w: operand(weight, w_stride),
        is_transposed,
        y: operand(y, y_stride),
        bias: followed.bias.map(Array::address),
        accumulate: followed.accumulate,
        is_rectified: followed.is_rectified,
    }))
}
