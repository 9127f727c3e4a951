//! LoHa (arXiv:2108.06098): the weight plus the elementwise product of two low-rank matrices.

use super::super::keys::{Keys, Ranks, Reading};
use super::super::module::Module;
use super::Method;
use crate::error::Result;
use crate::model::Delta;

#[derive(Debug)]
struct Hadamard {
    ranks: Ranks,
}

/// Reads PEFT's `LoHaConfig`.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    keys.leave(&["init_weights", "module_dropout", "rank_dropout", "use_effective_conv2d"]);
    Ok(Box::new(Hadamard { ranks: Ranks::read(keys, "alpha", false)? }))
}

impl Method for Hadamard {
    fn parts(&self) -> &'static [&'static str] {
        &["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]
    }

    fn is_sum(&self) -> bool {
        true
    }

    fn summary(&self) -> String {
        self.ranks.summary()
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let ([outputs, inputs], (rank, scale)) = (module.shape, module.checked(self.ranks.of(module.name))?);
        let product = |a: &str, b: &str| -> Result<_> {
            Ok(module.take(a, &[outputs, rank])?.matmul(&module.take(b, &[rank, inputs])?)?)
        };
        let update = (product("hada_w1_a", "hada_w1_b")? * product("hada_w2_a", "hada_w2_b")?)?;
        module.plus(&(update * scale)?)
    }
}
