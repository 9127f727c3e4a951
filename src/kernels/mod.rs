//! The operations of a forward pass, one a file: a fast CPU twin, and a plain one in its tests; `cuda` has a GPU's, and
//! `twins` goes to the one or the other. They know tensors and packed rows, and nothing of models. On the CPU elements are
//! f32, but for weights: [`Packed`] holds them as the machine multiplies fastest. Which instructions there are is asked at
//! run time.

mod activation;
mod attention;
mod columns;
mod cuda;
mod device;
mod disentangled;
mod finite;
mod lookup;
mod math;
mod norm;
mod packed;
mod pooling;
mod product;
mod rotary;
mod sample;
mod selftest;
mod sequences;
mod small;
mod softmax;
mod tensor;
mod threads;
mod twins;
mod updates;
mod view;

#[cfg(all(test, feature = "emulated"))]
pub use {cuda::asked, sample::normal};

pub use activation::{Activation, Active, Gate};
pub use attention::Attention;
pub use cuda::{Attended, Change, HostFactors, Late, Spans, TRIED_ROWS, rounded_rows};
pub use device::Device;
pub use disentangled::Disentangled;
pub use finite::all_finite;
pub use norm::{NormKind, Normalization};
pub use packed::{Format, Memory, Packed, Update};
pub use pooling::Pooling;
pub use rotary::rotary_tables;
#[cfg(test)]
pub(crate) use sample::below;
pub use selftest::{Finding, Size, selftest, verify};
pub use sequences::{Places, Sequences};
pub use tensor::{Arrived, Departed, Tensor};
pub use threads::{Threads, share_results, share_supply, threads};
pub use twins::{
    activate, activate_rows, activated, add_difference, add_product, add_to_each, assign, attention, disentangled,
    look_up, norm, operand, pick, pool, product, rotate, scale_columns, scatter_add, set_product, sum, unit,
};
pub use updates::{Factors, Touched, Updates};
