//! Host memory that a device reaches by itself, and copies through it.
#![expect(unsafe_code, reason = "CUDA is C")]

use super::Failure;
use super::device::{Device, Owned};
use super::stream::{Event, Stream};
use cudarc::driver::result;
use std::ffi::c_void;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

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

    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: there are so many, all written, and the device writes to none while this is not in a `Download`.
        unsafe { slice::from_raw_parts(self.memory.raw().cast(), self.bytes) }
    }

    /// Its bytes, to write.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.memory.raw().cast(), self.bytes) }
    }
}

/// Pinned memory that the device writes to.
pub struct Download {
    event: Event,
    /// There until it is waited for.
    pinned: Option<Pinned>,
}

impl Download {
    /// Asks for the first `bytes` of `pinned`.
    pub fn begin(stream: &Stream, address: u64, bytes: usize, mut pinned: Pinned) -> Result<Self, Failure> {
        let event = Event::new(pinned.memory.device())?;
        let room = pinned.bytes;
        let Some(target) = pinned.as_mut_bytes().get_mut(..bytes) else {
            return Err(Failure::Other(format!("{bytes} bytes do not fit in {room}")));
        };
        if bytes > 0 {
            // SAFETY: the memory is out of reach, and not freed, until the event has come.
            unsafe { result::memcpy_dtoh_async(target, address, stream.raw()) }?;
            stream.mark(&event)?;
        }
        Ok(Self { event, pinned: Some(pinned) })
    }

    /// Waits for the bytes.
    ///
    /// # Errors
    /// Those of what was asked before.
    pub fn wait(mut self) -> Result<Pinned, Failure> {
        self.event.wait()?;
        Ok(self.pinned.take().expect("it is taken here only, once"))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // The device writes until then. If it cannot tell any more, it does not write any more.
        let _ = self.event.wait();
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
