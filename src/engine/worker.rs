//! A thread that owns a device: receive, pack, run, reply. While it computes, the queue fills: no timer.
//!
//! On a CPU, where much waits, each of its threads takes a part of it, as many tokens as suit its core's cache, answers it
//! and takes the next; where little does, all of them run it as one batch, whose products they share. On a GPU the next
//! batch is packed and asked for while one is computed.

use super::bound::Bound;
use super::queue::{Queue, Waiting};
use super::residents::Laid;
use super::{Gauge, Job, Place, Sequence, batch};
use crate::error::{Error, Result};
use crate::kernels::{Device, Threads, share_supply};
use crate::model::{Model, Pending, Vectors};
use crate::telemetry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::runtime::Handle;

pub struct Worker {
    queue: Arc<Queue>,
    /// Which of every target's replicas is on its device.
    index: usize,
    device: Device,
    gauge: Arc<Gauge>,
    bound: Bound,
    is_lost: AtomicBool,
    threads: Threads,
    /// Where callers wait, if they do so asynchronously.
    callers: Option<Handle>,
}

/// Jobs whose adapters are there.
type Ready = Vec<(Job, Laid)>;

/// What a worker does next.
enum Next {
    /// One batch, of none where another is computed and nothing else is ready.
    Batch(Ready),
    /// So much waits that every thread runs batches of its own.
    Parts,
    /// No more will come.
    End,
}

impl Worker {
    pub fn new(queue: Arc<Queue>, index: usize, place: &Place, gauge: Arc<Gauge>, threads: usize) -> Result<Self> {
        // Beside a GPU nobody else computes.
        let threads = Threads::new(if place.device.is_cpu() { threads } else { 1 })?;
        let (bound, is_lost) = (Bound::new(place.batch_tokens_max), AtomicBool::new(false));
        let device = place.device.clone();
        let callers = Handle::try_current().ok();
        Ok(Self { queue, index, device, gauge, bound, is_lost, threads, callers })
    }

    /// Runs until the queue is closed and empty, or the device is lost.
    pub fn run(self) {
        let mut flying: Option<Flight> = None;
        while !self.is_lost.load(Ordering::Relaxed) {
            let jobs = match self.next(flying.is_none()) {
                Next::End => break,
                Next::Parts => {
                    let serve = |jobs| self.land(self.begin(jobs, self.threads.count()));
                    self.threads.run(|| share_supply(|idle| self.part(idle), serve));
                    continue;
                }
                Next::Batch(jobs) => jobs,
            };
            let next = self.begin(jobs, 1);
            if self.device.is_cpu() {
                self.land(next);
                continue;
            }
            // On a GPU one batch is prepared while another is computed, which the next has to wait for.
            let before = std::mem::replace(&mut flying, next);
            self.land(before);
            // What has failed already is begun again while nothing else is computed.
            if flying.as_ref().is_some_and(|flight| flight.vectors.is_err()) {
                self.land(flying.take());
            }
            flying.iter_mut().for_each(|flight| flight.computing = Instant::now().max(flight.computing));
        }
        self.land(flying);
    }

    /// Waits for something to do, where nothing else is done meanwhile.
    fn next(&self, is_idle: bool) -> Next {
        let mut waiting = self.queue.lock();
        loop {
            waiting.drop_abandoned();
            if self.device.is_cpu() && batch::is_worth_threads(waiting.lengths(), self.threads.count()) {
                return Next::Parts;
            }
            let ready = self.take(&mut waiting, self.bound.tokens());
            if !ready.is_empty() || !is_idle {
                return Next::Batch(ready);
            }
            if waiting.is_closed && waiting.jobs.is_empty() || self.is_lost.load(Ordering::Relaxed) {
                return Next::End;
            }
            waiting = self.queue.wait(waiting);
        }
    }

    /// Takes what runs next, and answers what cannot run.
    fn take(&self, waiting: &mut Waiting, tokens_max: usize) -> Ready {
        self.gauge.residents.look();
        let wanted = |job: &Job| (job.sequence.places(), Arc::as_ptr(self.model(job)));
        let found = |job: &Job| self.gauge.residents.find(self.model(job), job.sequence.target.adapter.as_ref());
        let taken = batch::take(&mut waiting.jobs, tokens_max, wanted, found);
        for (job, error) in taken.failed {
            self.heed(&error);
            answer(vec![(job, Err(error))], Instant::now());
        }
        taken.ready
    }

    /// A device that is lost is used no more.
    fn heed(&self, error: &Error) {
        if matches!(error, Error::Lost(_)) {
            self.is_lost.store(true, Ordering::Relaxed);
        }
    }

    fn model<'a>(&self, job: &'a Job) -> &'a Arc<Model> {
        &job.sequence.target.replicas[self.index].model
    }

    /// What one of so many idle threads does next.
    fn part(&self, idle: usize) -> Option<Ready> {
        let mut waiting = self.queue.lock();
        waiting.drop_abandoned();
        let room = batch::part(waiting.lengths(), idle).min(self.bound.tokens());
        let jobs = self.take(&mut waiting, room);
        (!jobs.is_empty()).then_some(jobs)
    }

    /// Begins one batch, one of so many that run side by side; none of no jobs.
    fn begin(&self, mut jobs: Ready, beside: usize) -> Option<Flight> {
        let began = Instant::now();
        let model = self.model(&jobs.first()?.0).clone();
        batch::order(&mut jobs, |(job, _)| &job.sequence);
        let batch = batch::pack(jobs.iter().map(|(job, laid)| (&job.sequence, laid)), self.index);
        let vectors = match self.device {
            // Beside others this thread leads nobody.
            Device::Cpu => whole(|| self.threads.run(|| model.begin(&batch))),
            Device::Gpu(_) => whole(|| model.begin(&batch)),
        };
        let (tokens, segments) = (batch.ids.len(), batch.segments.len());
        Some(Flight { jobs, tokens, segments, vectors, began, computing: began, beside, is_second: false })
    }

    /// Waits for a batch and answers its jobs. One that does not fit into a device's memory is begun again in halves, and a single
    /// sequence once more: what was computed beside it has given its memory back.
    fn land(&self, flight: Option<Flight>) {
        let Some(Flight { mut jobs, tokens, segments, vectors, began, computing, beside, is_second }) = flight else {
            return;
        };
        let result = vectors.and_then(|vectors| {
            let waiting = Instant::now();
            let vectors = whole(|| vectors.wait());
            if !self.device.is_cpu() {
                telemetry::waited(self.index, waiting.elapsed());
            }
            vectors
        });
        if let Err(error) = &result {
            self.heed(error);
        }
        let is_too_large = matches!(result, Err(Error::OutOfMemory(_)));
        if is_too_large && jobs.len() == 1 && !is_second {
            let again = self.begin(jobs, beside);
            return self.land(again.map(|flight| Flight { is_second: true, ..flight }));
        }
        if is_too_large && jobs.len() > 1 {
            // The next one need not try.
            self.bound.exceeded(tokens);
            telemetry::halved();
            tracing::warn!(tokens, "a batch is too large for the device's memory; it is halved");
            let rest = jobs.split_off(jobs.len() / 2);
            self.land(self.begin(jobs, beside));
            return self.land(self.begin(rest, beside));
        }
        let computed = computing.elapsed();
        match result {
            Ok(vectors) => {
                let rate = (tokens * beside) as f64 / computed.as_secs_f64().max(1e-6);
                self.gauge.tokens_per_second.store(rate as u64, Ordering::Relaxed);
                telemetry::batch(self.index, tokens, jobs.len(), segments, computed);
                self.bound.kept();
                self.answer_all(jobs, vectors, began);
            }
            Err(error) => {
                tracing::error!(%error, tokens, "a batch failed");
                answer(jobs.into_iter().map(|(job, _)| (job, Err(error.clone()))).collect(), began);
            }
        }
    }

    /// Answers jobs that left the queue at some time; where they are many, from where their callers wait, which this thread
    /// then wakes once and not for every one of them.
    fn answer_all(&self, jobs: Ready, vectors: Vectors, began: Instant) {
        /// So few are answered here, and so sooner.
        const FEW: usize = 4;
        /// That one task gives.
        const AT_ONCE: usize = 32;
        let callers = self.callers.as_ref().filter(|_| jobs.len() > FEW);
        let (mut jobs, vectors) = (jobs.into_iter().map(|(job, _)| job).enumerate(), Arc::new(vectors));
        while jobs.len() > 0 {
            let some: Vec<_> = jobs.by_ref().take(AT_ONCE).collect();
            let vectors = vectors.clone();
            let say = move || {
                let answers = some.into_iter().map(|(place, job)| {
                    let vector = finite(vectors.of(place), &job.sequence);
                    (job, vector)
                });
                answer(answers.collect(), began);
            };
            match callers {
                Some(callers) => drop(callers.spawn(async move { say() })),
                None => say(),
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.queue.leave();
    }
}

/// Answers jobs that left the queue at some time.
fn answer(answers: Vec<(Job, Result<Vec<f32>>)>, began: Instant) {
    telemetry::sequences(answers.iter().map(|(job, _)| {
        let Sequence { ids, target, .. } = &job.sequence;
        (target.label.as_str(), ids.len(), began.duration_since(job.since))
    }));
    for (job, vector) in answers {
        // Who has an answer has also given back its place.
        drop(job.permit);
        // A caller that has gone meanwhile is no error.
        let _ = job.reply.send(vector);
    }
}

/// A batch whose vectors are on their way.
struct Flight {
    jobs: Ready,
    tokens: usize,
    segments: usize,
    vectors: Result<Pending>,
    began: Instant,
    /// Since when the device has nothing else to do.
    computing: Instant,
    beside: usize,
    /// Whether it was begun before, and there was no memory for it.
    is_second: bool,
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
