//! VeRA (arXiv:2310.11454): low-rank updates that share two matrices and have vectors of their own.

use super::super::keys::{Keys, Reading};
use super::super::module::Module;
use super::Method;
use crate::error::Result;
use crate::model::{Delta, LinearDelta, LowRank};

#[derive(Debug)]
struct Vera {
    rank: usize,
}

/// Reads PEFT's `VeraConfig`.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    keys.leave(&["d_initial", "init_weights", "projection_prng_key", "vera_dropout"]);
    match keys.or("save_projection", true)? {
        true => Ok(Box::new(Vera { rank: keys.count("r", 256)? })),
        false => {
            Err("save_projection = false: the shared matrices are not in the checkpoint, and only torch's random \
                      numbers can make them; save the adapter with save_projection = true"
                .into())
        }
    }
}

impl Method for Vera {
    fn parts(&self) -> &'static [&'static str] {
        &["vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"]
    }

    fn is_sum(&self) -> bool {
        true
    }

    fn summary(&self) -> String {
        format!("r={}", self.rank)
    }

    /// The shared matrices are as wide as the widest module; each takes what it needs from their beginning.
    fn delta(&self, module: &Module) -> Result<Delta> {
        let ([outputs, inputs], rank) = (module.shape, self.rank);
        let [outputs_max, inputs_max] = module.widest()?;
        let a = module.take_shared("vera_A", &[rank, inputs_max])?.narrow(1, 0, inputs)?;
        let b = module.take_shared("vera_B", &[outputs_max, rank])?.narrow(0, 0, outputs)?;
        let by_rank = module.take("vera_lambda_d", &[rank])?.unsqueeze(1)?;
        let by_output = module.take("vera_lambda_b", &[outputs])?.unsqueeze(1)?;
        let (a, b) = (a.broadcast_mul(&by_rank)?, b.broadcast_mul(&by_output)?);
        Ok(Delta::Linear(LinearDelta::low_rank(LowRank::new(a.t()?, b.t()?))))
    }
}
