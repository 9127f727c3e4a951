//! Adapter files to deltas.

mod config;
mod keys;
mod methods;
mod module;
mod modules;
mod peft;
mod targets;
mod ways_out;

pub use config::Config;
pub use peft::load;
