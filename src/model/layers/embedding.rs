//! Token ids to the first hidden states.

use super::{Loader, Norm};
use crate::error::Result;
use crate::model::spec;
use candle_core::Tensor;

/// Word rows, plus learned positions and the token type where the model has them, normalized.
pub struct Embedding {
    word: Tensor,
    /// `[tokens_max, hidden]`, from a sequence's first token on.
    position: Option<Tensor>,
    /// `[1, hidden]`: a lone text is of type 0 throughout.
    token_type: Option<Tensor>,
    norm: Option<Norm>,
}

impl Embedding {
    /// Tables of rows of `hidden`.
    pub fn load(spec: &spec::Embedding, hidden: usize, loader: &Loader) -> Result<Self> {
        let table = |table: &spec::Table| loader.tensor(&table.path, "weight", &[table.rows, hidden]);
        let position = spec
            .position
            .as_ref()
            .map(|p| -> Result<Tensor> { Ok(table(&p.table)?.narrow(0, p.first, p.table.rows - p.first)?) });
        let token_type = spec.token_type.as_ref().map(|t| -> Result<Tensor> { Ok(table(t)?.narrow(0, 0, 1)?) });
        Ok(Self {
            word: table(&spec.word)?,
            position: position.transpose()?,
            token_type: token_type.transpose()?,
            norm: spec.norm.as_ref().map(|norm| Norm::load(norm, hidden, loader)).transpose()?,
        })
    }

    /// Packed ids and the sequences' offsets -> `[tokens, hidden]`.
    pub fn forward(&self, ids: &[u32], offsets: &[usize]) -> Result<Tensor> {
        let device = self.word.device();
        let mut x = self.word.index_select(&Tensor::new(ids, device)?, 0)?;
        if let Some(table) = &self.position {
            let positions: Vec<u32> = offsets.windows(2).flat_map(|span| 0..(span[1] - span[0]) as u32).collect();
            x = (x + table.index_select(&Tensor::new(positions, device)?, 0)?)?;
        }
        if let Some(row) = &self.token_type {
            x = x.broadcast_add(row)?;
        }
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }
}
