//! How large a batch a device has room for.

use super::{Batch, Model, Pipeline, Segment};
use crate::error::{Error, Result};
use crate::kernels::{Device, TRIED_ROWS, rounded_rows};
use std::sync::Arc;

/// Tokens on a CPU, whose caches hold no more at a time.
const ON_CPU: usize = 2048;

/// Tokens on a GPU, at most: its matrix units are busy with fewer.
const ON_GPU_MAX: usize = 32_768;

/// Tokens of the batch that is tried, and of one of its sequences.
const TRIED: usize = 1024;
const LENGTH: usize = 512;

/// From one id to the next: a prime number, so that all of them come.
const APART: usize = 7919;

/// Share of the free memory that a batch may take; another is prepared beside it.
const SHARE: f64 = 0.4;

/// Batches of up to so many tokens that stand for all for which there is something to choose.
fn tried(tokens_max: usize) -> impl Iterator<Item = usize> {
    let sizes = (TRIED_ROWS..tokens_max).step_by(TRIED_ROWS).chain([tokens_max]);
    sizes.filter(|tokens| rounded_rows(*tokens) >= TRIED_ROWS)
}

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

    /// Runs batches of the base of up to so many tokens, so that what a GPU does once for every size, load kernels and find
    /// the fastest, is done before the first request. One that does not run is warned of: others may.
    ///
    /// # Errors
    /// A device that is lost.
    pub fn warm_up(&self, pipeline: &Arc<Pipeline>, tokens_max: usize) -> Result<()> {
        for tokens in tried(tokens_max.min(ON_GPU_MAX)) {
            match self.embed(&self.batch_of(tokens, pipeline)) {
                Ok(_) => {}
                Err(error @ Error::Lost(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, tokens, "a batch that warms up does not run");
                    break;
                }
            }
        }
        Ok(())
    }

    /// So many tokens of the base, in long sequences, of ids that differ: of equal rows a wrong result may be right.
    fn batch_of(&self, tokens: usize, pipeline: &Arc<Pipeline>) -> Batch {
        let (length, rows) = (self.spec.tokens_max.clamp(1, LENGTH), self.spec.embedding.word.rows.max(1));
        let offsets: Vec<usize> = (0..tokens).step_by(length).chain([tokens]).collect();
        let ids = (0..tokens).map(|place| (place * APART % rows) as u32).collect();
        let sequences = offsets.len() - 1;
        let segment = Segment { sequences: 0..sequences, adapter: None, pipeline: pipeline.clone() };
        Batch { ids, offsets, prompts: vec![0; sequences], segments: vec![segment] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_chosen_for_batches_of_any_size_is_chosen_when_it_starts() {
        for tokens_max in [64, 3000, TRIED_ROWS - 1, TRIED_ROWS, 5632, 11_264, ON_GPU_MAX - 1, ON_GPU_MAX] {
            let tried: Vec<usize> = tried(tokens_max).collect();
            assert!(tried.iter().all(|tokens| *tokens <= tokens_max));
            let mut chosen: Vec<usize> = tried.into_iter().map(rounded_rows).collect();
            chosen.dedup();
            let mut all: Vec<usize> = (1..=tokens_max).map(rounded_rows).filter(|rows| *rows >= TRIED_ROWS).collect();
            all.dedup();
            assert_eq!(chosen, all, "up to {tokens_max}");
        }
    }
}
