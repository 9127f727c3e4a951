//! AdaLoRA (arXiv:2303.10512): a low-rank update of three factors, of a rank that training chose for every module.

use super::super::keys::{Keys, Reading};
use super::super::module::Module;
use super::Method;
use crate::error::Result;
use crate::model::{Delta, LinearDelta, LowRank};
use serde_json::{Map, Value};

#[derive(Debug)]
struct AdaLora {
    /// `init_r`, which the scale keeps whatever rank is left.
    rank: usize,
    /// `lora_alpha`; where it is not positive PEFT takes the rank that is left.
    alpha: f64,
    /// Ranks that are left, by the name of the module's `lora_E`.
    left: Vec<(String, usize)>,
}

/// Keys that change nothing here once the adapter is trained.
const INERT: [&str; 15] = [
    "alpha_pattern",
    "beta1",
    "beta2",
    "deltaT",
    "init_lora_weights",
    "lora_dropout",
    "orth_reg_weight",
    "qalora_group_size",
    "r",
    "target_r",
    "tfinal",
    "tinit",
    "total_step",
    "ensure_weight_tying",
    "use_rslora",
];

/// Reads PEFT's `AdaLoraConfig`.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    let left = keys.or("rank_pattern", Map::new())?.into_iter().map(|(name, kept)| match kept {
        Value::Array(kept) => Ok((name, kept.iter().filter(|kept| **kept == true).count())),
        other => Err(format!("rank_pattern '{name}': expected a list of true and false, found {other}")),
    });
    let left = left.collect::<Reading<_>>()?;
    let (rank, alpha) = (keys.count("init_r", 12)?, keys.number("lora_alpha", 8.0)?);
    keys.leave(&INERT);
    Ok(Box::new(AdaLora { rank, alpha, left }))
}

impl Method for AdaLora {
    fn parts(&self) -> &'static [&'static str] {
        &["lora_A", "lora_B", "lora_E"]
    }

    fn is_sum(&self) -> bool {
        true
    }

    fn summary(&self) -> String {
        format!("r<={} alpha={}", self.rank, self.alpha)
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let own = |(name, _): &&(String, usize)| {
            let stem = name.split_once(".lora_E").map_or(name.as_str(), |(stem, _)| stem);
            stem == module.path || stem.ends_with(&format!(".{}", module.path))
        };
        let rank = self.left.iter().find(own).map_or(self.rank, |(_, rank)| *rank);
        let [outputs, inputs] = module.shape;
        let (a, b) = (module.take("lora_A", &[rank, inputs])?, module.take("lora_B", &[outputs, rank])?);
        let e = module.take("lora_E", &[rank, 1])?;
        if rank == 0 {
            return Ok(Delta::Linear(LinearDelta::default()));
        }
        let alpha = if self.alpha > 0.0 { self.alpha } else { rank as f64 };
        let scale = alpha / (self.rank as f64 + 1e-5);
        let update = LowRank::new(a.broadcast_mul(&e)?.t()?, (b * scale)?.t()?);
        Ok(Delta::Linear(LinearDelta::low_rank(update)))
    }
}
