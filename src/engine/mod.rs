//! The queue and the device: sequences in, vectors out, batches made of whatever waits.

mod batch;
mod worker;

use crate::error::{Error, Result};
use crate::model::{Adapter, Model, Pipeline};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// What a sequence runs on: one version of a base, an adapter and a pipeline. Holding it keeps the weights alive.
pub struct Target {
    /// The base.
    pub model: Arc<Model>,
    /// None: the base alone.
    pub adapter: Option<Arc<Adapter>>,
    /// What follows the transformer.
    pub pipeline: Arc<Pipeline>,
    /// The served name, for metrics.
    pub label: String,
}

/// Token ids and what they run on.
pub struct Sequence {
    /// Each inside the model's vocabulary, no more than the model reads. Only a model without attention takes none.
    pub ids: Vec<u32>,
    /// How many of them, at the start, are a prompt's; counted only for a pipeline that leaves them out.
    pub prompt_tokens: usize,
    /// What they run on.
    pub target: Arc<Target>,
}

impl Sequence {
    /// Places in the queue that it takes: one a token, and at least one.
    pub fn places(&self) -> usize {
        self.ids.len().max(1)
    }
}

/// Bounds of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of one batch; a longer sequence runs alone.
    pub batch_tokens_max: usize,
    /// Tokens admitted and not yet answered.
    pub queued_tokens_max: usize,
    /// Threads that compute; 0: one a core.
    pub threads: usize,
}

/// The way in to a device. Dropping it ends the worker once the queue is empty.
pub struct Engine {
    jobs: mpsc::Sender<Vec<Job>>,
    permits: Arc<Semaphore>,
    capacity: usize,
    /// Tokens a second of late, to tell a refused caller when to come back.
    tokens_per_second: Arc<AtomicU64>,
}

/// The place that a request's sequences have been granted in the queue; dropped unused, it is free again.
pub struct Admission {
    permit: OwnedSemaphorePermit,
    since: Instant,
}

/// What arrived at a receiver; its elements are finite.
pub fn received(reply: std::result::Result<Result<Vec<f32>>, oneshot::error::RecvError>) -> Result<Vec<f32>> {
    reply.unwrap_or_else(|_| Err(worker_is_gone()))
}

fn worker_is_gone() -> Error {
    Error::Internal("the worker is gone".into())
}

/// Where a sequence's vector arrives.
pub type Receiver = oneshot::Receiver<Result<Vec<f32>>>;

/// A sequence in the queue. Dropping it frees its place.
struct Job {
    sequence: Sequence,
    reply: oneshot::Sender<Result<Vec<f32>>>,
    since: Instant,
    permit: OwnedSemaphorePermit,
}

impl Engine {
    /// Starts the thread that owns the device.
    pub fn start(limits: Limits) -> Result<(Self, JoinHandle<()>)> {
        let capacity = limits.queued_tokens_max.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let (jobs, queue) = mpsc::channel(capacity);
        let tokens_per_second = Arc::new(AtomicU64::new(0));
        let worker = worker::Worker::new(queue, limits, tokens_per_second.clone())?;
        let thread = std::thread::Builder::new().name("worker".into()).spawn(move || worker.run());
        let thread = thread.map_err(|e| Error::Internal(format!("cannot start the worker: {e}")))?;
        Ok((Self { jobs, permits: Arc::new(Semaphore::new(capacity)), capacity, tokens_per_second }, thread))
    }

    /// So many places, see [`Sequence::places`], all or none. A request larger than the whole queue gets in when it is empty.
    pub fn admit(&self, places: usize) -> Result<Admission> {
        let wanted = places.min(self.capacity) as u32;
        match self.permits.clone().try_acquire_many_owned(wanted) {
            Ok(permit) => Ok(Admission { permit, since: Instant::now() }),
            Err(_) => Err(Error::Busy { what: "the queue of tokens is full", retry_after: self.retry_after() }),
        }
    }

    /// Queues an admission's sequences, all at once so that they can share a batch; the vector of each arrives at its
    /// receiver. Dropping a receiver takes its sequence out of the queue.
    pub fn submit(&self, sequences: Vec<Sequence>, admission: Admission) -> Result<Vec<Receiver>> {
        let Admission { mut permit, since } = admission;
        let (mut jobs, mut receivers) = (Vec::with_capacity(sequences.len()), Vec::with_capacity(sequences.len()));
        for sequence in sequences {
            let tokens = sequence.places().min(permit.num_permits());
            let permit = permit.split(tokens).expect("it is no more than there is");
            let (reply, receiver) = oneshot::channel();
            jobs.push(Job { sequence, reply, since, permit });
            receivers.push(receiver);
        }
        // Every message holds a permit and the channel is as long as there are permits, so only its end can fail this.
        self.jobs.try_send(jobs).map_err(|_| worker_is_gone())?;
        Ok(receivers)
    }

    /// Whether the worker is there.
    pub fn is_alive(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// Tokens admitted and not yet answered.
    pub fn queued_tokens(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }

    /// About the time in which the queue empties, spread by half so that the refused do not come back at once.
    fn retry_after(&self) -> Duration {
        let rate = self.tokens_per_second.load(Ordering::Relaxed).max(1);
        let empty_ms = (1000 * self.queued_tokens() as u64).div_ceil(rate).clamp(1000, 60_000);
        // A hasher's random key is the standard library's only source of chance.
        let chance = RandomState::new().build_hasher().finish() % empty_ms;
        Duration::from_millis(empty_ms / 2 + chance)
    }
}
