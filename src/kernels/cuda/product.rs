//! Matrix products, by cuBLASLt. See the CPU twin of the same name.

use super::activation::activate;
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
        let Self { x, weight, updates, .. } = *self;
        let y = Array::new(x.gpu(), weight.dtype(), &[x.dims()[0], weight.dims()[1]])?;
        let epilogue = self.active.filter(|_| updates.is_none()).and_then(|active| epilogue(weight, active));
        self.multiply(&y, x, epilogue.unwrap_or_default())?;
        if let Some(updates) = updates {
            updates.expand(&y)?;
        }
        match self.active.filter(|_| epilogue.is_none()) {
            Some(Active { activation, gate }) => activate(&y, activation, gate),
            None => Ok(y),
        }
    }

    /// The same, but that some rows, in order, are products without `f` and without updates; where a product
    /// [activates](activates).
    pub fn run_apart(&self, apart: &[Range<usize>]) -> Result<Array> {
        let Self { x, weight, .. } = *self;
        let y = Array::new(x.gpu(), weight.dtype(), &[x.dims()[0], weight.dims()[1]])?;
        let epilogue = self.active.and_then(|active| epilogue(weight, active));
        let epilogue = epilogue.ok_or_else(|| Error::Internal(format!("{weight:?} activates nothing itself")))?;
        let multiply = |rows: Range<usize>, epilogue: Epilogue| {
            let part = |array: &Array| array.narrow(0, rows.start, rows.len());
            self.multiply(&part(&y)?, &part(x)?, epilogue)
        };
        let mut next = 0;
        for rows in apart {
            multiply(next..rows.start, epilogue)?;
            multiply(rows.clone(), Epilogue::Absent)?;
            next = rows.end;
        }
        multiply(next..x.dims()[0], epilogue)?;
        Ok(y)
    }

    /// The product of rows of `x`, into `y`.
    fn multiply(&self, y: &Array, x: &Array, epilogue: Epilogue) -> Result<()> {
        let bias = self.bias.map(|bias| bias.to_dtype(self.weight.dtype())).transpose()?;
        multiply(y, x, self.weight, Followed { bias: bias.as_ref(), accumulate: false, epilogue })
    }
}

/// Whether a product with a weight makes another thing of its sums than an activation makes of them once they are rounded. Then it
/// must not depend on other rows which of the two becomes of one.
pub fn activates(weight: &Array, active: Active) -> bool {
    epilogue(weight, active) == Some(Epilogue::GeluTanh)
}

/// That of an activation. More than the simplest is asked of cuBLASLt only for matrices whose dense rows begin at 16 bytes.
fn epilogue(weight: &Array, active: Active) -> Option<Epilogue> {
    let is_aligned = weight.dims().iter().all(|count| count.is_multiple_of(8));
    Epilogue::of(active, weight.dtype()).filter(|epilogue| is_aligned || *epilogue == Epilogue::Relu)
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
