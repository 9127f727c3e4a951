//! Work that would keep an async thread too long: on blocking threads, and given up with its caller.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// Sets its flag when it is dropped: when the caller's future is, finished or not.
#[derive(Default)]
pub struct Caller(Arc<AtomicBool>);

/// Asks whether the caller has gone.
#[derive(Clone)]
pub struct Gone(Arc<AtomicBool>);

impl Caller {
    /// What long work asks now and then.
    pub fn gone(&self) -> Gone {
        Gone(self.0.clone())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Gone {
    /// An error where the result would reach nobody.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::Unavailable("not awaited any more")),
            false => Ok(()),
        }
    }
}

/// Blocking threads that may be taken. What waits for one waits here, where dropping the caller takes it out; the
/// runtime's own queue is never longer than there are threads.
pub struct Threads {
    places: Arc<Semaphore>,
    /// Those that nobody may take beside a CPU that computes.
    spare: usize,
}

/// What is worth a hop to another thread, in bytes of JSON that take as long to read.
pub const LARGE_BYTES: usize = 256 << 10;

/// How many threads there are beside a CPU that computes, unless the configuration says otherwise: it needs its cores itself.
const BESIDE_CPU: usize = 2;

/// How many there are at most, by the configuration; 0: one a core.
pub fn threads_max(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()).max(BESIDE_CPU),
        count => count,
    }
}

impl Threads {
    /// As many as the configuration says; 0: as many as suit the devices.
    pub fn new(configured: usize) -> Self {
        let all = threads_max(configured);
        let count = if configured == 0 { BESIDE_CPU } else { all };
        Self { places: Arc::new(Semaphore::new(count)), spare: all - count }
    }

    /// No CPU computes beside them.
    pub fn are_alone(&self) {
        self.places.add_permits(self.spare);
    }

    /// Runs work on a blocking thread.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let task = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        task.await.map_err(|e| Error::Internal(format!("a blocking task failed: {e}")))?
    }

    /// Runs work at once where there is little of it, see [`LARGE_BYTES`].
    pub async fn run_large<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if bytes < LARGE_BYTES { work() } else { self.run(work).await }
    }
}
