//! Changes of a normalization.

use candle_core::Tensor;

/// Weights in place of a normalization's own, as checkpoints hold them, `[width]` each; the base's where it has none.
#[derive(Clone, Debug, Default)]
pub struct NormDelta {
    /// In place of the weight.
    pub weight: Option<Tensor>,
    /// In place of the bias.
    pub bias: Option<Tensor>,
}

impl NormDelta {
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        self.weight.iter().chain(&self.bias).collect()
    }
}
