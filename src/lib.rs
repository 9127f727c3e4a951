//! x
pub mod error;
pub mod kernels;
