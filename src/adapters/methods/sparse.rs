//! SHiRA (arXiv:2406.13175): the weight plus a few numbers at places that the checkpoint names.

use super::super::keys::{Keys, Reading};
use super::super::module::Module;
use super::Method;
use crate::error::Result;
use crate::model::Delta;
use candle_core::{Device, Tensor};

#[derive(Debug)]
struct Sparse {
    rank: usize,
}

/// Reads PEFT's `ShiraConfig`.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    keys.leave(&["init_weights", "mask_type", "random_seed"]);
    Ok(Box::new(Sparse { rank: keys.count("r", 32)? }))
}

impl Method for Sparse {
    fn parts(&self) -> &'static [&'static str] {
        &["shira_weight", "shira_indices"]
    }

    fn is_sum(&self) -> bool {
        true
    }

    fn summary(&self) -> String {
        format!("r={}", self.rank)
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let [outputs, inputs] = module.shape;
        let count = self.rank.saturating_mul(outputs + inputs);
        let numbers = module.take("shira_weight", &[count])?.to_vec1::<f32>()?;
        let places = module.take_integers("shira_indices", &[2, count])?;
        let mut update = vec![0f32; outputs * inputs];
        for (place, number) in numbers.into_iter().enumerate() {
            let (row, column) = (places[place], places[count + place]);
            match (usize::try_from(row), usize::try_from(column)) {
                (Ok(row), Ok(column)) if row < outputs && column < inputs => update[row * inputs + column] += number,
                _ => return Err(module.fail(&format!("shira_indices names [{row}, {column}], which is outside"))),
            }
        }
        module.plus(&Tensor::from_vec(update, (outputs, inputs), &Device::Cpu)?)
    }
}
