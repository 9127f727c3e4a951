//! The transformer: runs any [`Spec`] over packed rows.

use super::delta::Plan;
use super::layers::{Attention, Convolution, Embedding, FeedForward, Loader, Norm};
use super::spec::{self, Spec};
use crate::error::Result;
use crate::kernels::{Sequences, Tensor, sum};
use std::sync::Arc;

/// A stack of blocks with its weights.
pub struct Transformer {
    embedding: Embedding,
    /// The same one in several places where layers share their weights.
    blocks: Vec<Arc<Block>>,
    final_norm: Option<Norm>,
}

impl Transformer {
    /// Loads every part that the spec names; `progress` is told after each block.
    pub fn load(spec: &Spec, loader: &mut Loader, progress: &dyn Fn(usize)) -> Result<Self> {
        let embedding = Embedding::load(&spec.embedding, spec.hidden, loader)?;
        let mut blocks: Vec<Arc<Block>> = Vec::with_capacity(spec.layers.len());
        for layer in &spec.layers {
            let block = match spec.layers[..blocks.len()].iter().position(|earlier| earlier == layer) {
                Some(same) => blocks[same].clone(),
                None => Arc::new(Block::load(layer, spec.hidden, loader)?),
            };
            blocks.push(block);
            progress(blocks.len());
        }
        let final_norm = spec.final_norm.as_ref().map(|norm| Norm::load(norm, spec.hidden, loader)).transpose()?;
        Ok(Self { embedding, blocks, final_norm })
    }

    /// Packed token ids and the sequences' offsets (first token of each, and the total) -> hidden states
    /// `[tokens, hidden]`. Into `layers` go those of the embedding and of every block, as transformers counts them: the
    /// last are what is returned.
    pub fn forward(
        &self,
        ids: &[u32],
        offsets: &Sequences,
        plan: &Plan,
        mut layers: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let first = self.embedding.forward(ids, offsets, plan)?;
        let mut x = first.clone();
        for block in &self.blocks {
            let next = block.forward(&x, &first, offsets, plan)?;
            let before = std::mem::replace(&mut x, next);
            layers.as_deref_mut().into_iter().for_each(|layers| layers.push(before.clone()));
        }
        if let Some(norm) = &self.final_norm {
            x = norm.forward(&x, plan)?;
        }
        layers.into_iter().for_each(|layers| layers.push(x.clone()));
        Ok(x)
    }
}

struct Block {
    attention_norms: Norms,
    attention: Attention,
    mlp_norms: Norms,
    mlp: FeedForward,
    convolution: Option<Convolution>,
}

impl Block {
    fn load(spec: &spec::Layer, hidden: usize, loader: &mut Loader) -> Result<Self> {
        loader.sites.known_as.clone_from(&spec.known_as);
        let block = Self {
            attention_norms: Norms::load(&spec.attention_norms, hidden, loader)?,
            attention: Attention::load(&spec.attention, loader)?,
            mlp_norms: Norms::load(&spec.mlp_norms, hidden, loader)?,
            mlp: FeedForward::load(&spec.mlp, loader)?,
            convolution: spec.convolution.as_ref().map(|c| Convolution::load(c, hidden, loader)).transpose()?,
        };
        loader.sites.known_as = None;
        Ok(block)
    }

    /// `x` and the model's `first` hidden states, `[tokens, hidden]`, to the next.
    fn forward(&self, x: &Tensor, first: &Tensor, offsets: &Sequences, plan: &Plan) -> Result<Tensor> {
        let x = self.attention_norms.around(x, plan, |x| self.attention.forward(x, offsets, plan))?;
        let x = self.mlp_norms.around(&x, plan, |x| self.mlp.forward(x, plan))?;
        match &self.convolution {
            Some(convolution) => convolution.forward(&x, first, offsets, plan),
            None => Ok(x),
        }
    }
}

/// The norms around one step of a block.
struct Norms {
    before: Option<Norm>,
    after: Option<Norm>,
    after_sum: bool,
    sum: Option<Norm>,
}

impl Norms {
    fn load(spec: &spec::Norms, hidden: usize, loader: &mut Loader) -> Result<Self> {
        let mut load =
            |norm: &Option<spec::Norm>| norm.as_ref().map(|norm| Norm::load(norm, hidden, loader)).transpose();
        let (before, after, sum) = (load(&spec.before)?, load(&spec.after)?, load(&spec.sum)?);
        Ok(Self { before, after, after_sum: spec.after_sum, sum })
    }

    /// See [`spec::Norms`].
    fn around(&self, x: &Tensor, plan: &Plan, step: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let y = match &self.before {
            Some(norm) => step(&norm.forward(x, plan)?)?,
            None => step(x)?,
        };
        let y = match &self.after {
            Some(norm) if self.after_sum => norm.forward_sum(&y, x, plan)?,
            Some(norm) => norm.forward(&y, plan)?,
            None => y,
        };
        match &self.sum {
            Some(norm) => norm.forward_sum(&y, x, plan),
            None => Ok(sum(x, &y)?),
        }
    }
}
