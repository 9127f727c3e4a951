//! Token ids to the first hidden states.

use super::{Loader, Norm};
use crate::error::Result;
use crate::model::spec;
use candle_core::Tensor;

/// Word rows, plus learned positions and the token type where the model has them, normalized.
pub struct Embedding {
    word: Tensor,
    position: Option<Position>,
    /// `[1, hidden]`: a lone text is of type 0 throughout.
    token_type: Option<Tensor>,
    norm: Option<Norm>,
}

/// Learned positions; see [`spec::PositionTable`].
struct Position {
    /// `[rows, hidden]`.
    table: Tensor,
    first: u32,
    skipped: Option<u32>,
}

impl Position {
    /// One sequence's rows of the table.
    fn rows(&self, ids: &[u32]) -> impl Iterator<Item = u32> {
        ids.iter().scan(self.first, |next, id| {
            if Some(*id) == self.skipped {
                return Some(self.first - 1);
            }
            *next += 1;
            Some(*next - 1)
        })
    }
}

impl Embedding {
    /// Tables of rows of `hidden`.
    pub fn load(spec: &spec::Embedding, hidden: usize, loader: &Loader) -> Result<Self> {
        let table = |table: &spec::Table| loader.tensor(&table.path, "weight", &[table.rows, hidden]);
        let position = spec.position.as_ref().map(|p| -> Result<Position> {
            Ok(Position { table: table(&p.table)?, first: p.first as u32, skipped: p.skipped })
        });
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
        if let Some(position) = &self.position {
            let rows: Vec<u32> = offsets.windows(2).flat_map(|span| position.rows(&ids[span[0]..span[1]])).collect();
            x = (x + position.table.index_select(&Tensor::new(rows, device)?, 0)?)?;
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
