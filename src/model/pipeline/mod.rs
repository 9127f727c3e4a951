//! What follows the transformer, as sentence-transformers' modules define it: steps on tokens, pooling, steps on the
//! pooled vector, truncation.

mod dense;
mod layer_norm;
mod layer_weights;
mod pooling;

pub(super) use dense::Dense;
pub(super) use layer_norm::LayerNorm;
pub(super) use layer_weights::LayerWeights;
pub(super) use pooling::Poolings;

use super::spec::Spec;
use crate::error::Result;
use crate::kernels::{Tensor, unit};
use std::sync::Arc;

/// From hidden states to one vector a sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pipeline {
    /// Makes the hidden states of those of all layers.
    pub(super) layers: Option<Arc<LayerWeights>>,
    /// On every token's hidden state, in order.
    pub(super) tokens: Vec<Step>,
    pub(super) poolings: Poolings,
    /// On the pooled vector, in order.
    pub(super) vector: Vec<Step>,
    /// Leading numbers of the vector that are kept.
    pub(super) truncate: Option<usize>,
}

/// One module that makes rows of rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// `f(x W + b)`.
    Dense(Arc<Dense>),
    /// Mean and variance to 0 and 1, with weights.
    LayerNorm(Arc<LayerNorm>),
    /// To unit length.
    Normalize,
}

/// What a pipeline is run on.
pub struct States<'a> {
    /// The transformer's hidden states, `[tokens, hidden]`.
    pub hidden: Tensor,
    /// Those of every layer, the embedding's first; empty where [`Pipeline::reads_layers`] is false.
    pub layers: Vec<Tensor>,
    /// First token of every sequence, and the total.
    pub offsets: &'a [usize],
    /// How many tokens at the start of every sequence are its prompt's.
    pub prompts: &'a [usize],
}

impl Pipeline {
    /// Width of its vectors over hidden states of `hidden`.
    pub fn dimension(&self, hidden: usize) -> usize {
        let width = |width, step: &Step| step.width(width);
        let pooled = self.poolings.count() * self.tokens.iter().fold(hidden, width);
        let whole = self.vector.iter().fold(pooled, width);
        self.truncate.map_or(whole, |kept| whole.min(kept))
    }

    /// Whether it needs the hidden states of all layers.
    pub fn reads_layers(&self) -> bool {
        self.layers.is_some()
    }

    /// Whether a prompt's tokens are left out of the pooling.
    pub fn leaves_out_prompts(&self) -> bool {
        !self.poolings.include_prompt
    }

    /// Whether it can follow a body; the reason where it cannot.
    pub fn check(&self, body: &Spec) -> Result<()> {
        if let Some(layers) = &self.layers {
            layers.check(body.layers.len())?;
        }
        let check = |width: usize, step: &Step| step.check(width).map(|()| step.width(width));
        let tokens = self.tokens.iter().try_fold(body.hidden, check)?;
        self.vector.iter().try_fold(self.poolings.count() * tokens, check)?;
        Ok(())
    }

    /// -> `[sequences, dimension]`.
    pub fn forward(&self, states: &States) -> Result<Tensor> {
        let first = match &self.layers {
            Some(layers) => layers.mean(&states.layers)?,
            None => states.hidden.clone(),
        };
        let tokens = self.tokens.iter().try_fold(first, |x, step| step.forward(&x))?;
        let pooled = self.poolings.forward(&tokens, states.offsets, states.prompts)?;
        let vectors = self.vector.iter().try_fold(pooled, |x, step| step.forward(&x))?;
        match self.truncate {
            Some(kept) if kept < vectors.dims()[1] => vectors.narrow(1, 0, kept),
            _ => Ok(vectors),
        }
    }
}

impl Step {
    /// Width of what it makes of rows of `width`.
    fn width(&self, width: usize) -> usize {
        match self {
            Self::Dense(dense) => dense.outputs(),
            Self::LayerNorm(_) | Self::Normalize => width,
        }
    }

    fn check(&self, width: usize) -> Result<()> {
        match self {
            Self::Dense(dense) => dense.check(width),
            Self::LayerNorm(norm) => norm.check(width),
            Self::Normalize => Ok(()),
        }
    }

    /// `[rows, width]` -> `[rows, width of the result]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(x),
            Self::LayerNorm(norm) => norm.forward(x),
            Self::Normalize => Ok(unit(x)?),
        }
    }
}
