//! A device with its context and pools of memory, and handles that go back to where they came from.
#![expect(unsafe_code, reason = "CUDA is C")]

use super::Failure;
use super::kernels::TOOLKIT;
use super::pool::Pool;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute};
use std::ffi::c_int;
use std::sync::Arc;

/// The oldest driver, as CUDA writes versions: it has every function that is called here, but for those that tell times.
const DRIVER_VERSION_MIN: c_int = 12_000;
const DRIVER_VERSION_OF_TIMES: c_int = 12_080;
/// The oldest compute capability that kernels are compiled for.
const CAPABILITY_MIN: (i32, i32) = (8, 0);
/// The newest for which they are compiled to machine code.
const CAPABILITY_MAX: (i32, i32) = (9, 0);

/// A device, as the process shares it.
pub struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pools: [Pool; 2],
    name: String,
    capability: (i32, i32),
}

// SAFETY: CUDA's handles belong to the process, and its functions may be called from any thread.
unsafe impl Send for Device {}
// SAFETY: as above; nothing in here changes.
unsafe impl Sync for Device {}

impl Device {
    /// Device `ordinal`.
    pub fn open(ordinal: usize) -> Result<Self, Failure> {
        let driver = check_driver()?;
        result::init()?;
        let count = result::device::get_count()?;
        let index = c_int::try_from(ordinal).ok().filter(|index| *index < count);
        let index = index.ok_or_else(|| Failure::Other(format!("there is no GPU {ordinal}: CUDA has {count}")))?;
        let device = result::device::get(index)?;
        let name = result::device::get_name(device)?;
        let capability = (
            attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < CAPABILITY_MIN {
            let (major, minor) = capability;
            return Err(Failure::Other(format!(
                "{name} has compute capability {major}.{minor}; 8.0 is the oldest known"
            )));
        }
        check_toolkit(driver, TOOLKIT, capability).map_err(|failure| failure.of(&name))?;
        // SAFETY: the device is one that CUDA gave.
        let bytes = unsafe { result::device::total_mem(device) }?;
        let pools = [Pool::of(device), Pool::beside(device)];
        let [main, side] = pools.map(|pool| pool.map_err(|failure| failure.of(&name)));
        let pools = [main?, side?];
        // SAFETY: as above; it is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }?;
        let name = format!("{name}, {:.1} GiB", bytes as f64 / f64::from(1 << 30));
        Ok(Self { device, context, pools, name, capability })
    }

    /// Pools for what computes, and for what is brought beside it.
    pub fn pools(&self) -> [Pool; 2] {
        self.pools
    }

    /// What it is called, and its memory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether four warps can multiply together.
    pub fn has_warpgroups(&self) -> bool {
        self.capability == (9, 0)
    }

    /// Of which each runs blocks by itself.
    pub fn multiprocessors(&self) -> Result<usize, Failure> {
        Ok(attribute(self.device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize)
    }

    /// Whether its driver has what [`Event::ms_until`](super::stream::Event::ms_until) calls.
    pub fn can_tell_time(&self) -> bool {
        driver_version().is_ok_and(|version| version >= DRIVER_VERSION_OF_TIMES)
    }

    /// Makes it the one that this thread's calls are for.
    pub fn enter(&self) -> Result<(), Failure> {
        // SAFETY: the context is retained as long as this lives.
        Ok(unsafe { result::ctx::set_current(self.context) }?)
    }

    /// Bytes that may be had, those that pools keep among them, and bytes in all.
    pub fn memory(&self) -> Result<(usize, usize), Failure> {
        let (free, total) = result::mem_get_info()?;
        let unused = self.pools.into_iter().try_fold(0, |bytes, pool| Ok::<_, Failure>(bytes + pool.unused()?))?;
        Ok((free + unused, total))
    }

    /// Gives what pools keep unused back.
    pub fn give_back(&self) -> Result<(), Failure> {
        self.pools.into_iter().try_for_each(Pool::give_back)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.pools[1].destroy();
        // SAFETY: it was retained once; everything made in it holds an `Arc` of this, and is gone.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A handle that belongs to whoever holds this, and is destroyed with it.
pub struct Owned<T: Copy, E = DriverError> {
    raw: T,
    destroy: unsafe fn(T) -> Result<(), E>,
    device: Arc<Device>,
}

// SAFETY: CUDA's and cuBLASLt's handles belong to the process, and may be used and destroyed on any thread.
unsafe impl<T: Copy, E> Send for Owned<T, E> {}
// SAFETY: as above; this hands out copies of the handle only.
unsafe impl<T: Copy, E> Sync for Owned<T, E> {}

impl<T: Copy, E> Owned<T, E> {
    /// Takes over a handle that nobody else destroys.
    pub fn new(device: &Arc<Device>, raw: T, destroy: unsafe fn(T) -> Result<(), E>) -> Self {
        Self { raw, destroy, device: Arc::clone(device) }
    }

    /// The handle, which lives as long as this.
    pub fn raw(&self) -> T {
        self.raw
    }

    /// Where it is from.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl<T: Copy, E> Drop for Owned<T, E> {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: the handle is destroyed nowhere else.
            let _ = unsafe { (self.destroy)(self.raw) };
        }
    }
}

/// The driver's release, if it is there and has all its functions: cudarc panics where one is missing.
fn check_driver() -> Result<(i32, i32), Failure> {
    // SAFETY: opens libraries by their names, and closes them.
    if !unsafe { sys::is_culib_present() } {
        return Err(Failure::Other("there is no CUDA driver: libcuda.so.1 cannot be opened".into()));
    }
    let version = driver_version()?;
    let (major, minor) = release(version);
    if version < DRIVER_VERSION_MIN {
        return Err(Failure::Other(format!("the driver is of CUDA {major}.{minor}; 12.0 is the oldest known")));
    }
    Ok((major, minor))
}

/// Major and minor version of CUDA.
fn release(version: c_int) -> (i32, i32) {
    (version / 1000, version % 1000 / 10)
}

/// That a driver reads what a toolkit has compiled: machine code, if it is of the same major version of CUDA or newer; and for
/// devices that have to compile their own, if it is as new.
fn check_toolkit(driver: (i32, i32), toolkit: (i32, i32), capability: (i32, i32)) -> Result<(), Failure> {
    let oldest = if capability > CAPABILITY_MAX { toolkit } else { (toolkit.0, 0) };
    if driver >= oldest {
        return Ok(());
    }
    let [driver, toolkit, oldest] = [driver, toolkit, oldest].map(|(major, minor)| format!("{major}.{minor}"));
    Err(Failure::Other(format!(
        "the driver is of CUDA {driver}, and this build of CUDA {toolkit}: it takes a driver of CUDA {oldest} or newer, or \
         else a build by a toolkit no newer than the driver"
    )))
}

fn driver_version() -> Result<c_int, Failure> {
    let mut version = 0;
    // SAFETY: writes to the one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

fn attribute(device: sys::CUdevice, attribute: CUdevice_attribute) -> Result<i32, Failure> {
    // SAFETY: the device is one that CUDA gave.
    Ok(unsafe { result::device::get_attribute(device, attribute) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_reads_what_its_own_major_version_of_cuda_compiles_and_what_is_older() {
        let is_good = |version, toolkit, capability| check_toolkit(release(version), toolkit, capability).is_ok();
        for (version, toolkit) in [(12_000, (12, 8)), (12_080, (12, 8)), (13_000, (12, 8)), (13_010, (13, 0))] {
            assert!(is_good(version, toolkit, (8, 9)), "{version} {toolkit:?}");
        }
        // Newer than any that there is machine code for.
        assert!(is_good(12_080, (12, 8), (12, 0)) && !is_good(12_080, (12, 9), (12, 0)));
        let told = check_toolkit((12, 4), (13, 0), (9, 0)).unwrap_err().to_string();
        assert!(told.contains("of CUDA 12.4, and this build of CUDA 13.0: it takes a driver of CUDA 13.0"), "{told}");
    }
}
