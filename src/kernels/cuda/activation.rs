//! Activation functions. See the CPU twin of the same name.

use super::array::Array;
use super::launch::{BLOCK, Launch, suffix};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Gate};
use std::mem::discriminant;
use std::ops::Range;

/// Numbers of a thread.
const OWN: usize = 16;

/// See the CPU twin; the result is of the type of `x`.
pub fn activate(x: &Array, activation: Activation, gate: Gate) -> Result<Array> {
    let (_, width) = gated(gate, x.dims()[1]);
    let y = Array::new(x.gpu(), x.dtype(), &[x.dims()[0], width])?;
    activate_into(&y, x, activation, gate)?;
    Ok(y)
}

/// The same of some rows of `x`, which must be dense, where they lie.
pub fn activate_rows(x: &Array, activation: Activation, rows: &[Range<usize>]) -> Result<()> {
    if !x.is_dense() {
        return Err(Error::Internal(format!("{x:?} is to be activated where it lies")));
    }
    rows.iter().try_for_each(|rows| {
        let x = x.narrow(0, rows.start, rows.len())?;
        activate_into(&x, &x, activation, Gate::Absent)
    })
}

fn activate_into(y: &Array, x: &Array, activation: Activation, gate: Gate) -> Result<()> {
    let [rows, columns, stride] = x.matrix()?;
    let (gate, width) = gated(gate, columns);
    let [p, q] = match activation {
        Activation::LeakyRelu(slope) => [slope, 0.0],
        Activation::Clamp(low, high) => [low, high],
        _ => [0.0; 2],
    };
    let launch = Launch::on(x.gpu()).array(y).array(x).int(code(activation)).float(p).float(q).int(gate);
    let launch = launch.sizes([rows, width, stride]);
    // A thread has 16 bytes of a row, side by side.
    let columns = 16 / x.dtype().size_in_bytes();
    let blocks = [rows.div_ceil(OWN / columns), width.div_ceil(columns * BLOCK as usize)];
    launch.run(&format!("activate_{}", suffix(x.dtype())), blocks)
}

/// What activation.cu calls a gate, and the columns that it leaves of so many.
fn gated(gate: Gate, columns: usize) -> (i32, usize) {
    match gate {
        Gate::Absent => (0, columns),
        Gate::First => (1, columns / 2),
        Gate::Second => (2, columns / 2),
    }
}

/// What activation.cu calls it: its place among all of them.
fn code(activation: Activation) -> i32 {
    let is_kind = |known: &Activation| discriminant(known) == discriminant(&activation);
    Activation::SOME.iter().take_while(|known| !is_kind(known)).count() as i32
}
