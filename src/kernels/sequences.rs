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
    are_gradual: bool,
}

impl Places {
    /// For a device.
    pub fn new(places: Vec<u32>, device: &Device) -> Result<Self> {
        let placed = match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(Array::of_numbers(gpu, &places)?),
        };
        let are_gradual = places.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1);
        Ok(Self { places, placed, are_gradual })
    }

    /// The same as a GPU reads it.
    pub(super) fn placed(&self) -> Result<&Array> {
        self.placed.as_ref().ok_or_else(elsewhere)
    }

    /// Whether each is the one before or the next after it.
    pub(super) fn are_gradual(&self) -> bool {
        self.are_gradual
    }
}

impl Deref for Places {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradual_places_neither_fall_nor_leap() {
        let are_gradual = |places: &[u32]| Places::new(places.to_vec(), &Device::Cpu).unwrap().are_gradual();
        assert!(are_gradual(&[0, 0, 1, 2, 2]));
        assert!(!are_gradual(&[0, 2]));
        assert!(!are_gradual(&[1, 0]));
    }
}
