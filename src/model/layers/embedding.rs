//! Token ids to the first hidden states.

use super::{Linear, Loader, Norm};
use crate::error::Result;
use crate::kernels::{Tensor, look_up, operand, sum};
use crate::model::delta::Plan;
use crate::model::sites::Site;
use crate::model::spec;
use candle_core::DType;

/// Word rows, plus learned positions and the token type where the model has them, normalized and projected.
pub struct Embedding {
    word: Table,
    scale: Option<f64>,
    position: Option<Position>,
    /// A lone text is of type 0 throughout.
    token_type: Option<Table>,
    norm: Option<Norm>,
    projection: Option<Linear>,
}

/// An embedding matrix `[rows, width]` and its site.
struct Table {
    rows: Tensor,
    site: Site,
}

/// Learned positions; see [`spec::PositionTable`].
struct Position {
    table: Table,
    first: u32,
    skipped: Option<u32>,
}

impl Table {
    fn load(spec: &spec::Table, width: usize, loader: &mut Loader) -> Result<Self> {
        Self::load_or(spec, None, width, loader)
    }

    /// Its rows, or where the checkpoint does not have them those at another path.
    fn load_or(spec: &spec::Table, other: Option<&str>, width: usize, loader: &mut Loader) -> Result<Self> {
        let is_there = |path: &str| loader.checkpoint.shape(&format!("{path}.weight")).is_some();
        let path = other.filter(|other| !is_there(&spec.path) && is_there(other)).unwrap_or(&spec.path);
        let key = format!("table {path}");
        let rows = loader.shared(key, |loader| {
            let rows = loader.weight(path, "weight", &[spec.rows, width])?;
            Ok(vec![loader.place(&rows)?])
        })?;
        let rows = rows[0].clone();
        let site = loader.sites.add_table(&spec.path, [spec.rows, width], &rows);
        Ok(Self { rows, site })
    }

    /// A row an id, in f32, with the batch's deltas: `[ids, width]`.
    fn forward(&self, ids: &[u32], plan: &Plan) -> Result<Tensor> {
        if !plan.changes(self.site) {
            return look_up(&[(&self.rows, ids)]);
        }
        plan.by_range(ids.len(), self.site, |range, delta| {
            let ids = &ids[range];
            match delta {
                Some(delta) => delta.look_up(&self.rows, ids),
                None => look_up(&[(&self.rows, ids)]),
            }
        })
    }
}

impl Position {
    /// The rows of the table for the tokens of packed sequences.
    fn rows(&self, ids: &[u32], offsets: &[usize]) -> Vec<u32> {
        let mut rows = Vec::with_capacity(ids.len());
        for span in offsets.windows(2) {
            let ids = &ids[span[0]..span[1]];
            match self.skipped {
                None => rows.extend(self.first..self.first + ids.len() as u32),
                Some(skipped) => rows.extend(ids.iter().scan(self.first, |next, id| {
                    let row = if *id == skipped { self.first - 1 } else { *next };
                    *next += u32::from(*id != skipped);
                    Some(row)
                })),
            }
        }
        rows
    }
}

impl Embedding {
    /// To rows of `hidden`.
    pub fn load(spec: &spec::Embedding, hidden: usize, loader: &mut Loader) -> Result<Self> {
        let width = spec.width;
        let word = Table::load_or(&spec.word, spec.word_tied.as_deref(), width, loader)?;
        let position = match &spec.position {
            Some(spec::PositionTable { table, first, skipped }) => {
                let table = Table::load(table, width, loader)?;
                Some(Position { table, first: *first as u32, skipped: *skipped })
            }
            None => None,
        };
        Ok(Self {
            word,
            scale: spec.scale,
            position,
            token_type: spec.token_type.as_ref().map(|table| Table::load(table, width, loader)).transpose()?,
            norm: spec.norm.as_ref().map(|norm| Norm::load(norm, width, loader)).transpose()?,
            projection: match &spec.projection {
                Some(projection) => Some(Linear::load(projection, loader)?),
                None if width == hidden => None,
                None => return Err(loader.fail(format!("embeddings of {width} do not fit a width of {hidden}"))),
            },
        })
    }

    /// The sum of what all tables have for ids, in f32; always added in one order, whether an adapter changes one or not.
    fn rows(&self, ids: &[u32], offsets: &[usize], plan: &Plan) -> Result<Tensor> {
        let positions = self.position.as_ref().map_or_else(Vec::new, |position| position.rows(ids, offsets));
        let types = vec![0; self.token_type.as_ref().map_or(0, |_| ids.len())];
        let position = self.position.as_ref().map(|position| (&position.table, positions.as_slice()));
        let token_type = self.token_type.as_ref().map(|table| (table, types.as_slice()));
        let tables = || [Some((&self.word, ids)), position, token_type].into_iter().flatten();
        if self.scale.is_none() && !tables().any(|(table, _)| plan.changes(table.site)) {
            return look_up(&tables().map(|(table, ids)| (&table.rows, ids)).collect::<Vec<_>>());
        }
        let mut x = self.word.forward(ids, plan)?;
        if let Some(scale) = self.scale {
            x = x.scaled(scale as f32)?;
        }
        tables().skip(1).try_fold(x, |x, (table, ids)| sum(&x, &table.forward(ids, plan)?))
    }

    /// Packed ids and the sequences' offsets -> `[tokens, hidden]`.
    pub fn forward(&self, ids: &[u32], offsets: &[usize], plan: &Plan) -> Result<Tensor> {
        let mut x = self.rows(ids, offsets, plan)?;
        if let Some(norm) = &self.norm {
            x = norm.forward(&x, plan)?;
        }
        match &self.projection {
            // Hidden states are in f32, whatever products give.
            Some(projection) => operand(&projection.forward(&x, plan)?, DType::F32),
            None => Ok(x),
        }
    }
}
