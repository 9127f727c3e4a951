//! Adapter files to deltas.

mod config;
mod peft;

pub use config::Config;
pub use peft::load;
