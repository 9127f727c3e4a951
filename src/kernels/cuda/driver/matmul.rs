//! What an algorithm for a product depends on.

use crate::kernels::cuda::matmul::{Element, Epilogue, Matmul, rounded_rows};

impl Matmul {
    /// The one that stands for all of about as many rows.
    pub fn rounded(&self) -> Self {
        Self { rows: rounded_rows(self.rows), ..*self }
    }
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
    epilogue: Epilogue,
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
            epilogue: matmul.epilogue,
            strides: operands.map(|operand| operand.stride),
            alignments: operands.map(|operand| alignment(operand.address)),
            bias_alignment: matmul.bias.map(alignment),
        }
    }
}

/// The power of two that an address is a multiple of, up to 256: no algorithm asks for more.
pub fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cuda::matmul::Operand;

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
        epilogue: Epilogue::Absent,
    };

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
            Matmul { epilogue: Epilogue::Relu, ..MATMUL },
            Matmul { epilogue: Epilogue::GeluTanh, ..MATMUL },
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
