//! What a device is asked to compute, as plain values.

use super::matmul::Matmul;
use std::ffi::c_void;

/// One thing to compute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// A kernel.
    Launch {
        /// Its name.
        kernel: String,
        /// Blocks.
        grid: [u32; 3],
        /// Threads of each.
        block: u32,
        /// Bytes that they share, beside those that the kernel itself names.
        shared: u32,
        /// All that it takes, in order.
        arguments: Vec<Argument>,
    },
    /// A product of matrices.
    Multiply(Matmul),
}

/// A value that a kernel takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Argument {
    /// An address.
    Address(u64),
    /// `int`.
    Int(i32),
    /// `long long`.
    Long(i64),
    /// The bits of a `float`.
    Float(u32),
    /// A `struct` of `int`s.
    Ints(Vec<i32>),
}

impl Argument {
    /// Where the value lies, as launches take it.
    pub fn pointer(&self) -> *mut c_void {
        match self {
            Self::Address(value) => (&raw const *value).cast_mut().cast(),
            Self::Int(value) => (&raw const *value).cast_mut().cast(),
            Self::Long(value) => (&raw const *value).cast_mut().cast(),
            Self::Float(value) => (&raw const *value).cast_mut().cast(),
            Self::Ints(values) => values.as_ptr().cast_mut().cast(),
        }
    }
}
