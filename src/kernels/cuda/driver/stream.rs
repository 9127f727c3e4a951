//! Streams, in each of which all happens in order, and events in them.
#![expect(unsafe_code, reason = "CUDA is C")]

use super::Failure;
use super::device::{Device, Owned};
use super::pool::Pool;
use cudarc::driver::result::{self, event, mem_pool, stream};
use cudarc::driver::sys::{self, CUevent_flags, CUevent_wait_flags};
use std::sync::Arc;

/// A queue of a device's work.
pub struct Stream {
    stream: Owned<sys::CUstream>,
    pool: Pool,
}

impl Stream {
    /// An empty one, whose memory is from a pool.
    pub fn new(device: &Arc<Device>, pool: Pool) -> Result<Self, Failure> {
        let raw = stream::create(stream::StreamKind::NonBlocking)?;
        Ok(Self { stream: Owned::new(device, raw, stream::destroy), pool })
    }

    /// The handle, which lives as long as this.
    pub fn raw(&self) -> sys::CUstream {
        self.stream.raw()
    }

    /// Memory for what is asked later.
    pub fn allocate(&self, bytes: usize) -> Result<u64, Failure> {
        // SAFETY: pool and stream live; who gets the memory uses it on this stream, or when what was asked on it is done.
        Ok(unsafe { mem_pool::alloc_async(self.pool.raw(), bytes, self.raw()) }?)
    }

    /// Frees memory after what was asked before.
    pub fn free(&self, address: u64) {
        // SAFETY: the caller was given the address by a stream's `allocate`, and uses it no more.
        let _ = unsafe { result::free_async(address, self.raw()) };
    }

    /// Waits until all is done.
    pub fn synchronize(&self) -> Result<(), Failure> {
        // SAFETY: the stream lives.
        Ok(unsafe { stream::synchronize(self.raw()) }?)
    }

    /// Lets what is asked from now on wait for what was asked of another before.
    pub fn follow(&self, device: &Arc<Device>, other: &Self) -> Result<(), Failure> {
        let event = Event::new(device)?;
        other.mark(&event)?;
        // SAFETY: event and stream live, and are of one context; CUDA keeps the event until it has come.
        Ok(unsafe { stream::wait_event(self.raw(), event.event.raw(), CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }?)
    }

    /// Lets the event come when all that was asked is done. Where that fails all is done at once, so that memory in use
    /// until then may be used again in any case.
    pub fn mark(&self, event: &Event) -> Result<(), Failure> {
        // SAFETY: event and stream live, and are of one context.
        let marked = unsafe { event::record(event.event.raw(), self.raw()) };
        if marked.is_err() {
            self.synchronize()?;
        }
        Ok(marked?)
    }
}

/// A point in the stream.
pub struct Event {
    event: Owned<sys::CUevent>,
}

impl Event {
    /// One to wait for; it has come until it is marked.
    pub fn new(device: &Arc<Device>) -> Result<Self, Failure> {
        Self::with(device, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// The same, which knows when it came.
    pub fn timed(device: &Arc<Device>) -> Result<Self, Failure> {
        Self::with(device, CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(device: &Arc<Device>, flags: CUevent_flags) -> Result<Self, Failure> {
        Ok(Self { event: Owned::new(device, event::create(flags)?, event::destroy) })
    }

    /// Milliseconds until another came; both are timed, and have come.
    pub fn ms_until(&self, other: &Self) -> Result<f32, Failure> {
        // SAFETY: the events live, and are of one context.
        Ok(unsafe { event::elapsed(self.event.raw(), other.event.raw()) }?)
    }

    /// Waits until it has come.
    ///
    /// # Errors
    /// Those of what was asked before it.
    pub fn wait(&self) -> Result<(), Failure> {
        self.event.device().enter()?;
        // SAFETY: the event lives.
        Ok(unsafe { event::synchronize(self.event.raw()) }?)
    }
}
