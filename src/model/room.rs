//! How large a batch a device has room for.

use super::{Batch, Model, Pipeline, Segment};
use crate::error::Result;
use crate::kernels::Device;
use std::sync::Arc;

/// Tokens on a CPU, whose caches hold no more at a time.
const ON_CPU: usize = 2048;

/// Tokens on a GPU, at most: its matrix units are busy with fewer.
const ON_GPU_MAX: usize = 32_768;

/// Tokens of the batch that is tried.
const TRIED: usize = 1024;

/// Share of the free memory that a batch may take; another is prepared beside it.
const SHARE: f64 = 0.4;

impl Model {
    /// Tokens of the largest batch that its device is to run, with what follows it, beside so many bytes of adapters. On a GPU
    /// one is run for it, and what it takes compared with what is free.
    pub fn batch_tokens_max(&self, pipeline: &Arc<Pipeline>, adapter_bytes: usize) -> Result<usize> {
        let Device::Gpu(gpu) = &self.device else { return Ok(ON_CPU) };
        let length = self.spec.tokens_max.min(TRIED / 2);
        let offsets: Vec<usize> = (0..=TRIED / length).map(|sequence| sequence * length).collect();
        let (sequences, tokens) = (offsets.len() - 1, TRIED / length * length);
        let segment = Segment { sequences: 0..sequences, adapter: None, pipeline: pipeline.clone() };
        let (ids, prompts) = (vec![0; tokens], vec![0; sequences]);
        let batch = Batch { ids, offsets, prompts, segments: vec![segment] };
        let (_, bytes) = gpu.watch(|| self.embed(&batch))?;
        let (free, _) = gpu.memory()?;
        let fit = SHARE * free.saturating_sub(adapter_bytes) as f64 * tokens as f64 / bytes as f64;
        Ok((fit as usize).clamp(1, ON_GPU_MAX))
    }
}
