//! A device with its memory, whatever stands behind it.

use super::launch::Argument;
use crate::error::{Error, Result};
use candle_core::DType;
use std::sync::Arc;

/// What stands behind a device. Whatever is asked of one happens in the order of asking; nothing but [`Backend::download`]
/// waits for it.
pub(super) trait Backend: Send + Sync {
    /// Which device it is, for logs.
    fn name(&self) -> &str;

    /// Address of so much memory, for any element aligned. Where there is not so much: [`Error::OutOfMemory`].
    ///
    /// [`Error::OutOfMemory`]: crate::error::Error::OutOfMemory
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives back what [`Backend::allocate`] gave, once what was asked before is done.
    fn free(&self, address: u64);

    /// Bytes to the device, which need not stay.
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()>;

    /// Bytes from the device, once what was asked before is done.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;

    /// Runs a kernel by its name.
    fn launch(&self, kernel: &str, grid: [u32; 3], block: u32, arguments: &[Argument]) -> Result<()>;

    /// Multiplies.
    fn multiply(&self, product: &Multiplication) -> Result<()>;

    /// Waits for all that was asked.
    fn synchronize(&self) -> Result<()>;

    /// Whether kernels run on the host.
    fn is_emulated(&self) -> bool {
        false
    }

    /// Bytes that are free, and all there are.
    fn memory(&self) -> Result<(usize, usize)>;
}

/// `y [rows, outputs] = x [rows, inputs] w + bias`, or `y += x w`, by addresses; rows lie so many elements apart.
pub(super) struct Multiplication {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// Of `x` and `w`.
    pub dtype: DType,
    /// Of `y` and the bias: the same or f32.
    pub dtype_out: DType,
    /// Address and stride.
    pub x: (u64, usize),
    /// Address and stride of `w [outputs, inputs]`, or of `w [inputs, outputs]` where it is not transposed.
    pub w: (u64, usize),
    pub is_transposed: bool,
    /// Address and stride.
    pub y: (u64, usize),
    pub bias: Option<u64>,
    pub accumulate: bool,
}

/// A device; clones are the same one.
#[derive(Clone)]
pub struct Gpu {
    backend: Arc<dyn Backend>,
}

impl Gpu {
    /// Whether this build has CUDA.
    pub const BUILT: bool = cfg!(feature = "cuda");

    /// A GPU of CUDA's, by its number.
    ///
    /// # Errors
    /// Where there is none of that number, nothing to drive it, or no CUDA in this build.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self::new(super::driver::Driver::open(ordinal)?));
        #[cfg(not(feature = "cuda"))]
        Err(Error::Config(format!("this build has no CUDA support, and no GPU {ordinal}")))
    }

    /// The kernels on the host.
    ///
    /// # Errors
    /// In a build without them.
    pub fn emulated() -> Result<Self> {
        #[cfg(feature = "emulated")]
        return Ok(Self::new(super::emulated::Emulated::default()));
        #[cfg(not(feature = "emulated"))]
        Err(Error::Config("this build has no emulated kernels".into()))
    }

    #[cfg_attr(not(any(feature = "cuda", feature = "emulated")), expect(dead_code, reason = "there is no device"))]
    fn new(backend: impl Backend + 'static) -> Self {
        Self { backend: Arc::new(backend) }
    }

    /// Whether both are one device.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.backend, &other.backend)
    }

    /// Which device it is, for logs.
    pub fn name(&self) -> &str {
        self.backend.name()
    }

    /// Whether its kernels run on the host.
    pub fn is_emulated(&self) -> bool {
        self.backend.is_emulated()
    }

    /// Waits for all that was asked.
    pub fn synchronize(&self) -> Result<()> {
        self.backend.synchronize()
    }

    /// Bytes that are free, and all there are.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.backend.memory()
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<Memory> {
        Ok(Memory { address: self.backend.allocate(bytes)?, gpu: self.clone() })
    }

    pub(super) fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.backend.upload(address, bytes)
    }

    pub(super) fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.backend.download(address, bytes)
    }

    pub(super) fn launch(&self, kernel: &str, grid: [u32; 3], block: u32, arguments: &[Argument]) -> Result<()> {
        self.backend.launch(kernel, grid, block, arguments)
    }

    pub(super) fn multiply(&self, product: &Multiplication) -> Result<()> {
        self.backend.multiply(product)
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
    pub gpu: Gpu,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.gpu.backend.free(self.address);
    }
}
