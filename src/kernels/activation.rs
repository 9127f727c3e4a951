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
}

impl Activation {
    /// By its name in a Hugging Face configuration (`hidden_act`).
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            "silu" | "swish" => Some(Self::Silu),
            _ => None,
        }
    }
}

/// `f(x)` elementwise, `[rows, n] -> [rows, n]`; gated: `f(x[:, :n]) * x[:, n:]`, `[rows, 2n] -> [rows, n]`.
pub fn activate(x: &Tensor, activation: Activation, gated: bool) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Activate { activation, gated })
}

struct Activate {
    activation: Activation,
    gated: bool,
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = Rows::of(x, layout)?;
        let width = if self.gated { rows.width / 2 } else { rows.width };
        let mut y = vec![0f32; rows.count * width];
        y.par_chunks_exact_mut(width).with_min_len(1 + 8192 / width).enumerate().for_each(|(i, y)| {
            let (x, gate) = rows.row(i).split_at(width);
            match self.activation {
                Activation::Gelu => map(y, x, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))),
                Activation::GeluTanh => map(y, x, |x| {
                    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                    0.5 * x * (1.0 + tanh(inner))
                }),
                // Not `max`, which makes 0 of NaN.
                Activation::Relu => map(y, x, |x| if x < 0.0 { 0.0 } else { x }),
                Activation::Silu => map(y, x, |x| x / (1.0 + exp(-x))),
            }
            y.iter_mut().zip(gate).for_each(|(y, gate)| *y *= gate);
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
        ] {
            let ours = activate(&x, activation, false).unwrap();
            assert!(difference(&ours, &plain) < 3e-6, "{activation:?}");
        }
    }

    #[test]
    fn gated_multiplies_by_the_second_half() {
        let x = Tensor::randn(0f32, 1.0, (5, 64), &Device::Cpu).unwrap();
        let plain = (x.narrow(1, 0, 32).unwrap().silu().unwrap() * x.narrow(1, 32, 32).unwrap()).unwrap();
        assert!(difference(&activate(&x, Activation::Silu, true).unwrap(), &plain) < 1e-6);
    }
}
