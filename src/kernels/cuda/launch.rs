//! A kernel's name and arguments, put together and sent off.

use super::array::Array;
use super::command::{Argument, Command};
use super::gpu::Gpu;
use crate::error::Result;
use candle_core::DType;

/// Threads of a block, in every kernel.
pub const BLOCK: u32 = 128;

/// Arguments in order, after which a kernel runs.
pub struct Launch<'a> {
    gpu: &'a Gpu,
    arguments: Vec<Argument>,
}

impl<'a> Launch<'a> {
    /// On a device.
    pub fn on(gpu: &'a Gpu) -> Self {
        Self { gpu, arguments: Vec::with_capacity(20) }
    }

    /// An array's first element.
    pub fn array(self, array: &Array) -> Self {
        self.address(array.address())
    }

    /// That of an array that may be missing.
    pub fn optional(self, array: Option<&Array>) -> Self {
        self.address(array.map_or(0, Array::address))
    }

    fn address(mut self, address: u64) -> Self {
        self.arguments.push(Argument::Address(address));
        self
    }

    /// Sizes and strides, `int` each.
    pub fn sizes<const N: usize>(mut self, sizes: [usize; N]) -> Self {
        self.arguments.extend(sizes.map(|size| Argument::Int(size as i32)));
        self
    }

    /// An `int`.
    pub fn int(mut self, value: i32) -> Self {
        self.arguments.push(Argument::Int(value));
        self
    }

    /// A `long long`.
    pub fn long(mut self, value: usize) -> Self {
        self.arguments.push(Argument::Long(value as i64));
        self
    }

    /// A `float`.
    pub fn float(mut self, value: f32) -> Self {
        self.arguments.push(Argument::Float(value.to_bits()));
        self
    }

    /// Runs it in so many blocks; in none of them there is nothing to do.
    pub fn run(self, kernel: &str, blocks: [usize; 2]) -> Result<()> {
        if blocks.contains(&0) {
            return Ok(());
        }
        let (kernel, grid) = (kernel.to_owned(), [blocks[0] as u32, blocks[1] as u32, 1]);
        self.gpu.run(Command::Launch { kernel, grid, block: BLOCK, arguments: self.arguments })
    }
}

/// What kernels' names call a type.
pub fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        _ => "f32",
    }
}
