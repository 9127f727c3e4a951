//! What a product is, and what an algorithm for it depends on.

/// A product of rows: `y [rows, outputs] = f(x [rows, inputs] w + bias)`, or `f(y + x w + bias)`. Sums are f32, and so
/// are the products of f32 in full.
#[derive(Clone, Copy, Debug)]
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
    pub activation: Option<Activation>,
}

impl Matmul {
    /// The one that stands for all of about as many rows: a power of two up to 1024, and a multiple of 1024 above.
    pub fn rounded(&self) -> Self {
        Self { rows: rounded(self.rows), ..*self }
    }
}

/// Rows of a matrix, in which elements follow each other.
#[derive(Clone, Copy, Debug)]
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

/// What cuBLASLt applies to a sum before it is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// GELU by its approximation with tanh.
    GeluTanh,
}

/// All that an algorithm depends on. What lies where counts by its alignment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    rows: usize,
    inputs: usize,
    outputs: usize,
    elements: [Element; 2],
    is_transposed: bool,
    accumulate: bool,
    activation: Option<Activation>,
    strides: [usize; 3],
    alignments: [u32; 3],
    bias_alignment: Option<u32>,
}

impl Key {
    /// That of a product.
    pub fn of(matmul: &Matmul) -> Self {
        let operands = [matmul.w, matmul.x, matmul.y];
        Self {
            rows: matmul.rows,
            inputs: matmul.inputs,
            outputs: matmul.outputs,
            elements: [matmul.element, matmul.element_out],
            is_transposed: matmul.is_transposed,
            accumulate: matmul.accumulate,
            activation: matmul.activation,
            strides: operands.map(|operand| operand.stride),
            alignments: operands.map(|operand| alignment(operand.address)),
            bias_alignment: matmul.bias.map(alignment),
        }
    }
}

fn rounded(rows: usize) -> usize {
    if rows <= 1024 { rows.next_power_of_two() } else { rows.next_multiple_of(1024) }
}

/// The power of two that an address is a multiple of, up to 256: no algorithm asks for more.
pub fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATMUL: Matmul = Matmul {
        rows: 100,
        inputs: 384,
        outputs: 1536,
        element: Element::Bf16,
        element_out: Element::Bf16,
        x: Operand { address: 0x1000, stride: 384 },
        w: Operand { address: 0x2000, stride: 384 },
        is_transposed: true,
        y: Operand { address: 0x3000, stride: 1536 },
        bias: Some(0x4000),
        accumulate: false,
        activation: None,
    };

    #[test]
    fn rows_are_rounded_to_few_numbers() {
        let given = [1, 2, 3, 100, 512, 513, 1024, 1025, 2048, 5000];
        assert_eq!(given.map(rounded), [1, 2, 4, 128, 512, 1024, 1024, 2048, 2048, 5120]);
    }

    #[test]
    fn an_address_is_aligned_as_its_lowest_bit() {
        assert_eq!([0x1002, 0x1004, 0x1010, 0x1100, 0x1000, 0, 0x1001].map(alignment), [2, 4, 16, 256, 256, 256, 1]);
    }

    #[test]
    fn one_algorithm_serves_about_as_many_rows_anywhere() {
        let mut other = Matmul { rows: 128, bias: Some(0x5000), ..MATMUL };
        other.x.address = 0x7000;
        assert_eq!(Key::of(&MATMUL.rounded()), Key::of(&other.rounded()));
    }

    #[test]
    fn whatever_matters_tells_keys_apart() {
        let others = [
            Matmul { rows: 129, ..MATMUL },
            Matmul { inputs: 380, ..MATMUL },
            Matmul { outputs: 1530, ..MATMUL },
            Matmul { element: Element::F16, ..MATMUL },
            Matmul { element_out: Element::F32, ..MATMUL },
            Matmul { is_transposed: false, ..MATMUL },
            Matmul { accumulate: true, ..MATMUL },
            Matmul { activation: Some(Activation::Relu), ..MATMUL },
            Matmul { bias: None, ..MATMUL },
            Matmul { bias: Some(0x4004), ..MATMUL },
            Matmul { x: Operand { address: 0x1010, ..MATMUL.x }, ..MATMUL },
            Matmul { w: Operand { stride: 400, ..MATMUL.w }, ..MATMUL },
            Matmul { y: Operand { stride: 4608, ..MATMUL.y }, ..MATMUL },
        ];
        for other in others {
            assert_ne!(Key::of(&MATMUL.rounded()), Key::of(&other.rounded()), "{other:?}");
        }
    }
}
