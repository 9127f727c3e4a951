//! The kernels that were compiled into this program, by their names.
#![expect(unsafe_code, reason = "CUDA is C")]

use super::Failure;
use super::device::{Device, Owned};
use cudarc::driver::result::{DriverError, function, module};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule, CUresult};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// What blocks may share without being allowed more.
const SHARED_BYTES: u32 = 48 << 10;
/// What blocks may share at all, where warpgroups multiply.
const SHARED_BYTES_MAX: i32 = 227 << 10;

/// Kernels of a device.
pub struct Kernels {
    modules: Vec<Owned<CUmodule>>,
    found: Mutex<HashMap<String, CUfunction>>,
}

// SAFETY: CUDA's handles belong to the process, and may be used on any thread.
unsafe impl Send for Kernels {}
// SAFETY: as above; the map has a lock.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// All that the device knows.
    pub fn load(device: &Arc<Device>) -> Result<Self, Failure> {
        let is_known = |(_, is_of_warpgroups, _): &&(&str, bool, &[u8])| !is_of_warpgroups || device.has_warpgroups();
        let load = |&(name, _, bytes): &(&str, bool, &[u8])| {
            // Headers are read as integers, which included bytes need not be aligned for.
            let words: Vec<u64> = bytes.chunks(8).map(word).collect();
            // SAFETY: a whole fatbin as nvcc wrote it, of which CUDA keeps a copy.
            let raw = unsafe { module::load_data(words.as_ptr().cast()) };
            let raw = raw.map_err(|error| Failure::from(error).of(&format!("kernels '{name}'")))?;
            Ok(Owned::new(device, raw, module::unload))
        };
        let modules = FATBINS.iter().filter(is_known).map(load).collect::<Result<_, Failure>>()?;
        Ok(Self { modules, found: Mutex::default() })
    }

    /// The kernel of that name, which lives as long as this, for blocks that share so many bytes beside those that it names.
    pub fn find(&self, name: &str, shared: u32) -> Result<CUfunction, Failure> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = found.get(name) {
            return Ok(*function);
        }
        let symbol = CString::new(name).map_err(|error| Failure::Other(error.to_string()))?;
        for module in &self.modules {
            // SAFETY: the module is loaded.
            match unsafe { module::get_function(module.raw(), symbol.clone()) } {
                Ok(function) => {
                    if shared > SHARED_BYTES {
                        allow_sharing(function).map_err(|error| Failure::from(error).of(name))?;
                    }
                    found.insert(name.to_owned(), function);
                    return Ok(function);
                }
                Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => {}
                Err(error) => return Err(Failure::from(error).of(name)),
            }
        }
        Err(Failure::Other(format!("there is no kernel '{name}'")))
    }
}

/// Lets blocks share all there is, whatever the first launch takes.
fn allow_sharing(function: CUfunction) -> Result<(), DriverError> {
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function is of a loaded module.
    unsafe { function::set_function_attribute(function, attribute, SHARED_BYTES_MAX) }
}

/// Up to eight bytes as they lie in memory, and zeros.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lie_in_memory_as_their_bytes() {
        let words: Vec<u64> = [1, 2, 3, 4, 5, 6, 7, 8, 9_u8].chunks(8).map(word).collect();
        assert_eq!(words[0].to_ne_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(words[1].to_ne_bytes(), [9, 0, 0, 0, 0, 0, 0, 0]);
    }
}
