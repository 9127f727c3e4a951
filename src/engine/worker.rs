//! The one thread that owns a device: receive, pack, run, reply. While it computes, the queue fills: no timer.
//!
//! On a CPU, where much waits, each of its threads takes a part of it, as many tokens as suit its core's cache, answers it
//! and takes the next; where little does, all of them run it as one batch, whose products they share.

use super::{Job, Limits, Sequence, batch};
use crate::error::{Error, Result};
use crate::kernels::{Threads, share_supply};
use crate::telemetry;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc;

pub struct Worker {
    waiting: Mutex<Waiting>,
    limits: Limits,
    tokens_per_second: Arc<AtomicU64>,
    threads: Threads,
}

/// What has come and nobody has begun.
struct Waiting {
    queue: mpsc::Receiver<Vec<Job>>,
    jobs: VecDeque<Job>,
}

impl Waiting {
    /// Takes in what has come. Jobs whose caller has gone are dropped.
    fn look(&mut self) {
        while let Ok(jobs) = self.queue.try_recv() {
            self.jobs.extend(jobs);
        }
        self.jobs.retain(|job| !job.reply.is_closed());
    }

    /// Waits for work; false when none will come.
    fn receive(&mut self) -> bool {
        loop {
            self.look();
            if !self.jobs.is_empty() {
                return true;
            }
            match self.queue.blocking_recv() {
                Some(jobs) => self.jobs.extend(jobs),
                None => return false,
            }
        }
    }

    /// Tokens of every job.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.jobs.iter().map(|job| job.sequence.ids.len())
    }
}

impl Worker {
    pub fn new(queue: mpsc::Receiver<Vec<Job>>, limits: Limits, tokens_per_second: Arc<AtomicU64>) -> Result<Self> {
        let count = match limits.threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            count => count,
        };
        let threads = Threads::new(count);
        let threads = threads.map_err(|e| Error::Internal(format!("cannot start compute threads: {e}")))?;
        let waiting = Mutex::new(Waiting { queue, jobs: VecDeque::new() });
        Ok(Self { waiting, limits, tokens_per_second, threads })
    }

    /// Runs until every engine handle is gone and the queue is empty.
    pub fn run(self) {
        loop {
            let mut waiting = self.waiting();
            if !waiting.receive() {
                return;
            }
            let is_cpu = waiting.jobs.front().is_some_and(|job| job.sequence.target.model.device().is_cpu());
            if is_cpu && batch::is_worth_threads(waiting.lengths(), self.threads.count()) {
                drop(waiting);
                let part = |idle| self.part(idle);
                self.threads.run(|| share_supply(part, |jobs| self.serve(jobs, self.threads.count())));
            } else {
                let jobs = batch::take(&mut waiting.jobs, self.limits.batch_tokens_max, |job| &job.sequence);
                drop(waiting);
                self.serve(jobs, 1);
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that is done with it leaves it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one of so many idle threads does next.
    fn part(&self, idle: usize) -> Option<Vec<Job>> {
        let mut waiting = self.waiting();
        waiting.look();
        let room = batch::part(waiting.lengths().sum(), idle).min(self.limits.batch_tokens_max);
        let jobs = batch::take(&mut waiting.jobs, room, |job| &job.sequence);
        (!jobs.is_empty()).then_some(jobs)
    }

    /// Runs one batch, one of so many that run side by side, and answers its jobs.
    fn serve(&self, mut jobs: Vec<Job>, beside: usize) {
        let began = Instant::now();
        let Some(model) = jobs.first().map(|job| job.sequence.target.model.clone()) else { return };
        batch::order(&mut jobs, |job| &job.sequence);
        let batch = batch::pack(jobs.iter().map(|job| &job.sequence));
        let tokens = batch.ids.len();
        // A panic must not take the device's only thread with it; the tensors of a failed pass are dropped whole. Beside
        // others this thread leads nobody.
        let result = catch_unwind(AssertUnwindSafe(|| self.threads.run(|| model.embed(&batch))));
        let result = result.unwrap_or_else(|_| Err(Error::Internal("the forward pass panicked".into())));
        let computed = began.elapsed();
        let rate = (tokens * beside) as f64 / computed.as_secs_f64().max(1e-6);
        self.tokens_per_second.store(rate as u64, Ordering::Relaxed);
        telemetry::batch(tokens, jobs.len(), batch.segments.len(), computed);
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

/// A vector with NaN or infinity is an error, never an answer.
fn finite(vector: Vec<f32>, sequence: &Sequence) -> Result<Vec<f32>> {
    if vector.iter().all(|v| v.is_finite()) {
        return Ok(vector);
    }
    let error = Error::Internal(format!("'{}' returned a vector that is not finite", sequence.target.label));
    tracing::error!(%error, tokens = sequence.ids.len(), "a sequence failed");
    Err(error)
}
