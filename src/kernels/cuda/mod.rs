//! The operations on a GPU: one file an operation here, its kernels in the `.cu` file of the same name, its CPU twin in the
//! file of the same name above. `twins` chooses between the two.
//!
//! All of it is written against [`Gpu`], behind which stands CUDA's driver in a build with the feature `cuda`, and in one
//! with `emulated` the same kernels compiled for the host: slow, and so exact in what they do that where there is no GPU
//! their arithmetic can be held to the CPU's, and with `races` also in which order their threads come to memory. In a build
//! with neither there is no [`Gpu`] to be had, and nothing comes here.
//!
//! A small batch is one `pass`: what it asks for is written down, and launched in one call if it was asked for before.

mod activation;
mod array;
mod attention;
mod columns;
#[cfg_attr(not(any(feature = "cuda", feature = "emulated")), expect(dead_code, reason = "no device makes use of it"))]
mod command;
mod delta;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "emulated")]
mod emulated;
mod factors;
mod gpu;
mod graphs;
mod late;
mod launch;
mod lookup;
mod matmul;
mod norm;
mod pass;
mod pooling;
mod product;
mod rotary;
mod slab;

pub use activation::{activate, activate_rows};
pub use array::{Array, Arriving};
pub use attention::{Spread, attention, disentangled};
pub use columns::{add_difference, add_to_each, affine, assign, joined, scale_columns, scatter_add, sum};
pub use delta::{Grouped, Spans, Touched};
#[cfg(all(test, feature = "emulated"))]
pub use emulated::asked;
pub use factors::{Change, Factors, HostFactors};
pub use gpu::{Bytes, Gpu};
pub use late::{Attended, Late};
pub use lookup::{look_up, pick};
pub use matmul::{TRIED_ROWS, rounded_rows};
pub use norm::{norm, unit};
pub use pooling::pool;
pub use product::{Projection, activates, add_product, set_product};
pub use rotary::rotate;
