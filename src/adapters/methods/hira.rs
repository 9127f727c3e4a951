//! HiRA (ICLR 2025): the weight plus itself times, elementwise, a low-rank matrix.

use super::super::keys::{Keys, Reading};
use super::super::module::Module;
use super::Method;
use crate::error::Result;
use crate::model::{Delta, SiteKind};

#[derive(Debug)]
struct Hira {
    rank: usize,
}

/// Reads PEFT's `HiraConfig`.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    // PEFT gives every module the rank `r`, whatever the pattern says.
    keys.leave(&["hira_dropout", "init_weights", "rank_pattern"]);
    Ok(Box::new(Hira { rank: keys.count("r", 32)? }))
}

impl Method for Hira {
    fn parts(&self) -> &'static [&'static str] {
        &["hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"]
    }

    fn changes(&self, kind: SiteKind) -> bool {
        matches!(kind, SiteKind::Linear | SiteKind::Table)
    }

    fn is_sum(&self) -> bool {
        true
    }

    fn summary(&self) -> String {
        format!("r={}", self.rank)
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let ([outer, inner], rank) = (module.shape, self.rank);
        let low_rank = match module.kind {
            SiteKind::Table => {
                let a = module.take("hira_embedding_A", &[rank, outer])?;
                let low_rank = module.take("hira_embedding_B", &[inner, rank])?.matmul(&a)?.t()?;
                // PEFT adds what these give without the model's factor on its embedding.
                (low_rank / module.factor())?
            }
            _ => module.take("hira_B", &[outer, rank])?.matmul(&module.take("hira_A", &[rank, inner])?)?,
        };
        module.plus(&(low_rank * module.weight_as_stored()?)?)
    }
}
