//! Activation functions. See the CPU twin of the same name.

use super::array::Array;
use super::launch::{Launch, suffix};
use crate::error::Result;
use crate::kernels::{Activation, Gate};

/// Columns of a block.
const COLUMNS: usize = 1024;

/// See the CPU twin; the result is of the type of `x`.
pub fn activate(x: &Array, activation: Activation, gate: Gate) -> Result<Array> {
    let [rows, columns, stride] = x.matrix()?;
    let (gate, width) = match gate {
        Gate::Absent => (0, columns),
        Gate::First => (1, columns / 2),
        Gate::Second => (2, columns / 2),
    };
    let (code, p, q) = code(activation);
    let y = Array::new(x.gpu(), x.dtype(), &[rows, width])?;
    let launch = Launch::on(x.gpu()).array(&y).array(x).int(code).float(p).float(q).int(gate).sizes([width, stride]);
    launch.run(&format!("activate_{}", suffix(x.dtype())), [rows, width.div_ceil(COLUMNS)])?;
    Ok(y)
}

/// What activation.cu calls it, and its parameters.
fn code(activation: Activation) -> (i32, f32, f32) {
    match activation {
        Activation::Gelu => (0, 0.0, 0.0),
        Activation::GeluTanh => (1, 0.0, 0.0),
        Activation::Relu => (2, 0.0, 0.0),
        Activation::Silu => (3, 0.0, 0.0),
        Activation::Tanh => (4, 0.0, 0.0),
        Activation::Sigmoid => (5, 0.0, 0.0),
        Activation::LogSigmoid => (6, 0.0, 0.0),
        Activation::LeakyRelu(slope) => (7, slope, 0.0),
        Activation::Elu => (8, 0.0, 0.0),
        Activation::Selu => (9, 0.0, 0.0),
        Activation::Softplus => (10, 0.0, 0.0),
        Activation::Mish => (11, 0.0, 0.0),
        Activation::Clamp(low, high) => (12, low, high),
        Activation::HardSigmoid => (13, 0.0, 0.0),
        Activation::HardSwish => (14, 0.0, 0.0),
        Activation::Softsign => (15, 0.0, 0.0),
        Activation::Softshrink => (16, 0.0, 0.0),
        Activation::Hardshrink => (17, 0.0, 0.0),
        Activation::Tanhshrink => (18, 0.0, 0.0),
    }
}
