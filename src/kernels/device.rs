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
    /// A build for tests also has `emulated`, or `emulated:MIB` of memory.
    ///
    /// # Errors
    /// A name that is not known, or a GPU that is not there.
    pub fn named(name: &str) -> Result<Self> {
        let unknown = || Error::Config(format!("device '{name}' is not known; expected auto, cpu or cuda[:N]"));
        let missing = |reason: Error| Error::Config(format!("device '{name}': {reason}"));
        match name {
            "cpu" => Ok(Self::Cpu),
            "auto" if !Gpu::BUILT => Ok(Self::Cpu),
            "auto" => Ok(Gpu::cuda(0).map(Self::Gpu).unwrap_or_else(|reason| {
                tracing::warn!(%reason, "no GPU is used; the CPU is");
                Self::Cpu
            })),
            _ => {
                let (kind, number) = name.split_once(':').map_or((name, None), |(kind, number)| (kind, Some(number)));
                let number = number.map(|number| number.parse::<usize>().map_err(|_| unknown())).transpose()?;
                match kind {
                    "cuda" => Ok(Self::Gpu(Gpu::cuda(number.unwrap_or(0)).map_err(missing)?)),
                    "emulated" => Ok(Self::Gpu(Gpu::emulated(number.unwrap_or(1024)).map_err(missing)?)),
                    _ => Err(unknown()),
                }
            }
        }
    }

    /// Whether it is this machine's processors.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu)
    }

    /// Whether it is a GPU whose kernels run on the CPU.
    pub fn is_emulated(&self) -> bool {
        matches!(self, Self::Gpu(gpu) if gpu.is_emulated())
    }

    /// Bytes of a GPU's memory that are free, and all there are.
    pub fn memory(&self) -> Result<Option<(usize, usize)>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Gpu(gpu) => gpu.memory().map(Some),
        }
    }

    /// A tensor's place there, in one type or as it is.
    pub fn place(&self, tensor: &candle_core::Tensor, dtype: Option<DType>) -> Result<Tensor> {
        match self {
            Self::Cpu => Ok(Tensor::Cpu(tensor.clone())),
            Self::Gpu(gpu) => Ok(Tensor::Gpu(Array::of(gpu, &tensor.to_dtype(dtype.unwrap_or(tensor.dtype()))?)?)),
        }
    }

    /// A weight's place there, `[in, out]`; on a GPU in `dtype`, and the inputs of an output side by side, as products read
    /// it fastest.
    pub fn place_weight(&self, weight: &candle_core::Tensor, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Cpu => Ok(Tensor::Cpu(weight.clone())),
            Self::Gpu(gpu) => Ok(Tensor::Gpu(Array::of(gpu, &weight.t()?.to_dtype(dtype)?)?.transposed()?)),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("the CPU"),
            Self::Gpu(gpu) => f.write_str(gpu.name()),
        }
    }
}
