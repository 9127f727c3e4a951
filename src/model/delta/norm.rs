//! Changes of a normalization.

use crate::error::Result;
use crate::kernels::{Device, Tensor};

/// Weights in place of a normalization's own, as checkpoints hold them, `[width]` each; the base's where it has none.
#[derive(Clone, Debug, Default)]
pub struct NormDelta {
    /// In place of the weight.
    pub weight: Option<Tensor>,
    /// In place of the bias.
    pub bias: Option<Tensor>,
}

impl NormDelta {
    /// The same on a device.
    pub(super) fn placed(&self, device: &Device) -> Result<Self> {
        let place = |t: &Option<Tensor>| t.as_ref().map(|t| device.place(t.cpu()?, None)).transpose();
        Ok(Self { weight: place(&self.weight)?, bias: place(&self.bias)? })
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        self.weight.iter().chain(&self.bias).collect()
    }
}
