//! A device with its memory, whatever stands behind it.

use super::command::Command;
use super::pass::Passes;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One of a device's two orders of work. What is asked on one waits for nothing that was asked on the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Lane {
    /// All that computes.
    Main,
    /// What is brought while it computes. Who brings it waits for it, see [`Gpu::synchronize`], before the other reads it.
    Side,
}

/// What stands behind a device. Whatever is asked of one happens in the order of asking, on each lane; nothing but
/// [`Arrival::wait`] and [`Backend::synchronize`] waits for it. Where no lane is named it is the main one.
pub(super) trait Backend: Send + Sync {
    /// Which device it is, for logs.
    fn name(&self) -> &str;

    /// Address of so much memory, for any element aligned, from now on on this lane. Where there is not so much:
    /// [`Error::OutOfMemory`].
    ///
    /// [`Error::OutOfMemory`]: crate::error::Error::OutOfMemory
    fn allocate(&self, lane: Lane, bytes: usize) -> Result<u64>;

    /// Gives back what [`Backend::allocate`] gave on this lane, once what was asked before is done, there and on the main
    /// one.
    fn free(&self, lane: Lane, address: u64);

    /// Bytes to the device, which need not stay.
    fn upload(&self, lane: Lane, address: u64, bytes: &[u8]) -> Result<()>;

    /// So many bytes from the device, once what was asked before is done.
    fn download(&self, address: u64, bytes: usize) -> Result<Box<dyn Arrival>>;

    /// Computes something.
    fn run(&self, command: &Command) -> Result<()>;

    /// What computes all of these, in their order. Nothing is computed yet.
    fn capture(&self, commands: &[Command]) -> Result<Box<dyn Graph>>;

    /// Waits for all that was asked on a lane.
    fn synchronize(&self, lane: Lane) -> Result<()>;

    /// Whether kernels run on the host.
    fn is_emulated(&self) -> bool {
        false
    }

    /// Its multiprocessors, where four warps of one can multiply together (compute capability 9.0).
    fn warpgroups(&self) -> Option<usize> {
        None
    }

    /// Bytes that are free, and all there are.
    fn memory(&self) -> Result<(usize, usize)>;
}

/// Commands that a device takes at once.
pub(super) trait Graph: Send {
    /// Computes all of it.
    fn launch(&self) -> Result<()>;
}

/// Bytes on their way from a device.
pub trait Arrival: Send {
    /// Waits for them.
    ///
    /// # Errors
    /// Those of what was asked before.
    fn wait(self: Box<Self>) -> Result<Bytes>;
}

/// Bytes that have come from a device, in whatever memory they came to.
pub type Bytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// A device; clones are the same one.
#[derive(Clone)]
pub struct Gpu {
    passes: Arc<Passes>,
    usage: Arc<Usage>,
    is_of_warps: bool,
    lane: Lane,
}

/// Bytes of ours on a device.
#[derive(Default)]
struct Usage {
    now: AtomicUsize,
    /// The most at once since somebody began to watch.
    most: AtomicUsize,
}

impl Gpu {
    /// Whether this build has CUDA.
    pub const BUILT: bool = cfg!(feature = "cuda");

    /// A GPU of CUDA's, by its number.
    ///
    /// # Errors
    /// Where there is none of that number, nothing to drive it, or no CUDA in this build.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there is none of any number"))]
    pub fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self::new(super::driver::Driver::open(ordinal)?));
        #[cfg(not(feature = "cuda"))]
        Err(Error::Config("this build has no CUDA support".into()))
    }

    /// The kernels on the host, in so many MiB of memory.
    ///
    /// # Errors
    /// In a build without them.
    #[cfg_attr(not(feature = "emulated"), expect(unused_variables, reason = "there is none of any size"))]
    pub fn emulated(mebibytes: usize) -> Result<Self> {
        #[cfg(feature = "emulated")]
        return Ok(Self::new(super::emulated::Emulated::new(mebibytes << 20)));
        #[cfg(not(feature = "emulated"))]
        Err(Error::Config("this build has no emulated kernels".into()))
    }

    #[cfg_attr(not(any(feature = "cuda", feature = "emulated")), expect(dead_code, reason = "there is no device"))]
    pub(super) fn new(backend: impl Backend + 'static) -> Self {
        let passes = Arc::new(Passes::new(Box::new(backend)));
        Self { passes, usage: Arc::default(), is_of_warps: false, lane: Lane::Main }
    }

    /// The same device, of which nothing is asked that others do not have: no products of four warps together.
    pub fn of_warps(self) -> Self {
        Self { is_of_warps: true, ..self }
    }

    /// The same device for who brings it something while it computes.
    pub fn beside(&self) -> Self {
        Self { lane: Lane::Side, ..self.clone() }
    }

    fn main(&self) -> Self {
        Self { lane: Lane::Main, ..self.clone() }
    }

    fn backend(&self) -> &dyn Backend {
        self.passes.backend()
    }

    /// Which device it is, for logs.
    pub fn name(&self) -> &str {
        self.backend().name()
    }

    /// Whether its kernels run on the host.
    pub fn is_emulated(&self) -> bool {
        self.backend().is_emulated()
    }

    /// Its multiprocessors, where four warps of one can multiply together.
    pub(super) fn warpgroups(&self) -> Option<usize> {
        self.backend().warpgroups().filter(|_| !self.is_of_warps)
    }

    /// Waits for all that was asked, but for what was asked [beside](Self::beside).
    pub fn synchronize(&self) -> Result<()> {
        if self.lane == Lane::Main {
            self.passes.send()?;
        }
        self.backend().synchronize(self.lane)
    }

    /// Bytes that are free, and all there are.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.backend().memory()
    }

    /// What `run` gives, and the most bytes that it had at once.
    pub fn watch<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<(T, usize)> {
        let before = self.usage.now.load(Ordering::Relaxed);
        self.usage.most.store(before, Ordering::Relaxed);
        let made = run()?;
        Ok((made, self.usage.most.load(Ordering::Relaxed) - before))
    }

    /// What `run` gives, which asks for what is fast to compute and slow to ask for. The device is asked when something of
    /// it is to come to the host, or in the end, and is fast if it was asked for the very same before.
    ///
    /// # Errors
    /// Those of `run`, and of what it asks for.
    pub fn pass<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = self.passes.begin();
        let made = run()?;
        if begun.is_some() {
            self.passes.send()?;
        }
        Ok(made)
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<Memory> {
        let piece = if self.lane == Lane::Main { self.passes.allocate(bytes)? } else { None };
        let address = piece.map_or_else(|| self.backend().allocate(self.lane, bytes), Ok)?;
        Ok(self.memory_at(address, bytes))
    }

    /// Memory with these bytes in it.
    pub(super) fn bring(&self, bytes: &[u8]) -> Result<Memory> {
        let piece = if self.lane == Lane::Main { self.passes.stage(bytes)? } else { None };
        if let Some(address) = piece {
            return Ok(self.memory_at(address, bytes.len()));
        }
        let memory = self.allocate(bytes.len())?;
        self.backend().upload(self.lane, memory.address, bytes)?;
        Ok(memory)
    }

    fn memory_at(&self, address: u64, bytes: usize) -> Memory {
        let now = self.usage.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.usage.most.fetch_max(now, Ordering::Relaxed);
        Memory { address, bytes, lane: self.lane, gpu: self.main() }
    }

    pub(super) fn download(&self, address: u64, bytes: usize) -> Result<Box<dyn Arrival>> {
        self.passes.send()?;
        self.backend().download(address, bytes)
    }

    pub(super) fn run(&self, command: Command) -> Result<()> {
        self.passes.run(command)
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Memory of a device, given back when dropped.
pub(super) struct Memory {
    pub address: u64,
    bytes: usize,
    lane: Lane,
    /// Its main lane, on which everything reads it.
    pub gpu: Gpu,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.gpu.usage.now.fetch_sub(self.bytes, Ordering::Relaxed);
        self.gpu.passes.free(self.lane, self.address, self.bytes);
    }
}
