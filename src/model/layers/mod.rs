//! The parts of a transformer: each is made of its spec and a checkpoint, and runs over packed rows.

mod attention;
mod embedding;
mod linear;
mod mlp;
mod norm;

pub use attention::Attention;
pub use embedding::Embedding;
pub use linear::Linear;
pub use mlp::Mlp;
pub use norm::Norm;

use super::checkpoint::Checkpoint;
use super::delta::Sites;
use crate::error::Result;
use candle_core::{Device, Tensor};
use std::collections::HashMap;

/// What loading passes from part to part: where weights come from, and what parts share.
pub struct Loader<'a> {
    /// The weights.
    pub checkpoint: &'a Checkpoint,
    /// Where they go.
    pub device: &'a Device,
    /// The sites met so far.
    pub sites: Sites,
    /// Longest sequence that position tables must cover, in tokens.
    pub tokens_max: usize,
    /// Tables that several layers share, by what made them.
    shared: HashMap<String, Vec<Tensor>>,
}

impl<'a> Loader<'a> {
    /// A loader at the beginning.
    pub fn new(checkpoint: &'a Checkpoint, device: &'a Device, tokens_max: usize) -> Self {
        Self { checkpoint, device, sites: Sites::default(), tokens_max, shared: HashMap::new() }
    }

    /// The tensor `path.name` of this shape.
    fn tensor(&self, path: &str, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint.take(&format!("{path}.{name}"), shape, self.device)
    }

    /// Tensors under a key, made by the first who asks.
    fn shared(&mut self, key: String, make: impl FnOnce(&Self) -> Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
        if let Some(tensors) = self.shared.get(&key) {
            return Ok(tensors.clone());
        }
        let tensors = make(self)?;
        self.shared.insert(key, tensors.clone());
        Ok(tensors)
    }
}
