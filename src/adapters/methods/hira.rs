//! HiRA (ICLR 2025): the weight plus itself times, elementwise, a low-rank matrix.

use super::super::keys::{ByModule, Keys, Reading};
use super::super::modules::Module;
use super::Method;
use crate::error::Result;
use crate::model::{Delta, SiteKind};

#[derive(Debug)]
struct Hira {
    rank: ByModule,
}

/// Reads PEFT's `HiraConfig`.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    keys.leave(&["hira_dropout", "init_weights"]);
    let rank = keys.count("r", 32)? as f64;
    Ok(Box::new(Hira { rank: ByModule::read(keys, "rank_pattern", rank)? }))
}

impl Method for Hira {
    fn parts(&self) -> &'static [&'static str] {
        &["hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"]
    }

    fn changes(&self, kind: SiteKind) -> bool {
        kind != SiteKind::Norm
    }

    fn is_sum(&self) -> bool {
        true
    }

    fn summary(&self) -> String {
        self.rank.summary("r")
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let ([outer, inner], rank) = (module.shape, self.rank.of(&module.name) as usize);
        let low_rank = match module.kind {
            SiteKind::Table => {
                let a = module.take("hira_embedding_A", &[rank, outer])?;
                module.take("hira_embedding_B", &[inner, rank])?.matmul(&a)?.t()?
            }
            _ => module.take("hira_B", &[outer, rank])?.matmul(&module.take("hira_A", &[rank, inner])?)?,
        };
        module.plus(&(low_rank * module.weight_as_stored()?)?)
    }
}
