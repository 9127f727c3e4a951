//! The queue and the devices: sequences in, vectors out, batches made of whatever waits.

mod batch;
mod bound;
mod queue;
mod residents;
mod room;
mod worker;

use crate::error::{Error, Result};
use crate::model::{Adapter, Device, Model, Pipeline};
use queue::Queue;
use residents::Residents;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use worker::Worker;

/// What a sequence runs on: one version of a base, an adapter and a pipeline. Holding it keeps the weights alive.
pub struct Target {
    /// The base and what follows it, on every device.
    pub replicas: Vec<Replica>,
    /// On the host, see [`Adapter::prepared`]. None: the base alone.
    pub adapter: Option<Arc<Adapter>>,
    /// The served name, for metrics.
    pub label: String,
}

/// A base on one device.
#[derive(Clone)]
pub struct Replica {
    /// The base.
    pub model: Arc<Model>,
    /// What follows the transformer.
    pub pipeline: Arc<Pipeline>,
}

impl Target {
    /// The base, as the first device has it.
    pub fn model(&self) -> &Arc<Model> {
        &self.replicas[0].model
    }

    /// What follows it there.
    pub fn pipeline(&self) -> &Arc<Pipeline> {
        &self.replicas[0].pipeline
    }
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

/// A device, and bounds of what is done there.
#[derive(Clone, Debug)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// Tokens of one batch; a longer sequence runs alone.
    pub batch_tokens_max: usize,
    /// Bytes of adapters that lie on a GPU at once.
    pub adapter_bytes_max: usize,
}

/// The way in to the devices. Dropping it ends the workers once the queue is empty, and [`Engine::end`] before that.
pub struct Engine {
    queue: Arc<Queue>,
    permits: Arc<Semaphore>,
    capacity: usize,
    workers: Vec<Arc<Gauge>>,
}

/// What is known of a worker from outside.
struct Gauge {
    residents: Residents,
    /// Tokens a second of late, to tell a refused caller when to come back.
    tokens_per_second: AtomicU64,
}

/// The threads of all devices. They end once the engine is dropped and its queue is empty, or after [`Engine::end`].
pub struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    /// Waits for all of them.
    ///
    /// # Errors
    /// Where one panicked.
    pub fn join(self) -> Result<()> {
        let joined = self.0.into_iter().map(JoinHandle::join).collect::<Vec<_>>();
        match joined.iter().any(std::thread::Result::is_err) {
            true => Err(Error::Internal("a worker panicked".into())),
            false => Ok(()),
        }
    }
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

/// What is said to who comes too late.
const ENDS: Error = Error::Unavailable("shutting down");

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
    /// Starts a thread for every device, which owns it: the first has the first of every target's replicas, and so on. At
    /// most so many tokens are admitted and not yet answered; so many threads compute on a CPU, 0: one a core.
    pub fn start(places: &[Place], queued_tokens_max: usize, threads: usize) -> Result<(Self, Workers)> {
        let capacity = queued_tokens_max.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let queue = Arc::new(Queue::new(places.len()));
        let mut engine = Self {
            queue: queue.clone(),
            permits: Arc::new(Semaphore::new(capacity)),
            capacity,
            workers: Vec::with_capacity(places.len()),
        };
        let mut running = Vec::with_capacity(places.len());
        for (index, place) in places.iter().enumerate() {
            let (residents, bringing) = Residents::new(&place.device, place.adapter_bytes_max, queue.clone())?;
            running.extend(bringing);
            let gauge = Arc::new(Gauge { residents, tokens_per_second: AtomicU64::new(0) });
            let worker = Worker::new(queue.clone(), index, place, gauge.clone(), threads)?;
            let thread = std::thread::Builder::new().name(format!("worker {index}")).spawn(move || worker.run());
            running.push(thread.map_err(|e| Error::Internal(format!("cannot start a worker: {e}")))?);
            engine.workers.push(gauge);
        }
        Ok((engine, Workers(running)))
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
        let Admission { permit, since } = admission;
        let (mut jobs, mut receivers) = (Vec::with_capacity(sequences.len()), Vec::with_capacity(sequences.len()));
        let permits = shared(permit, sequences.iter().map(Sequence::places));
        for (sequence, permit) in sequences.into_iter().zip(permits) {
            let (reply, receiver) = oneshot::channel();
            jobs.push(Job { sequence, reply, since, permit });
            receivers.push(receiver);
        }
        self.ask_for_adapters(&jobs);
        self.queue.push(jobs)?;
        Ok(receivers)
    }

    /// Lets adapters that are not there be brought while a device computes something else. Of several devices it is not
    /// known which will want them.
    fn ask_for_adapters(&self, jobs: &[Job]) {
        let [only] = self.workers.as_slice() else { return };
        for jobs in jobs.chunk_by(|a, b| Arc::ptr_eq(&a.sequence.target, &b.sequence.target)) {
            let target = &jobs[0].sequence.target;
            only.residents.find(target.model(), target.adapter.as_ref());
        }
    }

    /// Lets the workers end once they have done what they compute; what waits is refused, and whatever comes.
    pub fn end(&self) {
        for Job { reply, permit, .. } in self.queue.end() {
            drop(permit);
            // A caller that has gone meanwhile is no error.
            let _ = reply.send(Err(ENDS));
        }
        self.workers.iter().for_each(|worker| worker.residents.end());
    }

    /// Whether every device has its worker.
    pub fn is_alive(&self) -> bool {
        self.queue.workers() == self.workers.len()
    }

    /// Tokens admitted and not yet answered.
    pub fn queued_tokens(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }

    /// About the time in which the queue empties, spread by half so that the refused do not come back at once.
    fn retry_after(&self) -> Duration {
        let rates = self.workers.iter().map(|worker| worker.tokens_per_second.load(Ordering::Relaxed));
        let rate = rates.sum::<u64>().max(1);
        let empty_ms = (1000 * self.queued_tokens() as u64).div_ceil(rate).clamp(1000, 60_000);
        // A hasher's random key is the standard library's only source of chance.
        let chance = RandomState::new().build_hasher().finish() % empty_ms;
        Duration::from_millis(empty_ms / 2 + chance)
    }
}

/// A permit for each of what wants so many places. Where there are not enough, those have them that are answered last: until
/// then nobody else comes in.
fn shared(
    mut permit: OwnedSemaphorePermit,
    places: impl DoubleEndedIterator<Item = usize>,
) -> Vec<OwnedSemaphorePermit> {
    let one = |places: usize| permit.split(places.min(permit.num_permits())).expect("it is no more than there is");
    let mut permits: Vec<_> = places.rev().map(one).collect();
    permits.reverse();
    permits
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_more_than_the_queue_the_last_to_be_answered_hold_their_places() {
        let semaphore = Arc::new(Semaphore::new(10));
        let counts = |places: &[usize]| -> Vec<usize> {
            let permit = semaphore.clone().try_acquire_many_owned(10).unwrap();
            shared(permit, places.iter().copied()).iter().map(|permit| permit.num_permits()).collect()
        };
        assert_eq!(counts(&[2, 3, 5]), [2, 3, 5]);
        assert_eq!(counts(&[4, 4, 4, 4]), [0, 2, 4, 4]);
        assert_eq!(semaphore.available_permits(), 10);
    }
}
