//! x
pub mod adapters;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod folder;
pub mod http;
pub mod hub;
pub mod kernels;
pub mod model;
pub mod registry;
pub mod telemetry;
pub mod text;
