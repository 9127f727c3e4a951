//! Where a stream's memory comes from and goes back to.
#![expect(unsafe_code, reason = "CUDA is C")]

use super::Failure;
use cudarc::driver::result::{self, mem_pool};
use cudarc::driver::sys::{self, CUmemPool_attribute as Attribute};

/// A pool of a device's memory, which keeps what is freed.
#[derive(Clone, Copy)]
pub struct Pool(sys::CUmemoryPool);

// SAFETY: CUDA's handles belong to the process, and its functions may be called from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above; nothing in here changes.
unsafe impl Sync for Pool {}

impl Pool {
    /// The device's own.
    pub fn of(device: sys::CUdevice) -> Result<Self, Failure> {
        // SAFETY: the device is one that CUDA gave.
        Self(unsafe { result::device::get_default_mem_pool(device) }?).keeping()
    }

    /// One more, to be [destroyed](Self::destroy), that never lets an allocation wait until another stream gives back what it has freed.
    pub fn beside(device: sys::CUdevice) -> Result<Self, Failure> {
        let properties = sys::CUmemPoolProps {
            allocType: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            handleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device },
            win32SecurityAttributes: std::ptr::null_mut(),
            maxSize: 0,
            usage: 0,
            reserved: [0; 54],
        };
        // SAFETY: the properties are whole, and read before the call returns.
        let pool = Self(unsafe { mem_pool::create(&raw const properties) }?);
        let mut waits = 0_i32;
        let attribute = Attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
        // SAFETY: the attribute is an int.
        unsafe { mem_pool::set_attribute(pool.0, attribute, (&raw mut waits).cast()) }?;
        pool.keeping()
    }

    /// By default every wait would give back what is freed.
    fn keeping(self) -> Result<Self, Failure> {
        let mut bytes = u64::MAX;
        // SAFETY: the attribute is a u64.
        unsafe {
            mem_pool::set_attribute(self.0, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut bytes).cast())
        }?;
        Ok(self)
    }

    /// The handle.
    pub fn raw(self) -> sys::CUmemoryPool {
        self.0
    }

    /// Bytes that it keeps and nobody uses.
    pub fn unused(self) -> Result<usize, Failure> {
        let reserved = self.bytes(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        Ok(reserved.saturating_sub(self.bytes(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?))
    }

    /// Gives them back.
    pub fn give_back(self) -> Result<(), Failure> {
        // SAFETY: the pool lives.
        Ok(unsafe { mem_pool::trim_to(self.0, 0) }?)
    }

    /// Ends it. All of its memory must have been freed.
    pub fn destroy(self) {
        // SAFETY: the device that made it is gone, and so is everything made with it.
        let _ = unsafe { mem_pool::destroy(self.0) };
    }

    fn bytes(self, attribute: Attribute) -> Result<usize, Failure> {
        let mut bytes = 0_u64;
        // SAFETY: the attributes asked for are u64.
        unsafe { mem_pool::get_attribute(self.0, attribute, (&raw mut bytes).cast()) }?;
        Ok(bytes as usize)
    }
}
