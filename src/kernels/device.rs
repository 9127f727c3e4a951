//! Where a model lies and computes.

use super::cuda::{Array, Gpu};
use super::tensor::Tensor;
use crate::error::{Error, Result};
use candle_core::DType;

/// A device; clones are the same one.
#[derive(Clone, Debug)]
pub enum Device {
    /// This machine's processors.
    Cpu,
    /// A GPU.
    Gpu(Gpu),
}

impl Device {
    /// By its name in the configuration: `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU, or where there is none the CPU.
    ///
    /// # Errors
    /// A name that is not known, or a GPU that is not there.
    pub fn named(name: &str) -> Result<Self> {
        let ordinal = |digits: &str| digits.parse::<usize>().ok();
        let unknown = || Error::Config(format!("device '{name}' is not known; expected auto, cpu or cuda[:N]"));
        let missing = |reason: Error| Error::Config(format!("device '{name}': {reason}"));
        match name {
            "cpu" => Ok(Self::Cpu),
            "auto" if !Gpu::BUILT => Ok(Self::Cpu),
            "auto" => Ok(Gpu::cuda(0).map(Self::Gpu).unwrap_or_else(|reason| {
                tracing::warn!(%reason, "no GPU is used; the CPU is");
                Self::Cpu
            })),
            "emulated" => Ok(Self::Gpu(Gpu::emulated().map_err(missing)?)),
            _ => {
                let digits = name.strip_prefix("cuda").ok_or_else(unknown)?;
                let ordinal = if digits.is_empty() { Some(0) } else { digits.strip_prefix(':').and_then(ordinal) };
                Ok(Self::Gpu(Gpu::cuda(ordinal.ok_or_else(unknown)?).map_err(missing)?))
            }
        }
    }

    /// Whether it is this machine's processors.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu)
    }

    /// A tensor's place there, in one type or as it is.
    pub fn place(&self, tensor: &candle_core::Tensor, dtype: Option<DType>) -> Result<Tensor> {
        let tensor = match dtype {
            Some(dtype) if !self.is_cpu() => tensor.to_dtype(dtype)?,
            _ => tensor.clone(),
        };
        match self {
            Self::Cpu => Ok(Tensor::Cpu(tensor)),
            Self::Gpu(gpu) => Ok(Tensor::Gpu(Array::of(gpu, &tensor)?)),
        }
    }
}
