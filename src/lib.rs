//! x
pub mod adapters;
pub mod engine;
pub mod error;
pub mod folder;
pub mod kernels;
pub mod model;
pub mod telemetry;
pub mod text;
