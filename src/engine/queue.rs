//! What was asked for and nobody has begun: one queue, whatever the number of devices that take from it.

use super::{ENDS, Job, worker_is_gone};
use crate::error::Result;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs in the order in which they came.
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// What a worker sees while it holds the queue.
pub struct Waiting {
    pub jobs: VecDeque<Job>,
    /// No more will come.
    pub is_closed: bool,
    /// How many take jobs from it.
    workers: usize,
    /// Jobs that batches have paid to look at since the queue was last looked through for callers that have gone.
    looks: usize,
}

/// Jobs that one batch pays to look at. A queue of no more than that is looked through for every batch.
const LOOKS: usize = 1024;

impl Queue {
    /// An empty one, for so many workers.
    pub fn new(workers: usize) -> Self {
        let waiting = Waiting { jobs: VecDeque::new(), is_closed: false, workers, looks: 0 };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    /// Appends jobs.
    ///
    /// # Errors
    /// Where no worker will take them.
    pub fn push(&self, jobs: Vec<Job>) -> Result<()> {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return Err(ENDS);
        }
        if waiting.workers == 0 {
            return Err(worker_is_gone());
        }
        waiting.jobs.extend(jobs);
        drop(waiting);
        // One that is busy looks when it is done; one that waits may be the one that cannot have this yet.
        self.changed.notify_all();
        Ok(())
    }

    /// Lets workers end once it is empty.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// The same at once: what waits is taken out of it.
    pub fn end(&self) -> VecDeque<Job> {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        let jobs = std::mem::take(&mut waiting.jobs);
        drop(waiting);
        self.changed.notify_all();
        jobs
    }

    /// Lets waiting workers look again: something has changed for what was not ready.
    pub fn wake(&self) {
        // Who has looked in vain and does not wait yet holds the lock.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// A worker is gone. What waits when the last one goes is dropped, and its callers hear of it.
    pub fn leave(&self) {
        let mut waiting = self.lock();
        waiting.workers -= 1;
        if waiting.workers == 0 {
            waiting.jobs.clear();
        }
    }

    /// Whether nothing waits and nothing will come.
    pub fn is_done(&self) -> bool {
        let waiting = self.lock();
        waiting.is_closed && waiting.jobs.is_empty()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.lock().workers
    }

    /// Holds it.
    pub fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that is done with it leaves it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of it until something has changed.
    pub fn wait<'a>(&self, waiting: MutexGuard<'a, Waiting>) -> MutexGuard<'a, Waiting> {
        self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Drops jobs whose caller has gone; of a long queue every so many calls, so that its length costs none of them more.
    pub fn drop_abandoned(&mut self) {
        self.looks += LOOKS;
        if self.looks >= self.jobs.len() {
            self.jobs.retain(|job| !job.reply.is_closed());
            self.looks = 0;
        }
    }

    /// Places of every job.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.jobs.iter().map(|job| job.sequence.places())
    }
}
