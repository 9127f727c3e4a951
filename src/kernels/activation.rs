//! Activation functions, elementwise: of the MLP, plain and gated, and of dense layers after pooling.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the loop of GELU is AVX-512's, written out"))]

use super::math::{erf, exp, tanh, vectorized};
use super::threads::made_rows;
use super::view::Rows;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// A nonlinearity. What torch.nn gives a default is that default.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// ln sigmoid(x).
    LogSigmoid,
    /// x, below 0 times this slope.
    LeakyRelu(f32),
    /// x, below 0 e^x - 1.
    Elu,
    /// ELU of alpha 1.673 times 1.051, which keep mean and variance.
    Selu,
    /// ln(1 + e^x); x itself above 20, as in torch.
    Softplus,
    /// x tanh(softplus(x)).
    Mish,
    /// Between these two.
    Clamp(f32, f32),
    /// x + 3 between 0 and 6, over 6.
    HardSigmoid,
    /// x times that.
    HardSwish,
    /// x / (1 + |x|).
    Softsign,
    /// Half nearer to 0.
    Softshrink,
    /// 0 within a half of 0.
    Hardshrink,
    /// x - tanh(x).
    Tanhshrink,
}

impl Activation {
    /// One of every kind, in the order in which activation.cu counts them.
    pub(super) const SOME: [Self; 19] = [
        Self::Gelu,
        Self::GeluTanh,
        Self::Relu,
        Self::Silu,
        Self::Tanh,
        Self::Sigmoid,
        Self::LogSigmoid,
        Self::LeakyRelu(0.01),
        Self::Elu,
        Self::Selu,
        Self::Softplus,
        Self::Mish,
        Self::Clamp(-1.0, 1.0),
        Self::HardSigmoid,
        Self::HardSwish,
        Self::Softsign,
        Self::Softshrink,
        Self::Hardshrink,
        Self::Tanhshrink,
    ];

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

/// An activation, and whether it gates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Active {
    /// Of each number.
    pub activation: Activation,
    /// What it multiplies.
    pub gate: Gate,
}

impl Active {
    /// One that multiplies nothing.
    pub fn plain(activation: Activation) -> Self {
        Self { activation, gate: Gate::Absent }
    }
}

/// `f(x)` elementwise, `[rows, n] -> [rows, n]`; gated: `f` of one half times the other, `[rows, 2n] -> [rows, n]`.
pub fn activate(x: &Tensor, activation: Activation, gate: Gate) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Activate { activation, gate })
}

impl Activation {
    /// Changes numbers in place.
    pub(super) fn change(self, y: &mut [f32]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Gelu if is_x86_feature_detected!("avx512f") => {
                let (vectors, rest) = y.as_chunks_mut::<16>();
                // SAFETY: the machine has AVX-512.
                unsafe { avx512::gelu(vectors) };
                rest.iter_mut().for_each(|x| *x = gelu(*x));
            }
            Self::Gelu => vectorized(
                #[inline(always)]
                || y.iter_mut().for_each(|x| *x = gelu(*x)),
            ),
            other => {
                let x = y.to_vec();
                other.apply(y, &x);
            }
        }
    }

    /// NaN stays NaN in every one.
    pub(super) fn apply(self, y: &mut [f32], x: &[f32]) {
        match self {
            Self::Gelu => {
                y.copy_from_slice(x);
                self.change(y);
            }
            Self::GeluTanh => map(y, x, |x| {
                let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + tanh(inner))
            }),
            // Not `max`, which makes 0 of NaN.
            Self::Relu => map(y, x, |x| if x < 0.0 { 0.0 } else { x }),
            Self::Silu => map(y, x, |x| x / (1.0 + exp(-x))),
            Self::Tanh => map(y, x, tanh),
            Self::Sigmoid => map(y, x, |x| 1.0 / (1.0 + exp(-x))),
            Self::LogSigmoid => map(y, x, |x| if x < 0.0 { x } else { 0.0 * x } - exp(-x.abs()).ln_1p()),
            Self::LeakyRelu(slope) => map(y, x, |x| if x < 0.0 { slope * x } else { x }),
            Self::Elu => map(y, x, elu),
            // The constants of Klambauer et al., 2017.
            Self::Selu => map(y, x, |x| 1.050_701 * if x < 0.0 { 1.673_263_2 * elu(x) } else { x }),
            Self::Softplus => map(y, x, softplus),
            Self::Mish => map(y, x, |x| x * tanh(softplus(x))),
            Self::Clamp(low, high) => map(y, x, |x| x.clamp(low, high)),
            Self::HardSigmoid => map(y, x, |x| (x + 3.0).clamp(0.0, 6.0) / 6.0),
            Self::HardSwish => map(y, x, |x| x * (x + 3.0).clamp(0.0, 6.0) / 6.0),
            Self::Softsign => map(y, x, |x| x / (1.0 + x.abs())),
            Self::Softshrink => map(y, x, |x| x - x.clamp(-0.5, 0.5)),
            Self::Hardshrink => map(y, x, |x| if x.abs() <= 0.5 { 0.0 } else { x }),
            Self::Tanhshrink => map(y, x, |x| x - tanh(x)),
        }
    }
}

/// x Phi(x).
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn elu(x: f32) -> f32 {
    if x < 0.0 { exp(x) - 1.0 } else { x }
}

#[inline(always)]
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { exp(x).ln_1p() }
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
        let y = made_rows(rows.count, width, |i, y| {
            let (first, second) = rows.row(i).split_at(width);
            let (x, gated) = if self.gate == Gate::Second { (second, first) } else { (first, second) };
            self.activation.apply(y, x);
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

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use crate::kernels::math::{ERF_BOTTOM, ERF_TOP};
    use std::arch::x86_64::*;

    /// x Phi(x), with the quotient of `math::erf` by a reciprocal that one step of Newton's makes exact.
    #[target_feature(enable = "avx512f")]
    pub fn gelu(vectors: &mut [[f32; 16]]) {
        let set = |x: f32| _mm512_set1_ps(x);
        for vector in vectors {
            // SAFETY: a vector has 16 numbers.
            let x = unsafe { _mm512_loadu_ps(vector.as_ptr()) };
            let t = _mm512_mul_ps(x, set(std::f32::consts::FRAC_1_SQRT_2));
            // Of NaN both give the second.
            let t = _mm512_max_ps(set(-4.0), _mm512_min_ps(set(4.0), t));
            let t2 = _mm512_mul_ps(t, t);
            let mut top = set(ERF_TOP[0]);
            for term in &ERF_TOP[1..] {
                top = _mm512_fmadd_ps(top, t2, set(*term));
            }
            let mut bottom = set(ERF_BOTTOM[0]);
            for term in &ERF_BOTTOM[1..] {
                bottom = _mm512_fmadd_ps(bottom, t2, set(*term));
            }
            let near = _mm512_rcp14_ps(bottom);
            let reciprocal = _mm512_mul_ps(near, _mm512_fnmadd_ps(bottom, near, set(2.0)));
            let erf = _mm512_mul_ps(_mm512_mul_ps(t, top), reciprocal);
            let half = _mm512_mul_ps(x, set(0.5));
            // SAFETY: a vector has 16 numbers.
            unsafe { _mm512_storeu_ps(vector.as_mut_ptr(), _mm512_fmadd_ps(half, erf, half)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::normal;
    use candle_core::Device;

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn each_activation_is_candles() {
        let x = normal(3.0, (7, 101));
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
    fn each_activation_at_two_points_is_torchs() {
        let x = Tensor::new(&[[-2.5f32, 0.25, f32::NAN]], &Device::Cpu).unwrap();
        for (activation, expected) in [
            (Activation::Sigmoid, [0.075_858_18, 0.562_176_5]),
            (Activation::LogSigmoid, [-2.578_889_8, -0.575_939_4]),
            (Activation::LeakyRelu(0.01), [-0.025, 0.25]),
            (Activation::Elu, [-0.917_915, 0.25]),
            (Activation::Selu, [-1.613_785_7, 0.262_675_26]),
            (Activation::Softplus, [0.078_889_73, 0.825_939_4]),
            (Activation::Mish, [-0.196_816_19, 0.169_572_4]),
            (Activation::Clamp(-1.0, 1.0), [-1.0, 0.25]),
            (Activation::HardSigmoid, [0.083_333_33, 0.541_666_7]),
            (Activation::HardSwish, [-0.208_333_33, 0.135_416_67]),
            (Activation::Softsign, [-0.714_285_73, 0.2]),
            (Activation::Softshrink, [-2.0, 0.0]),
            (Activation::Hardshrink, [-2.5, 0.0]),
            (Activation::Tanhshrink, [-1.513_385_7, 0.005_081_34]),
        ] {
            let ours: Vec<Vec<f32>> = activate(&x, activation, Gate::Absent).unwrap().to_vec2().unwrap();
            let near = expected.iter().zip(&ours[0]).all(|(expected, ours)| (expected - ours).abs() < 1e-6);
            assert!(near && ours[0][2].is_nan(), "{activation:?}: {ours:?}");
        }
    }

    #[test]
    fn either_half_may_be_the_gate_of_the_other() {
        let x = normal(1.0, (5, 64));
        let half = |first: usize| x.narrow(1, first, 32).unwrap();
        for (gate, active, gated) in [(Gate::First, 0, 32), (Gate::Second, 32, 0)] {
            let plain = (half(active).silu().unwrap() * half(gated)).unwrap();
            assert!(difference(&activate(&x, Activation::Silu, gate).unwrap(), &plain) < 1e-6, "{gate:?}");
        }
    }
}
