//! Host memory that a device reaches by itself, and copies through it.
#![expect(unsafe_code, reason = "CUDA is C")]

use super::Failure;
use super::device::{Device, Owned};
use super::stream::{Event, Stream};
use cudarc::driver::result;
use std::ffi::c_void;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are copied to the device at a time.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces on their way; with one more the oldest is waited for.
const PIECES: usize = 32;

/// Host memory that stays where it is.
pub struct Pinned {
    memory: Owned<*mut c_void>,
    bytes: usize,
}

impl Pinned {
    /// So many zeros.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, Failure> {
        // SAFETY: the memory is written before it is read, below.
        let raw = unsafe { result::malloc_host(bytes.max(1), 0) }?;
        // SAFETY: it has so many bytes.
        unsafe { raw.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { memory: Owned::new(device, raw, result::free_host), bytes })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: there are so many, all written, and the device writes to none while this is in no `Download`.
        unsafe { slice::from_raw_parts(self.memory.raw().cast(), self.bytes) }
    }

    /// Its bytes, to write.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.memory.raw().cast(), self.bytes) }
    }
}

/// Pinned memory of more bytes is not kept: a batch's vectors take less, weights that are read back more.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Pieces that are kept: of batches that are computed, and of some that callers still read.
const KEPT_MAX: usize = 8;

/// Pinned memory that bytes from the device come to, free to be used.
#[derive(Clone, Default)]
pub struct Landings(Arc<Mutex<Vec<Pinned>>>);

impl Landings {
    /// Memory for so many bytes.
    pub fn find(&self, device: &Arc<Device>, bytes: usize) -> Result<Landing, Failure> {
        let found = self.take(bytes);
        // A power of two, so that the next is likely to do with it.
        let pinned = found.map_or_else(|| Pinned::new(device, bytes.next_power_of_two()), Ok)?;
        Ok(Landing { pinned: Some(pinned), bytes, landings: self.clone() })
    }

    /// The smallest piece of so many bytes.
    fn take(&self, bytes: usize) -> Option<Pinned> {
        let mut free = self.free();
        let fits = free.iter().enumerate().filter(|(_, pinned)| pinned.bytes >= bytes);
        let place = fits.min_by_key(|(_, pinned)| pinned.bytes)?.0;
        Some(free.swap_remove(place))
    }

    /// Keeps a piece; the smallest of too many is returned.
    fn keep(&self, pinned: Pinned) -> Option<Pinned> {
        if pinned.bytes > KEPT_BYTES_MAX {
            return Some(pinned);
        }
        let mut free = self.free();
        free.push(pinned);
        let smallest = free.iter().enumerate().min_by_key(|(_, pinned)| pinned.bytes)?.0;
        (free.len() > KEPT_MAX).then(|| free.swap_remove(smallest))
    }

    fn free(&self) -> MutexGuard<'_, Vec<Pinned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes where the device puts them; the memory is free again when this is dropped.
pub struct Landing {
    /// There until then.
    pinned: Option<Pinned>,
    bytes: usize,
    landings: Landings,
}

impl AsRef<[u8]> for Landing {
    fn as_ref(&self) -> &[u8] {
        let pinned = self.pinned.as_ref().expect("it is taken when this is dropped");
        &pinned.as_bytes()[..self.bytes]
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // What is not kept is freed once others may look for theirs.
        drop(self.pinned.take().and_then(|pinned| self.landings.keep(pinned)));
    }
}

/// Pinned memory that the device writes to.
pub struct Download {
    event: Event,
    /// There until it is waited for.
    landing: Option<Landing>,
}

impl Download {
    /// Asks for as many bytes as `landing` is for.
    pub fn begin(stream: &Stream, address: u64, mut landing: Landing) -> Result<Self, Failure> {
        let bytes = landing.bytes;
        let pinned = landing.pinned.as_mut().expect("it is taken when this is dropped");
        let event = Event::new(pinned.memory.device())?;
        let target = &mut pinned.as_mut_bytes()[..bytes];
        if bytes > 0 {
            // SAFETY: the memory is out of reach, and not freed, until the event has come.
            unsafe { result::memcpy_dtoh_async(target, address, stream.raw()) }?;
            stream.mark(&event)?;
        }
        Ok(Self { event, landing: Some(landing) })
    }

    /// Waits for the bytes.
    ///
    /// # Errors
    /// Those of what was asked before.
    pub fn wait(mut self) -> Result<Landing, Failure> {
        self.event.wait()?;
        Ok(self.landing.take().expect("it is taken here only, once"))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // The device writes until then. Where it cannot tell any more, nobody gets the memory again.
        if self.event.wait().is_err() {
            std::mem::forget(self.landing.take());
        }
    }
}

/// Pinned pieces that bytes go to the device through: so they may be dropped at once, and nobody waits for the stream.
pub struct Staging {
    ring: Mutex<Ring>,
}

struct Ring {
    memory: Pinned,
    /// That a piece is free again.
    events: Vec<Event>,
    next: usize,
}

impl Staging {
    /// Pieces that are free.
    pub fn new(device: &Arc<Device>) -> Result<Self, Failure> {
        let memory = Pinned::new(device, PIECES * PIECE_BYTES)?;
        let events = (0..PIECES).map(|_| Event::new(device)).collect::<Result<_, _>>()?;
        Ok(Self { ring: Mutex::new(Ring { memory, events, next: 0 }) })
    }

    /// Copies bytes to an address, in the stream's order.
    pub fn upload(&self, stream: &Stream, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let Ring { memory, events, next } = &mut *ring;
        for (index, source) in bytes.chunks(PIECE_BYTES).enumerate() {
            let event = &events[*next];
            event.wait()?;
            let piece = &mut memory.as_mut_bytes()[*next * PIECE_BYTES..][..source.len()];
            piece.copy_from_slice(source);
            // SAFETY: nobody writes to the piece until its event has come.
            unsafe { result::memcpy_htod_async(address + (index * PIECE_BYTES) as u64, piece, stream.raw()) }?;
            stream.mark(event)?;
            *next = (*next + 1) % PIECES;
        }
        Ok(())
    }
}
