//! The parts of a transformer: each is made of its spec and a checkpoint, and runs over packed rows.

mod attention;
mod convolution;
mod disentangled;
mod embedding;
mod experts;
mod linear;
mod mlp;
mod norm;
mod positions;

pub use attention::Attention;
pub use convolution::Convolution;
pub use embedding::Embedding;
pub use experts::FeedForward;
pub use linear::Linear;
pub use mlp::Mlp;
pub use norm::Norm;

use super::checkpoint::Checkpoint;
use super::sites::Sites;
use crate::error::{Error, Result};
use crate::kernels::{Device, Format, Memory, Packed, Tensor, all_finite};
use candle_core::{DType, Tensor as Host};
use std::collections::HashMap;

/// What loading passes from part to part: where weights come from, and what parts share.
pub struct Loader<'a> {
    /// The weights.
    pub checkpoint: &'a Checkpoint,
    /// Where they go.
    pub device: &'a Device,
    /// In which number format matrices lie there; all else is f32.
    pub format: Format,
    /// The sites met so far.
    pub sites: Sites,
    /// Longest sequence that position tables must cover, in tokens.
    pub tokens_max: usize,
    /// What several layers or models share.
    pub shared: Shared,
    /// Where linear weights go.
    pub memory: Memory,
}

/// What is there already for whoever needs it again, by what made it.
#[derive(Clone, Default)]
pub struct Shared {
    tensors: HashMap<String, Vec<Tensor>>,
    /// Stacked weights, and their biases `[out]`.
    stacks: HashMap<String, (Packed, Option<Tensor>)>,
}

impl<'a> Loader<'a> {
    /// A loader at the beginning.
    pub fn new(checkpoint: &'a Checkpoint, device: &'a Device, format: Format, tokens_max: usize) -> Self {
        let (sites, shared, memory) = (Sites::default(), Shared::default(), Memory::default());
        Self { checkpoint, device, format, sites, tokens_max, shared, memory }
    }

    /// A tensor's place on the device, as it is.
    fn place(&self, tensor: &Host) -> Result<Tensor> {
        self.device.place(tensor, None)
    }

    /// A weight's place there, `[in, out]`, in the model's number format.
    fn pack(&mut self, weight: &Host) -> Result<Packed> {
        Packed::on(self.device, weight, self.format, &mut self.memory)
    }

    /// The tensor `path.name` of this shape, on the host, in f32.
    fn tensor(&self, path: &str, name: &str, shape: &[usize]) -> Result<Host> {
        self.parameter(&format!("{path}.{name}"), shape)
    }

    /// The tensor of this name and shape, on the host, in f32.
    fn parameter(&self, name: &str, shape: &[usize]) -> Result<Host> {
        self.checkpoint.take(name, shape)
    }

    /// The matrix `path.name` of this shape, on the host, in the model's number format.
    fn weight(&self, path: &str, name: &str, shape: &[usize]) -> Result<Host> {
        self.convert(self.tensor(path, name, shape)?, path)
    }

    /// A matrix in the model's number format; `path` names its module in errors.
    fn convert(&self, matrix: Host, path: &str) -> Result<Host> {
        let dtype = self.format.dtype();
        if dtype == DType::F32 {
            return Ok(matrix);
        }
        let converted = matrix.to_dtype(dtype)?;
        if dtype == DType::F16 && !all_finite(&converted.to_dtype(DType::F32)?)? {
            return Err(self.fail(format!("'{path}' holds numbers that float16 cannot; bfloat16 can")));
        }
        Ok(converted)
    }

    /// An error about the checkpoint.
    fn fail(&self, reason: String) -> Error {
        Error::load(self.checkpoint.path(), reason)
    }

    /// Tensors under a key, made by the first who asks.
    fn shared(&mut self, key: String, make: impl FnOnce(&mut Self) -> Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
        if let Some(tensors) = self.shared.tensors.get(&key) {
            return Ok(tensors.clone());
        }
        let tensors = make(self)?;
        self.shared.tensors.insert(key, tensors.clone());
        Ok(tensors)
    }
}
