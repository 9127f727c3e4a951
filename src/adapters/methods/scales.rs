//! IA3 (arXiv:2205.05638): outputs times a vector, or inputs of the modules that `feedforward_modules` names.

use super::super::keys::{Keys, Reading};
use super::super::module::Module;
use super::super::targets::Names;
use super::Method;
use crate::error::Result;
use crate::model::{Delta, LinearDelta};

#[derive(Debug)]
struct Scales {
    feedforward: Names,
}

/// Reads PEFT's `IA3Config`.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    keys.leave(&["init_ia3_weights"]);
    Ok(Box::new(Scales { feedforward: Names::read(keys, "feedforward_modules")? }))
}

impl Method for Scales {
    fn parts(&self) -> &'static [&'static str] {
        &["ia3_l"]
    }

    fn is_sum(&self) -> bool {
        false
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let [outputs, inputs] = module.shape;
        let delta = match module.checked(self.feedforward.end(module.name))? {
            true => {
                let factor = module.take("ia3_l", &[1, inputs])?.reshape(inputs)?;
                LinearDelta::of_scaled_inputs(&factor, module.base()?.host_bias()?.as_ref())?
            }
            false => LinearDelta::of_scaled_outputs(&module.take("ia3_l", &[outputs, 1])?.reshape(outputs)?)?,
        };
        Ok(Delta::Linear(delta))
    }
}
