//! The one thread that owns a device: receive, pack, run, reply. While it computes, the queue fills: no timer.

use super::{Job, Limits, Sequence, batch};
use crate::error::{Error, Result};
use crate::kernels::{Threads, share_items};
use crate::model::{Batch, Model};
use crate::telemetry;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;

pub struct Worker {
    queue: mpsc::Receiver<Vec<Job>>,
    waiting: VecDeque<Job>,
    limits: Limits,
    tokens_per_second: Arc<AtomicU64>,
    threads: Threads,
}

impl Worker {
    pub fn new(queue: mpsc::Receiver<Vec<Job>>, limits: Limits, tokens_per_second: Arc<AtomicU64>) -> Result<Self> {
        let count = match limits.threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            count => count,
        };
        let threads = Threads::new(count);
        let threads = threads.map_err(|e| Error::Internal(format!("cannot start compute threads: {e}")))?;
        Ok(Self { queue, waiting: VecDeque::new(), limits, tokens_per_second, threads })
    }

    /// Runs until every engine handle is gone and the queue is empty.
    pub fn run(mut self) {
        while self.receive() {
            let mut jobs = batch::take(&mut self.waiting, self.limits.batch_tokens_max, |job| &job.sequence);
            batch::order(&mut jobs, |job| &job.sequence);
            self.serve(jobs);
        }
    }

    /// Waits for work; false when none will come. Jobs whose caller has gone are dropped here.
    fn receive(&mut self) -> bool {
        loop {
            while let Ok(jobs) = self.queue.try_recv() {
                self.waiting.extend(jobs);
            }
            self.waiting.retain(|job| !job.reply.is_closed());
            if !self.waiting.is_empty() {
                return true;
            }
            match self.queue.blocking_recv() {
                Some(jobs) => self.waiting.extend(jobs),
                None => return false,
            }
        }
    }

    /// Runs one batch and answers its jobs.
    fn serve(&self, jobs: Vec<Job>) {
        let began = Instant::now();
        let Some(model) = jobs.first().map(|job| job.sequence.target.model.clone()) else { return };
        let lengths: Vec<usize> = jobs.iter().map(|job| job.sequence.ids.len()).collect();
        let tokens = lengths.iter().sum::<usize>();
        // Another device takes a batch as a whole.
        let threads = if model.device().is_cpu() { self.threads.count() } else { 1 };
        let pack = |part: Range<usize>| batch::pack(jobs[part].iter().map(|job| &job.sequence));
        let parts: Vec<Batch> = batch::parts(&lengths, threads).into_iter().map(pack).collect();
        let segments = parts.iter().map(|part| part.segments.len()).sum();
        // A panic must not take the device's only thread with it; the tensors of a failed pass are dropped whole.
        let result = catch_unwind(AssertUnwindSafe(|| self.threads.run(|| embed(&model, &parts))));
        let result = result.unwrap_or_else(|_| Err(Error::Internal("the forward pass panicked".into())));
        let computed = began.elapsed();
        self.tokens_per_second.store((tokens as f64 / computed.as_secs_f64().max(1e-6)) as u64, Ordering::Relaxed);
        telemetry::batch(tokens, jobs.len(), segments, computed);
        let answer = |job: Job, vector: Result<Vec<f32>>| {
            let queued = began.duration_since(job.since);
            telemetry::sequence(&job.sequence.target.label, job.sequence.ids.len(), queued);
            // Who has an answer has also given back its place.
            drop(job.permit);
            // A caller that has gone meanwhile is no error.
            let _ = job.reply.send(vector);
        };
        match result {
            Ok(vectors) => jobs.into_iter().zip(vectors).for_each(|(job, vector)| {
                let vector = finite(vector, &job.sequence);
                answer(job, vector);
            }),
            Err(error) => {
                tracing::error!(%error, tokens, "a batch failed");
                jobs.into_iter().for_each(|job| answer(job, Err(error.clone())));
            }
        }
    }
}

/// The vectors of all parts, in order.
fn embed(model: &Model, parts: &[Batch]) -> Result<Vec<Vec<f32>>> {
    match parts {
        [whole] => model.embed(whole),
        parts => {
            let mut vectors: Vec<Result<Vec<Vec<f32>>>> = parts.iter().map(|_| Ok(Vec::new())).collect();
            share_items(vectors.iter_mut().zip(parts).collect(), |(vectors, part)| *vectors = model.embed(part));
            Ok(vectors.into_iter().collect::<Result<Vec<_>>>()?.concat())
        }
    }
}

/// A vector with NaN or infinity is an error, never an answer.
fn finite(vector: Vec<f32>, sequence: &Sequence) -> Result<Vec<f32>> {
    if vector.iter().all(|v| v.is_finite()) {
        return Ok(vector);
    }
    let error = Error::Internal(format!("'{}' returned a vector that is not finite", sequence.target.label));
    tracing::error!(%error, tokens = sequence.ids.len(), "a sequence failed");
    Err(error)
}
