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
pub struct Threads(Arc<Semaphore>);

impl Threads {
    /// So many.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count)))
    }

    /// Runs work on a blocking thread.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let place = self.0.clone().acquire_owned().await.expect("the semaphore is never closed");
        let task = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        task.await.map_err(|e| Error::Internal(format!("a blocking task failed: {e}")))?
    }

    /// Runs work at once where there is little of it, and a hop to another thread would cost more. It is measured in bytes
    /// of JSON that take as long.
    pub async fn run_large<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        const WORTH_A_HOP_BYTES: usize = 256 << 10;
        if bytes < WORTH_A_HOP_BYTES { work() } else { self.run(work).await }
    }
}
