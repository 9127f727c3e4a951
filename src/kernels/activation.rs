//! Activation functions of the MLP, plain and gated.

use super::math::{erf, exp, tanh, vectorized};
use super::view::Rows;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// An MLP's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x Phi(x), exact: `gelu` in a Hugging Face configuration.
    Gelu,
    /// The tanh approximation: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x sigmoid(x), also called swish.
    Silu,
    /// The hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// By its name in a Hugging Face configuration (`hidden_act`).
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            "silu" | "swish" => Some(Self::Silu),
            "tanh" => Some(Self::Tanh),
            _ => None,
        }
    }
}

/// Whether the activation of one half of a row multiplies the other half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Neither; a row is one vector.
    Absent,
    /// The activation is of the first half.
    First,
    /// The activation is of the second half.
    Second,
}

/// `f(x)` elementwise, `[rows, n] -> [rows, n]`; gated: `f` of one half times the other, `[rows, 2n] -> [rows, n]`.
pub fn activate(x: &Tensor, activation: Activation, gate: Gate) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Activate { activation, gate })
}

struct Activate {
    activation: Activation,
    gate: Gate,
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = Rows::of(x, layout)?;
        let width = if self.gate == Gate::Absent { rows.width } else { rows.width / 2 };
        let mut y = vec![0f32; rows.count * width];
        y.par_chunks_exact_mut(width).with_min_len(1 + 8192 / width).enumerate().for_each(|(i, y)| {
            let (first, second) = rows.row(i).split_at(width);
            let (x, gated) = if self.gate == Gate::Second { (second, first) } else { (first, second) };
            match self.activation {
                Activation::Gelu => map(y, x, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
                Activation::GeluTanh => map(y, x, |x| {
                    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                    0.5 * x * (1.0 + tanh(inner))
                }),
                // Not `max`, which makes 0 of NaN.
                Activation::Relu => map(y, x, |x| if x < 0.0 { 0.0 } else { x }),
                Activation::Silu => map(y, x, |x| x / (1.0 + exp(-x))),
                Activation::Tanh => map(y, x, tanh),
            }
            y.iter_mut().zip(gated).for_each(|(y, gated)| *y *= gated);
        });
        Ok((CpuStorage::F32(y), Shape::from((rows.count, width))))
    }
}

#[inline(always)]
fn map(y: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32) {
    vectorized(
        #[inline(always)]
        || y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn each_activation_is_candles() {
        let x = Tensor::randn(0f32, 3.0, (7, 101), &Device::Cpu).unwrap();
        for (activation, plain) in [
            (Activation::Gelu, x.gelu_erf().unwrap()),
            (Activation::GeluTanh, x.gelu().unwrap()),
            (Activation::Relu, x.relu().unwrap()),
            (Activation::Silu, x.silu().unwrap()),
            (Activation::Tanh, x.tanh().unwrap()),
        ] {
            let ours = activate(&x, activation, Gate::Absent).unwrap();
            assert!(difference(&ours, &plain) < 3e-6, "{activation:?}");
        }
    }

    #[test]
    fn either_half_may_be_the_gate_of_the_other() {
        let x = Tensor::randn(0f32, 1.0, (5, 64), &Device::Cpu).unwrap();
        let half = |first: usize| x.narrow(1, first, 32).unwrap();
        for (gate, active, gated) in [(Gate::First, 0, 32), (Gate::Second, 32, 0)] {
            let plain = (half(active).silu().unwrap() * half(gated)).unwrap();
            assert!(difference(&activate(&x, Activation::Silu, gate).unwrap(), &plain) < 1e-6, "{gate:?}");
        }
    }
}
