//! Matrix products, by cuBLASLt. See the CPU twin of the same name.

use super::activation::activated;
use super::array::Array;
use super::command::Command;
use super::delta::Grouped;
use super::matmul::{Element, Epilogue, Matmul, Operand};
use crate::error::{Error, Result};
use crate::kernels::Active;
use candle_core::DType;
use std::ops::Range;

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
        let y = self.result()?;
        // What changes comes before `f`, which is not the product's own then: who knows the rows that change leaves them out
        // of those that are `f` of it already.
        let epilogue = self.active.filter(|_| self.updates.is_none()).and_then(|active| epilogue(self.weight, active));
        self.multiply(&y, 0..y.dims()[0], epilogue.unwrap_or_default())?;
        if let Some(updates) = self.updates {
            updates.expand(&y)?;
        }
        activated(y, self.active.filter(|_| epilogue.is_none()))
    }

    /// The same of most rows, and the product alone of those that are left, in order; without updates. `f` must be one that
    /// [the product makes itself](makes).
    pub fn run_but(&self, left: &[Range<usize>]) -> Result<Array> {
        let y = self.result()?;
        let epilogue = self.active.and_then(|active| epilogue(self.weight, active));
        let epilogue = epilogue.ok_or_else(|| Error::Internal("a product of no activation".into()))?;
        let mut next = 0;
        for rows in left {
            self.multiply(&y, next..rows.start, epilogue)?;
            self.multiply(&y, rows.clone(), Epilogue::Absent)?;
            next = rows.end;
        }
        self.multiply(&y, next..y.dims()[0], epilogue)?;
        Ok(y)
    }

    fn result(&self) -> Result<Array> {
        Array::new(self.x.gpu(), self.weight.dtype(), &[self.x.dims()[0], self.weight.dims()[1]])
    }

    fn multiply(&self, y: &Array, rows: Range<usize>, epilogue: Epilogue) -> Result<()> {
        let bias = self.bias.map(|bias| bias.to_dtype(self.weight.dtype())).transpose()?;
        let part = |array: &Array| array.narrow(0, rows.start, rows.len());
        multiply(&part(y)?, &part(self.x)?, self.weight, Followed { bias: bias.as_ref(), accumulate: false, epilogue })
    }
}

/// Whether products with a weight activate their own sums, before they round them.
pub fn makes(weight: &Array, active: Active) -> bool {
    epilogue(weight, active).is_some()
}

fn epilogue(weight: &Array, active: Active) -> Option<Epilogue> {
    Epilogue::of(active, weight.dtype())
}

/// What is done with a product's sums.
#[derive(Default)]
struct Followed<'a> {
    bias: Option<&'a Array>,
    accumulate: bool,
    epilogue: Epilogue,
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
        epilogue: followed.epilogue,
    }))
}
