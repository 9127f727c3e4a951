//! CUDA's driver and cuBLASLt, opened at run time: one device, and one stream on which everything happens in the
//! order of asking. Addresses, and what kernels are given, are taken at their word.
#![expect(unsafe_code, reason = "CUDA is C")]

mod device;
mod host;
mod kernels;
mod matmul;
mod multiplier;
mod stream;

pub use host::{Download, Pinned};
pub use matmul::{Activation, Element, Matmul, Operand};
pub use stream::Event;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::cublasStatus_t;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUresult;
use device::Device;
use host::Staging;
use kernels::Kernels;
use multiplier::Multiplier;
use std::ffi::c_void;
use std::sync::Arc;
use stream::Stream;

/// Why CUDA did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is not so much memory; less may do.
    #[error("out of GPU memory")]
    OutOfMemory,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A device with its kernels, its stream and a workspace for products.
pub struct Driver {
    kernels: Kernels,
    multiplier: Multiplier,
    staging: Staging,
    stream: Stream,
    device: Arc<Device>,
}

impl Driver {
    /// Device `ordinal`, as CUDA counts them.
    ///
    /// # Errors
    /// Without CUDA's driver or cuBLASLt, without such a device, and with one older than compute capability 8.0.
    pub fn open(ordinal: usize) -> Result<Self, Failure> {
        let device = Arc::new(Device::open(ordinal)?);
        device.enter()?;
        let stream = Stream::new(&device)?;
        let staging = Staging::new(&device)?;
        let multiplier = Multiplier::new(&device)?;
        let kernels = Kernels::load(&device)?;
        Ok(Self { kernels, multiplier, staging, stream, device })
    }

    /// What the device is called, and its memory.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Bytes that may be had, and bytes in all. What was freed may be had again, though the device keeps it.
    ///
    /// # Errors
    /// CUDA's.
    pub fn memory(&self) -> Result<(usize, usize), Failure> {
        self.device.enter()?;
        self.device.memory()
    }

    /// Address of so many bytes, a multiple of 256; nothing is at the address of no bytes.
    ///
    /// # Errors
    /// [`Failure::OutOfMemory`] where there is not so much, and CUDA's.
    pub fn allocate(&self, bytes: usize) -> Result<u64, Failure> {
        if bytes == 0 {
            return Ok(0);
        }
        self.device.enter()?;
        match self.stream.allocate(bytes) {
            // What was freed lies about in pieces until it is given back.
            Err(Failure::OutOfMemory) => {
                self.stream.synchronize()?;
                self.device.give_back()?;
                self.stream.allocate(bytes)
            }
            allocated => allocated,
        }
    }

    /// Frees what [`Driver::allocate`] gave, once what was asked before is done.
    pub fn free(&self, address: u64) {
        // A device that cannot free is broken, and says so at the next call that can tell.
        if address != 0 && self.device.enter().is_ok() {
            self.stream.free(address);
        }
    }

    /// Copies bytes to the device; they need not outlive the call.
    ///
    /// # Errors
    /// CUDA's.
    pub fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.device.enter()?;
        self.staging.upload(&self.stream, address, bytes)
    }

    /// Copies bytes from the device, and waits for them.
    ///
    /// # Errors
    /// CUDA's, those of what was asked before among them.
    pub fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.device.enter()?;
        // SAFETY: the bytes are borrowed until the copy is done, or known to fail.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, address, self.stream.raw()) };
        self.stream.synchronize()?;
        Ok(copied?)
    }

    /// Host memory that the device copies to by itself.
    ///
    /// # Errors
    /// [`Failure::OutOfMemory`] of the host, and CUDA's.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, Failure> {
        self.device.enter()?;
        Pinned::new(&self.device, bytes)
    }

    /// Asks for the first `bytes` of `pinned` to be copied from the device, and does not wait.
    ///
    /// # Errors
    /// Where there is no room for so many, and CUDA's.
    pub fn download_later(&self, address: u64, bytes: usize, pinned: Pinned) -> Result<Download, Failure> {
        self.device.enter()?;
        Download::begin(&self.stream, address, bytes, pinned)
    }

    /// Runs a kernel by its name in `grid` blocks of `block` threads; `arguments` point at what it takes, in order. A
    /// grid of no blocks has nothing to do.
    ///
    /// # Errors
    /// Where there is no such kernel, and CUDA's; a kernel's own errors come with a later call.
    pub fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<(), Failure> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.device.enter()?;
        let function = self.kernels.find(kernel)?;
        let [x, y, z] = grid;
        // SAFETY: the caller points at one value for each parameter; they are copied before the call returns.
        unsafe { result::launch_kernel(function, (x, y, z), (block, 1, 1), 0, self.stream.raw(), arguments) }
            .map_err(|error| Failure::from(error).of(kernel))
    }

    /// Multiplies; see [`Matmul`].
    ///
    /// # Errors
    /// cuBLASLt's, with the shape at fault.
    pub fn matmul(&self, matmul: &Matmul) -> Result<(), Failure> {
        self.device.enter()?;
        self.multiplier.run(&self.stream, matmul)
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// Those of what was asked.
    pub fn synchronize(&self) -> Result<(), Failure> {
        self.device.enter()?;
        self.stream.synchronize()
    }

    /// An event that comes when all that was asked is done. See [`Event::microseconds_since`].
    ///
    /// # Errors
    /// CUDA's.
    pub fn record(&self) -> Result<Event, Failure> {
        self.device.enter()?;
        let event = Event::timed(&self.device)?;
        self.stream.mark(&event)?;
        Ok(event)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Kernels and workspace must not go while they are in use; whatever went wrong has nobody left to hear of it.
        let _ = self.synchronize();
    }
}

impl Failure {
    /// The same, with what it is about.
    fn of(self, what: &str) -> Self {
        match self {
            Self::OutOfMemory => Self::OutOfMemory,
            Self::Other(text) => Self::Other(format!("{what}: {text}")),
        }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Self::OutOfMemory,
            code => match error.error_string() {
                Ok(text) => Self::Other(format!("{} ({code:?})", text.to_string_lossy())),
                Err(_) => Self::Other(format!("{code:?}")),
            },
        }
    }
}

impl From<CublasError> for Failure {
    fn from(error: CublasError) -> Self {
        match error.0 {
            cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Self::OutOfMemory,
            code => Self::Other(format!("{code:?}")),
        }
    }
}
