//! What a product of matrices is to a device: addresses, sizes and strides.

use crate::kernels::{Activation, Active, Gate};
use candle_core::DType;

/// Rows of a product from which on it is worth while to try several ways to make it.
pub const TRIED_ROWS: usize = 4096;

/// The number of rows that stands for all of about as many when a way is chosen: a power of two up to 1024, a multiple of
/// 1024 up to 4096, and of 4096 above.
pub fn rounded_rows(rows: usize) -> usize {
    match rows {
        0..=1024 => rows.next_power_of_two(),
        1025..=4096 => rows.next_multiple_of(1024),
        _ => rows.next_multiple_of(4096),
    }
}

/// A product of rows: `y [rows, outputs] = f(x [rows, inputs] w + bias)`, or `f(y + x w + bias)`. Sums are f32, and so
/// are the products of f32 in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matmul {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Elements of a row of `x`.
    pub inputs: usize,
    /// Elements of a row of `y`.
    pub outputs: usize,
    /// Of `x` and `w`.
    pub element: Element,
    /// Of `y` and the bias: the same, or f32.
    pub element_out: Element,
    /// `[rows, inputs]`.
    pub x: Operand,
    /// `[outputs, inputs]` as checkpoints have it, or `[inputs, outputs]` where it is not transposed.
    pub w: Operand,
    /// Whether a row of `w` is an output.
    pub is_transposed: bool,
    /// `[rows, outputs]`.
    pub y: Operand,
    /// Address of `[outputs]`.
    pub bias: Option<u64>,
    /// Whether the product is added to what `y` is.
    pub accumulate: bool,
    /// `f`.
    pub epilogue: Epilogue,
}

/// What becomes of a product's sums before they are rounded, where cuBLASLt has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing.
    #[default]
    Absent,
    /// max(x, 0).
    Relu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

impl Epilogue {
    /// That of an activation, for results in `dtype`; none where the activation is another launch.
    ///
    /// In bfloat16 the approximation stands for GELU itself: it is off by 5e-4 at most, and a launch of its own has to round
    /// sums first, by up to 2e-3 of them, which is worse number by number, and in vectors about the same.
    pub fn of(active: Active, dtype: DType) -> Option<Self> {
        match (active.activation, dtype) {
            _ if active.gate != Gate::Absent => None,
            (Activation::Relu, _) => Some(Self::Relu),
            (Activation::Gelu | Activation::GeluTanh, DType::BF16) => Some(Self::GeluTanh),
            _ => None,
        }
    }
}

/// Rows of a matrix, in which elements follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Of the first row.
    pub address: u64,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32 bits.
    F32,
    /// 16 bits with the exponent of f32.
    Bf16,
    /// 16 bits.
    F16,
}

impl Element {
    /// Of an array.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16,
            DType::F16 => Self::F16,
            _ => Self::F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::normal;
    use candle_core::Tensor;

    #[test]
    fn approximate_gelu_is_nearer_in_bf16_than_that_of_rounded_sums() {
        let rounded = |x: &Tensor| x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        for deviation in [0.3, 0.5, 1.0, 2.0] {
            let sums = normal(deviation, 100_000);
            let exact = sums.gelu_erf().unwrap();
            let error = |made: Tensor| {
                let error = (rounded(&made) - &exact).unwrap().sqr().unwrap().mean_all().unwrap();
                error.to_scalar::<f32>().unwrap().sqrt()
            };
            let [ours, other] = [sums.gelu().unwrap(), rounded(&sums).gelu_erf().unwrap()].map(error);
            assert!(ours < 0.85 * other, "sums of deviation {deviation}: {ours} {other}");
        }
    }

    #[test]
    fn rows_are_rounded_to_few_numbers() {
        let given = [1, 2, 3, 100, 512, 513, 1024, 1025, 2048, 4000, 5000];
        assert_eq!(given.map(rounded_rows), [1, 2, 4, 128, 512, 1024, 1024, 2048, 2048, 4096, 8192]);
    }
}
