//! A normalization with its weights.

use super::Loader;
use crate::error::Result;
use crate::kernels::{NormKind, norm};
use crate::model::spec;
use candle_core::Tensor;

/// LayerNorm or RMSNorm over the last dimension.
pub struct Norm {
    kind: NormKind,
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f32,
}

impl Norm {
    /// Over rows of `width`.
    pub fn load(spec: &spec::Norm, width: usize, loader: &Loader) -> Result<Self> {
        let weight = loader.tensor(&spec.path, "weight", &[width])?;
        let weight = if spec.less_one { (weight + 1.0)? } else { weight };
        let bias = if spec.bias { Some(loader.tensor(&spec.path, "bias", &[width])?) } else { None };
        Ok(Self { kind: spec.kind, weight, bias, eps: spec.eps as f32 })
    }

    /// `norm(x)`, shaped as `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(norm(x, None, self.kind, &self.weight, self.bias.as_ref(), self.eps)?)
    }

    /// `norm(x + residual)`, shaped as `x`.
    pub fn forward_sum(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(norm(x, Some(residual), self.kind, &self.weight, self.bias.as_ref(), self.eps)?)
    }
}
