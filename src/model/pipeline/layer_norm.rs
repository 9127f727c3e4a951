//! sentence-transformers' `LayerNorm`, on pooled vectors.

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::{Device, NormKind, Normalization, Tensor, norm};
use crate::model::checkpoint::Checkpoint;
use serde::Deserialize;
use std::path::PathBuf;

/// torch.nn.LayerNorm's default.
const EPS: f32 = 1e-5;

/// Equal to another where it is the same file's.
#[derive(Debug)]
pub struct LayerNorm {
    folder: PathBuf,
    /// `[width]`.
    weight: Tensor,
    /// `[width]`.
    bias: Tensor,
}

impl LayerNorm {
    /// As sentence-transformers saves it: config.json, and `norm.weight` and `norm.bias` in model.safetensors.
    pub fn load(folder: &Folder, device: &Device) -> Result<Self> {
        #[derive(Deserialize)]
        struct Config {
            dimension: usize,
        }
        let Config { dimension } = folder.require_json("config.json")?;
        let checkpoint = Checkpoint::of_model(folder, "")?;
        let weight = device.place(&checkpoint.take("norm.weight", &[dimension])?, None)?;
        let bias = device.place(&checkpoint.take("norm.bias", &[dimension])?, None)?;
        checkpoint.finish()?;
        Ok(Self { folder: folder.path().to_owned(), weight, bias })
    }

    /// Whether it takes rows of `width`.
    pub fn check(&self, width: usize) -> Result<()> {
        let dimension = self.weight.dims()[0];
        if dimension == width {
            return Ok(());
        }
        let reason = format!("dimension = {dimension}, but what stands before it gives {width} numbers");
        Err(Error::load(self.folder.join("config.json"), reason))
    }

    /// `[rows, width]` -> the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (kind, weight, bias) = (NormKind::Layer, &self.weight, Some(&self.bias));
        norm(x, None, &Normalization { kind, weight, bias, eps: EPS, rounded: None })
    }
}

impl PartialEq for LayerNorm {
    fn eq(&self, other: &Self) -> bool {
        self.folder == other.folder
    }
}
