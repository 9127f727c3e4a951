//! Where the sequences of a batch begin, and other whole numbers that kernels read, on the host and where else they are
//! read.

use super::cuda::{Array, Spread};
use super::device::Device;
use super::twins::elsewhere;
use crate::error::Result;
use std::ops::Deref;

/// First token of every sequence, and the total.
pub struct Sequences {
    offsets: Vec<usize>,
    spread: Option<Spread>,
}

impl Sequences {
    /// For a device.
    pub fn new(offsets: Vec<usize>, device: &Device) -> Result<Self> {
        let spread = match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(Spread::new(gpu, &offsets)?),
        };
        Ok(Self { offsets, spread })
    }

    /// The same as a GPU reads it.
    pub(super) fn spread(&self) -> Result<&Spread> {
        self.spread.as_ref().ok_or_else(elsewhere)
    }
}

impl Deref for Sequences {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.offsets
    }
}

/// On the CPU.
impl From<&[usize]> for Sequences {
    fn from(offsets: &[usize]) -> Self {
        Self { offsets: offsets.to_vec(), spread: None }
    }
}

/// Numbers of a table that never change.
pub struct Places {
    places: Vec<u32>,
    placed: Option<Array>,
}

impl Places {
    /// For a device.
    pub fn new(places: Vec<u32>, device: &Device) -> Result<Self> {
        let placed = match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(Array::of_numbers(gpu, &places)?),
        };
        Ok(Self { places, placed })
    }

    /// The same as a GPU reads it.
    pub(super) fn placed(&self) -> Result<&Array> {
        self.placed.as_ref().ok_or_else(elsewhere)
    }
}

impl Deref for Places {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.places
    }
}
