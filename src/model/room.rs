//! How large a batch a device has room for.

use super::{Batch, Model, Pipeline, Segment};
use crate::error::{Error, Result};
use crate::kernels::Device;
use std::sync::Arc;

/// Tokens on a CPU, whose caches hold no more at a time.
const ON_CPU: usize = 2048;

/// Tokens on a GPU, at most: its matrix units are busy with fewer.
const ON_GPU_MAX: usize = 32_768;

/// Tokens of the batch that is tried, and of one of its sequences.
const TRIED: usize = 1024;
const LENGTH: usize = 512;

/// Tokens of the smallest batch that warms up: in smaller ones there is nothing to choose.
const WARMED_MIN: usize = 4096;

/// Share of the free memory that a batch may take; another is prepared beside it.
const SHARE: f64 = 0.4;

impl Model {
    /// Tokens of the largest batch that its device is to run, with what follows it, beside so many bytes of adapters. On a GPU
    /// one is run for it, and what it takes compared with what is free.
    pub fn batch_tokens_max(&self, pipeline: &Arc<Pipeline>, adapter_bytes: usize) -> Result<usize> {
        let Device::Gpu(gpu) = &self.device else { return Ok(ON_CPU) };
        let batch = self.batch_of(TRIED, pipeline);
        let tokens = batch.ids.len();
        let (_, bytes) = gpu.watch(|| self.embed(&batch))?;
        let (free, _) = gpu.memory()?;
        let fit = SHARE * free.saturating_sub(adapter_bytes) as f64 * tokens as f64 / bytes as f64;
        Ok((fit as usize).clamp(1, ON_GPU_MAX))
    }
    /// Runs batches of up to so many tokens, so that what a GPU does once for every size, load kernels and find the fastest,
    /// is done before the first request.
    pub fn warm_up(&self, pipeline: &Arc<Pipeline>, tokens_max: usize) -> Result<()> {
        let sizes = std::iter::successors(Some(WARMED_MIN), |tokens| Some(2 * tokens));
        for tokens in sizes.take_while(|tokens| *tokens <= tokens_max.min(ON_GPU_MAX)) {
            match self.embed(&self.batch_of(tokens, pipeline)) {
                // A batch that does not fit is halved when it comes.
                Err(Error::OutOfMemory(_)) => break,
                done => drop(done?),
            }
        }
        Ok(())
    }

    /// About so many tokens of the base, in long sequences.
    fn batch_of(&self, tokens: usize, pipeline: &Arc<Pipeline>) -> Batch {
        let length = self.spec.tokens_max.min(LENGTH).min(tokens);
        let offsets: Vec<usize> = (0..=tokens / length).map(|sequence| sequence * length).collect();
        let (sequences, tokens) = (offsets.len() - 1, offsets[offsets.len() - 1]);
        let segment = Segment { sequences: 0..sequences, adapter: None, pipeline: pipeline.clone() };
        Batch { ids: vec![0; tokens], offsets, prompts: vec![0; sequences], segments: vec![segment] }
    }
}
