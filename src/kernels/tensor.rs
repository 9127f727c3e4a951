//! Numbers on whatever device: candle's tensors on the CPU, arrays of our own on a GPU.

use super::cuda::{self, Array};
use super::device::Device;
use super::twins::elsewhere;
use crate::error::Result;
use candle_core::{DType, Shape};

/// A tensor; clones share its memory, and so do windows of it.
#[derive(Clone, Debug)]
pub enum Tensor {
    /// On this machine's processors.
    Cpu(candle_core::Tensor),
    /// On a GPU.
    Gpu(Array),
}

impl From<candle_core::Tensor> for Tensor {
    fn from(tensor: candle_core::Tensor) -> Self {
        Self::Cpu(tensor)
    }
}

impl Tensor {
    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu(_) => Device::Cpu,
            Self::Gpu(array) => Device::Gpu(array.gpu().clone()),
        }
    }

    /// The tensor of the CPU that it is.
    pub fn cpu(&self) -> Result<&candle_core::Tensor> {
        match self {
            Self::Cpu(tensor) => Ok(tensor),
            Self::Gpu(_) => Err(elsewhere()),
        }
    }

    /// The array of a GPU that it is.
    pub fn array(&self) -> Result<&Array> {
        match self {
            Self::Cpu(_) => Err(elsewhere()),
            Self::Gpu(array) => Ok(array),
        }
    }

    /// The same on the host, once it is computed.
    pub fn to_host(&self) -> Result<candle_core::Tensor> {
        self.depart()?.wait()
    }

    /// Its way to the host, which begins once it is computed; meanwhile other things may be asked of a GPU.
    pub fn depart(&self) -> Result<Departed> {
        match self {
            Self::Cpu(tensor) => Ok(Departed::There(tensor.clone())),
            Self::Gpu(array) => Ok(Departed::Arriving(array.depart()?)),
        }
    }

    /// Sizes.
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Cpu(tensor) => tensor.dims(),
            Self::Gpu(array) => array.dims(),
        }
    }

    /// What its numbers are.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Cpu(tensor) => tensor.dtype(),
            Self::Gpu(array) => array.dtype(),
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.dims().iter().product::<usize>() * self.dtype().size_in_bytes()
    }

    /// Some indices of a dimension.
    pub fn narrow(&self, dimension: usize, first: usize, count: usize) -> Result<Self> {
        match self {
            Self::Cpu(tensor) => Ok(Self::Cpu(tensor.narrow(dimension, first, count)?)),
            Self::Gpu(array) => Ok(Self::Gpu(array.narrow(dimension, first, count)?)),
        }
    }

    /// The same elements in other dimensions; they must lie side by side.
    pub fn reshape<const N: usize>(&self, dims: [usize; N]) -> Result<Self> {
        match self {
            Self::Cpu(tensor) => Ok(Self::Cpu(tensor.reshape(Shape::from(dims.to_vec()))?)),
            Self::Gpu(array) => Ok(Self::Gpu(array.reshape(&dims)?)),
        }
    }

    /// A dense copy.
    pub fn copy(&self) -> Result<Self> {
        match self {
            Self::Cpu(tensor) => Ok(Self::Cpu(tensor.force_contiguous()?)),
            Self::Gpu(array) => Ok(Self::Gpu(array.copy()?)),
        }
    }

    /// One after the other along a dimension.
    pub fn joined(parts: &[&Self], dimension: usize) -> Result<Self> {
        match parts {
            [one] => Ok((*one).clone()),
            [Self::Gpu(_), ..] => {
                let arrays = parts.iter().map(|part| part.array()).collect::<Result<Vec<_>>>()?;
                Ok(Self::Gpu(cuda::joined(&arrays, dimension)?))
            }
            _ => {
                let tensors = parts.iter().map(|part| part.cpu()).collect::<Result<Vec<_>>>()?;
                Ok(Self::Cpu(candle_core::Tensor::cat(&tensors, dimension)?))
            }
        }
    }

    /// `scale * self`.
    pub fn scaled(&self, scale: f32) -> Result<Self> {
        match self {
            Self::Cpu(tensor) => Ok(Self::Cpu(tensor.affine(f64::from(scale), 0.0)?)),
            Self::Gpu(array) => Ok(Self::Gpu(cuda::affine(array, scale)?)),
        }
    }
}

/// A tensor on its way to the host.
pub enum Departed {
    /// It is there.
    There(candle_core::Tensor),
    /// It comes.
    Arriving(cuda::Arriving),
}

impl Departed {
    /// Waits for it.
    ///
    /// # Errors
    /// Those of a GPU that computes it.
    pub fn wait(self) -> Result<candle_core::Tensor> {
        match self {
            Self::There(tensor) => Ok(tensor),
            Self::Arriving(arriving) => arriving.wait(),
        }
    }

    /// Waits for rows of f32, which stay where they came to.
    ///
    /// # Errors
    /// As of [`Departed::wait`], and where it is no matrix of f32.
    pub fn wait_rows(self) -> Result<Arrived> {
        match self {
            Self::There(tensor) => {
                let (_, width) = tensor.dims2()?;
                Ok(Arrived { numbers: Numbers::Own(tensor.flatten_all()?.to_vec1()?), width })
            }
            Self::Arriving(arriving) => {
                let (bytes, width) = arriving.wait_rows()?;
                Ok(Arrived { numbers: Numbers::Landed(bytes), width })
            }
        }
    }
}

/// Rows of f32 on the host.
pub struct Arrived {
    numbers: Numbers,
    width: usize,
}

enum Numbers {
    Own(Vec<f32>),
    /// As a GPU has them.
    Landed(cuda::Bytes),
}

impl Arrived {
    /// How many.
    pub fn count(&self) -> usize {
        let numbers = match &self.numbers {
            Numbers::Own(numbers) => numbers.len(),
            Numbers::Landed(bytes) => (**bytes).as_ref().len() / size_of::<f32>(),
        };
        numbers.checked_div(self.width).unwrap_or(0)
    }

    /// A copy of one.
    pub fn row(&self, index: usize) -> Vec<f32> {
        let places = index * self.width..(index + 1) * self.width;
        match &self.numbers {
            Numbers::Own(numbers) => numbers[places].to_vec(),
            Numbers::Landed(bytes) => {
                let (numbers, _) = (**bytes).as_ref().as_chunks();
                numbers[places].iter().map(|number| f32::from_le_bytes(*number)).collect()
            }
        }
    }
}
