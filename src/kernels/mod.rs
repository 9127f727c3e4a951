//! The operations of a forward pass, one a file: a fast CPU twin, and a plain one in its tests.
//! They know tensors and packed rows, and nothing of models. Elements are f32, but for weights: [`Packed`] holds them as
//! the machine multiplies fastest. Which instructions there are is asked at run time.

mod activation;
mod attention;
mod columns;
mod disentangled;
mod finite;
mod lookup;
mod math;
mod norm;
mod packed;
mod pooling;
mod product;
mod rotary;
#[cfg(test)]
mod sample;
mod small;
mod softmax;
mod threads;
mod view;

pub use activation::{Activation, Gate, activate};
pub use attention::{Attention, attention};
pub use columns::{add_difference, assign, scale_columns, sum};
pub use disentangled::{Disentangled, disentangled};
pub use finite::all_finite;
pub use lookup::look_up;
pub use norm::{NormKind, norm, unit};
pub use packed::{Format, Memory, Packed, Update};
pub use pooling::{Pooling, pool};
pub use product::{add_product, product, set_product};
pub use rotary::{rotary_tables, rotate};
pub use threads::{Threads, share_supply, threads};
