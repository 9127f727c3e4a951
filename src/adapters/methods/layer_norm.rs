//! LN tuning (arXiv:2312.11420): normalizations with weights of their own.

use super::super::keys::{Keys, Reading};
use super::super::module::Module;
use super::super::ways_out::MERGE;
use super::Method;
use crate::error::Result;
use crate::model::{Delta, NormDelta, SiteKind};

#[derive(Debug)]
struct LayerNorms;

/// Reads PEFT's `LNTuningConfig`.
pub fn read(_: &mut Keys) -> Reading<Box<dyn Method>> {
    Ok(Box::new(LayerNorms))
}

impl Method for LayerNorms {
    fn parts(&self) -> &'static [&'static str] {
        &["ln_tuning_layers.weight", "ln_tuning_layers.bias"]
    }

    fn changes(&self, kind: SiteKind) -> bool {
        kind == SiteKind::Norm
    }

    fn is_sum(&self) -> bool {
        false
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        if module.kind != SiteKind::Norm {
            return Err(
                module.fail(&format!("LN_TUNING of a module that is no normalization is not supported; {MERGE}"))
            );
        }
        let width = [module.shape[1]];
        let bias = module.has_bias().then(|| module.take("ln_tuning_layers.bias", &width)).transpose()?;
        let weight = module.take("ln_tuning_layers.weight", &width)?;
        Ok(Delta::Norm(NormDelta { weight: Some(weight.into()), bias: bias.map(Into::into) }))
    }
}
