//! The transformer: runs any [`Spec`] over packed rows.

use super::delta::Plan;
use super::layers::{Attention, Embedding, Loader, Mlp, Norm};
use super::spec::{self, Norms, Spec};
use crate::error::Result;
use candle_core::Tensor;

/// A stack of blocks with its weights.
pub struct Transformer {
    embedding: Embedding,
    blocks: Vec<Block>,
    final_norm: Option<Norm>,
}

impl Transformer {
    /// Loads every part that the spec names; `progress` is told after each block.
    pub fn load(spec: &Spec, loader: &mut Loader, progress: &dyn Fn(usize)) -> Result<Self> {
        let embedding = Embedding::load(&spec.embedding, spec.hidden, loader)?;
        let mut blocks = Vec::with_capacity(spec.layers.len());
        for layer in &spec.layers {
            blocks.push(Block::load(layer, spec.hidden, loader)?);
            progress(blocks.len());
        }
        let final_norm = spec.final_norm.as_ref().map(|norm| Norm::load(norm, spec.hidden, loader)).transpose()?;
        Ok(Self { embedding, blocks, final_norm })
    }

    /// Packed token ids and the sequences' offsets (first token of each, and the total) -> hidden states
    /// `[tokens, hidden]`.
    pub fn forward(&self, ids: &[u32], offsets: &[usize], plan: &Plan) -> Result<Tensor> {
        let mut x = self.embedding.forward(ids, offsets)?;
        for block in &self.blocks {
            x = block.forward(x, offsets, plan)?;
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }
}

struct Block {
    post_norm: bool,
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl Block {
    fn load(spec: &spec::Layer, hidden: usize, loader: &mut Loader) -> Result<Self> {
        let (post_norm, attention_norm, mlp_norm) = match &spec.norms {
            Norms::Post { attention, mlp } => (true, attention, mlp),
            Norms::Pre { attention, mlp } => (false, attention, mlp),
        };
        Ok(Self {
            post_norm,
            attention_norm: Norm::load(attention_norm, hidden, loader)?,
            attention: Attention::load(&spec.attention, loader)?,
            mlp_norm: Norm::load(mlp_norm, hidden, loader)?,
            mlp: Mlp::load(&spec.mlp, loader)?,
        })
    }

    fn forward(&self, x: Tensor, offsets: &[usize], plan: &Plan) -> Result<Tensor> {
        if self.post_norm {
            let x = self.attention_norm.forward_sum(&self.attention.forward(&x, offsets, plan)?, &x)?;
            return self.mlp_norm.forward_sum(&self.mlp.forward(&x, plan)?, &x);
        }
        let x = (&x + self.attention.forward(&self.attention_norm.forward(&x)?, offsets, plan)?)?;
        Ok((&x + self.mlp.forward(&self.mlp_norm.forward(&x)?, plan)?)?)
    }
}
