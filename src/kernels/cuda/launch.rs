//! A kernel's name and arguments, put together and sent off.

use super::array::Array;
use super::command::{Argument, Command};
use super::gpu::Gpu;
use crate::error::{Error, Result};
use candle_core::DType;

/// Threads of a block, but for kernels of [`Blocks`] of their own.
pub const BLOCK: u32 = 128;

/// How many blocks there are, and of what.
pub struct Blocks {
    /// Columns and rows of them.
    pub grid: [usize; 2],
    /// Threads of each.
    pub threads: u32,
    /// Bytes that these share, beside those that the kernel itself names.
    pub shared: usize,
}

impl Blocks {
    /// As most kernels have them.
    pub fn usual(grid: [usize; 2]) -> Self {
        Self { grid, threads: BLOCK, shared: 0 }
    }
}

/// Arguments in order, after which a kernel runs.
pub struct Launch<'a> {
    gpu: &'a Gpu,
    arguments: Vec<Argument>,
    /// An array that is more than what lies at its address, of which a kernel would read that alone.
    refused: Option<String>,
}

impl<'a> Launch<'a> {
    /// On a device.
    pub fn on(gpu: &'a Gpu) -> Self {
        Self { gpu, arguments: Vec::with_capacity(24), refused: None }
    }

    /// An array's first element.
    pub fn array(mut self, array: &Array) -> Self {
        if array.rest().is_some() {
            self.refused.get_or_insert_with(|| format!("{array:?} has a rest"));
        }
        self.address(array.address())
    }

    /// That of an array that may be missing.
    pub fn optional(self, array: Option<&Array>) -> Self {
        match array {
            Some(array) => self.array(array),
            None => self.address(0),
        }
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

    /// A `struct` of `int`s.
    pub fn structure(mut self, numbers: Vec<i32>) -> Self {
        self.arguments.push(Argument::Ints(numbers));
        self
    }

    /// A `float`.
    pub fn float(mut self, value: f32) -> Self {
        self.arguments.push(Argument::Float(value.to_bits()));
        self
    }

    /// Runs it in so many blocks; in none of them there is nothing to do.
    pub fn run(self, kernel: &str, grid: [usize; 2]) -> Result<()> {
        self.run_in(kernel, &Blocks::usual(grid))
    }

    /// The same in blocks that are not as in other kernels.
    pub fn run_in(self, kernel: &str, blocks: &Blocks) -> Result<()> {
        if blocks.grid.contains(&0) {
            return Ok(());
        }
        if let Some(reason) = self.refused {
            return Err(Error::Internal(format!("{kernel}: {reason}")));
        }
        let [columns, rows] = blocks.grid.map(|count| count as u32);
        self.gpu.run(Command::Launch {
            kernel: kernel.to_owned(),
            grid: [columns, rows, 1],
            block: blocks.threads,
            shared: blocks.shared as u32,
            arguments: self.arguments,
        })
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
