//! The one thread that owns a device: receive, pack, run, reply. While it computes, the queue fills: no timer.
//!
//! On a CPU, where much waits, each of its threads takes a part of it, as many tokens as suit its core's cache, answers it
//! and takes the next; where little does, all of them run it as one batch, whose products they share. On a GPU the next
//! batch is packed and asked for while one is computed.

use super::{Job, Limits, Sequence, batch};
use crate::error::{Error, Result};
use crate::kernels::{Device, Threads, share_supply};
use crate::model::Vectors;
use crate::telemetry;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc;

pub struct Worker {
    waiting: Mutex<Waiting>,
    /// Less than configured, once that did not fit into the device's memory.
    batch_tokens_max: AtomicUsize,
    is_lost: AtomicBool,
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
        let (batch_tokens_max, is_lost) = (AtomicUsize::new(limits.batch_tokens_max), AtomicBool::new(false));
        Ok(Self { waiting, batch_tokens_max, is_lost, tokens_per_second, threads })
    }

    /// Runs until every engine handle is gone and the queue is empty, or the device is lost.
    pub fn run(self) {
        let mut flying: Option<Flight> = None;
        while !self.is_lost.load(Ordering::Relaxed) {
            let mut waiting = self.waiting();
            if flying.is_some() {
                waiting.look();
            } else if !waiting.receive() {
                return;
            }
            let is_cpu = waiting.jobs.front().is_some_and(|job| job.sequence.target.model.device().is_cpu());
            if is_cpu && batch::is_worth_threads(waiting.lengths(), self.threads.count()) {
                drop(waiting);
                let serve = |jobs| self.land(self.begin(jobs, self.threads.count()));
                self.threads.run(|| share_supply(|idle| self.part(idle), serve));
                continue;
            }
            let jobs = batch::take(&mut waiting.jobs, self.tokens_max(), |job| &job.sequence);
            drop(waiting);
            let next = self.begin(jobs, 1);
            if is_cpu {
                self.land(next);
                continue;
            }
            // On a GPU one batch is prepared while another is computed, which the next has to wait for.
            let before = std::mem::replace(&mut flying, next);
            self.land(before);
            flying.iter_mut().for_each(|flight| flight.computing = Instant::now().max(flight.computing));
        }
        self.land(flying);
    }

    fn tokens_max(&self) -> usize {
        self.batch_tokens_max.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that is done with it leaves it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one of so many idle threads does next.
    fn part(&self, idle: usize) -> Option<Vec<Job>> {
        let mut waiting = self.waiting();
        waiting.look();
        let room = batch::part(waiting.lengths().sum(), idle).min(self.tokens_max());
        let jobs = batch::take(&mut waiting.jobs, room, |job| &job.sequence);
        (!jobs.is_empty()).then_some(jobs)
    }

    /// Begins one batch, one of so many that run side by side; none of no jobs.
    fn begin(&self, mut jobs: Vec<Job>, beside: usize) -> Option<Flight> {
        let began = Instant::now();
        let model = jobs.first()?.sequence.target.model.clone();
        batch::order(&mut jobs, |job| &job.sequence);
        let mut batch = batch::pack(jobs.iter().map(|job| &job.sequence));
        let laid = batch.segments.iter_mut().try_for_each(|segment| {
            segment.adapter = segment.adapter.as_ref().map(|adapter| model.lay(adapter)).transpose()?;
            Ok(())
        });
        let vectors = laid.and_then(|()| match model.device() {
            // Beside others this thread leads nobody.
            Device::Cpu => whole(|| self.threads.run(|| model.begin(&batch))),
            Device::Gpu(_) => whole(|| model.begin(&batch)),
        });
        let (tokens, segments) = (batch.ids.len(), batch.segments.len());
        Some(Flight { jobs, tokens, segments, vectors, began, computing: began, beside })
    }

    /// Waits for a batch and answers its jobs. One that does not fit into a device's memory is begun again in halves.
    fn land(&self, flight: Option<Flight>) {
        let Some(Flight { mut jobs, tokens, segments, vectors, began, computing, beside }) = flight else { return };
        let result = vectors.and_then(|vectors| whole(|| vectors.wait()));
        if matches!(result, Err(Error::Lost(_))) {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        if matches!(result, Err(Error::OutOfMemory(_))) && jobs.len() > 1 {
            // The next one need not try.
            self.batch_tokens_max.store((tokens / 2).max(1), Ordering::Relaxed);
            telemetry::halved();
            tracing::warn!(tokens, "a batch is too large for the device's memory; it is halved");
            let rest = jobs.split_off(jobs.len() / 2);
            self.land(self.begin(jobs, beside));
            return self.land(self.begin(rest, beside));
        }
        let computed = computing.elapsed();
        let rate = (tokens * beside) as f64 / computed.as_secs_f64().max(1e-6);
        self.tokens_per_second.store(rate as u64, Ordering::Relaxed);
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

/// A batch whose vectors are on their way.
struct Flight {
    jobs: Vec<Job>,
    tokens: usize,
    segments: usize,
    vectors: Result<Vectors>,
    began: Instant,
    /// Since when the device has nothing else to do.
    computing: Instant,
    beside: usize,
}

/// What `compute` gives, or an error where it panics: that must not take the device's only thread with it, and the tensors
/// of a failed pass are dropped whole.
fn whole<T>(compute: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = catch_unwind(AssertUnwindSafe(compute));
    result.unwrap_or_else(|_| Err(Error::Internal("the forward pass panicked".into())))
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
