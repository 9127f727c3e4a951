//! LoKr (arXiv:2212.10650): the weight plus the Kronecker product of two small matrices, each whole or of low rank.

use super::super::keys::{Keys, Ranks, Reading};
use super::super::module::Module;
use super::Method;
use crate::error::Result;
use crate::model::Delta;
use candle_core::Tensor;

#[derive(Debug)]
struct Kronecker {
    ranks: Ranks,
    /// `decompose_factor`: of what size the first matrix should be; none: near the square root.
    factor: Option<usize>,
    /// `decompose_both`: whether the first may be of low rank too.
    both: bool,
}

/// Reads PEFT's `LoKrConfig`.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    keys.leave(&["init_weights", "module_dropout", "rank_dropout", "rank_dropout_scale", "use_effective_conv2d"]);
    let factor: i64 = keys.or("decompose_factor", -1)?;
    let factor = match usize::try_from(factor) {
        Ok(0) => return Err("decompose_factor must not be 0".into()),
        Ok(factor) => Some(factor),
        Err(_) if factor == -1 => None,
        Err(_) => return Err(format!("decompose_factor = {factor} is neither positive nor -1")),
    };
    let both = keys.or("decompose_both", false)?;
    Ok(Box::new(Kronecker { ranks: Ranks::read(keys, "alpha", false)?, factor, both }))
}

impl Method for Kronecker {
    fn parts(&self) -> &'static [&'static str] {
        &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"]
    }

    fn is_sum(&self) -> bool {
        true
    }

    fn summary(&self) -> String {
        self.ranks.summary()
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let (outputs, inputs) = (factors(module.outputs(), self.factor), factors(module.inputs(), self.factor));
        let (rank, scale) = module.checked(self.ranks.of(module.name))?;
        let is_low = |outputs: usize, inputs: usize| rank < outputs.max(inputs).div_ceil(2);
        let first = match self.both && is_low(outputs.0, inputs.0) {
            true => product(module, ["lokr_w1_a", "lokr_w1_b"], [outputs.0, rank, inputs.0])?,
            false => module.take("lokr_w1", &[outputs.0, inputs.0])?,
        };
        let second = match is_low(outputs.1, inputs.1) {
            true => product(module, ["lokr_w2_a", "lokr_w2_b"], [outputs.1, rank, inputs.1])?,
            false => module.take("lokr_w2", &[outputs.1, inputs.1])?,
        };
        // [out0, 1, in0, 1] times [1, out1, 1, in1].
        let first = first.reshape((outputs.0, 1, inputs.0, 1))?;
        let update = first.broadcast_mul(&second.reshape((1, outputs.1, 1, inputs.1))?)?.reshape(&module.shape)?;
        module.plus(&(update * scale)?)
    }
}

fn product(module: &Module, [a, b]: [&str; 2], [outputs, rank, inputs]: [usize; 3]) -> Result<Tensor> {
    Ok(module.take(a, &[outputs, rank])?.matmul(&module.take(b, &[rank, inputs])?)?)
}

/// The two factors of a width, as PEFT splits it: `wanted` and the rest where it divides; else the two that are nearest to
/// each other, or of which the smaller is nearest to `wanted` without being above it.
fn factors(width: usize, wanted: Option<usize>) -> (usize, usize) {
    match wanted {
        Some(wanted) if width.is_multiple_of(wanted) => (wanted, width / wanted),
        _ => {
            let most = wanted.unwrap_or(width);
            let small = (1..=most).take_while(|small| small * small <= width);
            let small = small.filter(|small| width.is_multiple_of(*small)).last().unwrap_or(1);
            (small, width / small)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::factors;

    #[test]
    fn widths_are_split_as_peft_splits_them() {
        for (width, wanted, expected) in [
            (256, None, (16, 16)),
            (128, None, (8, 16)),
            (127, None, (1, 127)),
            (128, Some(4), (4, 32)),
            (36, Some(5), (4, 9)),
            (12, Some(6), (6, 2)),
        ] {
            assert_eq!(factors(width, wanted), expected, "{width} {wanted:?}");
        }
    }
}
