//! CUDA's driver and cuBLASLt, opened at run time: one device, and a stream a lane, on which everything happens in the
//! order of asking. Addresses, and what kernels are given, are taken at their word.
#![expect(unsafe_code, reason = "CUDA is C")]

mod device;
mod graph;
mod host;
mod kernels;
mod matmul;
mod multiplier;
mod pool;
mod stream;
mod timeline;

use super::command::{Argument, Command};
use super::gpu::{self, Arrival, Backend, Bytes};
use crate::error::{Error, Result};
use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::cublasStatus_t;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUresult;
use device::Device;
use graph::Graph;
use host::{Download, Landings, Staging};
use kernels::Kernels;
use multiplier::Multiplier;
use pool::Pool;
use std::ffi::c_void;
use std::sync::Arc;
use stream::Stream;
use timeline::Timeline;

/// Why CUDA did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is not so much memory; less may do.
    #[error("out of GPU memory")]
    OutOfMemory,
    /// Nothing can be done with the device any more.
    #[error("{0}")]
    Lost(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A device with its kernels, its streams and a workspace for products.
pub struct Driver {
    kernels: Kernels,
    multiplier: Multiplier,
    landings: Landings,
    timeline: Option<Timeline>,
    main: Lane,
    side: Lane,
    /// Multiprocessors, if there are kernels for warpgroups.
    warpgroups: Option<usize>,
    device: Arc<Device>,
}

/// A stream, where its memory is from, and what bytes go to it through.
struct Lane {
    staging: Staging,
    stream: Arc<Stream>,
}

impl Lane {
    fn new(device: &Arc<Device>, pool: Pool) -> Result<Self> {
        Ok(Self { staging: Staging::new(device)?, stream: Arc::new(Stream::new(device, pool)?) })
    }
}

impl Driver {
    /// Device `ordinal`, as CUDA counts them.
    ///
    /// # Errors
    /// Without CUDA's driver or cuBLASLt, without such a device, and with one older than compute capability 8.0.
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = Arc::new(Device::open(ordinal)?);
        device.enter()?;
        let [main, side] = device.pools().map(|pool| Lane::new(&device, pool));
        let (main, side) = (main?, side?);
        let multiplier = Multiplier::new(&device)?;
        let kernels = Kernels::load(&device)?;
        let warpgroups = device.has_warpgroups().then(|| device.multiprocessors()).transpose()?;
        let (landings, timeline) = (Landings::default(), Timeline::new(&device));
        Ok(Self { kernels, multiplier, landings, timeline, main, side, warpgroups, device })
    }

    fn lane(&self, lane: gpu::Lane) -> &Lane {
        match lane {
            gpu::Lane::Main => &self.main,
            gpu::Lane::Side => &self.side,
        }
    }

    /// Asks a stream for something.
    fn ask(&self, stream: &Stream, command: &Command) -> std::result::Result<(), Failure> {
        let (kernel, [x, y, z], [block, shared], arguments) = match command {
            Command::Multiply(matmul) => return self.multiplier.run(stream, matmul),
            Command::Launch { kernel, grid, block, shared, arguments } => (kernel, *grid, [*block, *shared], arguments),
        };
        let function = self.kernels.find(kernel, shared)?;
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        // SAFETY: these are what the kernel takes, see [`Launch`](super::launch::Launch); they are copied before the call
        // returns.
        let launched =
            unsafe { result::launch_kernel(function, (x, y, z), (block, 1, 1), shared, stream.raw(), &mut pointers) };
        launched.map_err(|error| Failure::from(error).of(kernel))
    }
}

impl Backend for Driver {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn allocate(&self, lane: gpu::Lane, bytes: usize) -> Result<u64> {
        if bytes == 0 {
            return Ok(0);
        }
        let stream = &self.lane(lane).stream;
        let allocated = self.device.enter().and_then(|()| match stream.allocate(bytes) {
            // What was freed lies about in pieces until it is given back.
            Err(Failure::OutOfMemory) => {
                self.main.stream.synchronize()?;
                self.device.give_back()?;
                stream.allocate(bytes)
            }
            allocated => allocated,
        });
        allocated.map_err(|failure| match failure {
            Failure::OutOfMemory => Error::OutOfMemory(bytes),
            other => other.into(),
        })
    }

    fn free(&self, lane: gpu::Lane, address: u64) {
        // A device that cannot free is broken, and says so at the next call that can tell.
        if address == 0 || self.device.enter().is_err() {
            return;
        }
        // Bytes may be on their way there, if who brought them gave up.
        if lane == gpu::Lane::Main || self.main.stream.follow(&self.device, &self.side.stream).is_ok() {
            self.main.stream.free(address);
        }
    }

    fn upload(&self, lane: gpu::Lane, address: u64, bytes: &[u8]) -> Result<()> {
        self.device.enter()?;
        let Lane { staging, stream } = self.lane(lane);
        Ok(staging.upload(stream, address, bytes)?)
    }

    fn download(&self, address: u64, bytes: usize) -> Result<Box<dyn Arrival>> {
        self.device.enter()?;
        let landing = self.landings.find(&self.device, bytes)?;
        Ok(Box::new(Download::begin(&self.main.stream, address, landing)?))
    }

    fn run(&self, command: &Command) -> Result<()> {
        self.device.enter()?;
        let stream = &self.main.stream;
        let ask = || self.ask(stream, command);
        let asked = match &self.timeline {
            Some(timeline) => timeline.time(&self.device, stream, command, ask),
            None => ask(),
        };
        Ok(asked?)
    }

    fn capture(&self, commands: &[Command]) -> Result<Box<dyn gpu::Graph>> {
        self.device.enter()?;
        let ask = |stream: &Stream| commands.iter().try_for_each(|command| self.ask(stream, command));
        Ok(Box::new(Graph::new(&self.device, &self.main.stream, ask)?))
    }

    fn synchronize(&self, lane: gpu::Lane) -> Result<()> {
        self.device.enter()?;
        Ok(self.lane(lane).stream.synchronize()?)
    }

    fn warpgroups(&self) -> Option<usize> {
        self.warpgroups
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.device.enter()?;
        Ok(self.device.memory()?)
    }
}

impl Arrival for Download {
    fn wait(self: Box<Self>) -> Result<Bytes> {
        Ok(Box::new(Self::wait(*self)?))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            // Of the host's memory, or a library's.
            Failure::OutOfMemory => Self::Internal(failure.to_string()),
            Failure::Lost(text) => Self::Lost(text),
            Failure::Other(text) => Self::Internal(text),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Kernels and workspace must not go while they are in use; whatever went wrong has nobody left to hear of it.
        let streams = [&self.main.stream, &self.side.stream];
        let _ = self.device.enter().and_then(|()| streams.into_iter().try_for_each(|stream| stream.synchronize()));
    }
}

impl Failure {
    /// The same, with what it is about.
    fn of(self, what: &str) -> Self {
        match self {
            Self::OutOfMemory => Self::OutOfMemory,
            Self::Lost(text) => Self::Lost(format!("{what}: {text}")),
            Self::Other(text) => Self::Other(format!("{what}: {text}")),
        }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Self::OutOfMemory,
            code => {
                let text = error.error_string().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
                let text = format!("{text} ({code:?})");
                if is_final(code) { Self::Lost(text) } else { Self::Other(text) }
            }
        }
    }
}

/// Whether every later call gives the same error.
fn is_final(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
    )
}

impl From<CublasError> for Failure {
    fn from(error: CublasError) -> Self {
        match error.0 {
            cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Self::OutOfMemory,
            code => Self::Other(format!("{code:?}")),
        }
    }
}
