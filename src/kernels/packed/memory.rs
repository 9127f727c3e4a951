//! Memory for weights, in pages so large that reading through all of them hardly waits for addresses.
#![expect(unsafe_code, reason = "parts of one mapping are written one after the other, and then only read")]

use super::tiles::{TILE, Tile};
use memmap2::MmapMut;
use std::io::{Error, Result};
use std::ops::Deref;
use std::sync::Arc;

/// Bytes of a large page.
const PAGE: usize = 2 << 20;

/// Bytes of a mapping, if no part is larger.
const MAPPING: usize = 32 << 20;

/// Where weights go, one behind the other.
#[derive(Default)]
pub struct Memory {
    /// The newest mapping, and how many of its tiles are taken.
    newest: Option<(Arc<Mapping>, usize)>,
}

/// Some tiles; the memory is there as long as a part of its mapping is.
pub struct Part {
    mapping: Arc<Mapping>,
    first: usize,
    count: usize,
}

/// Tiles from the first large page on.
struct Mapping {
    start: *mut Tile,
    count: usize,
    _memory: MmapMut,
}

// SAFETY: a tile is written by `Memory::take` alone, before the part that it belongs to is there, and belongs to one.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Memory {
    /// So many tiles, all 0 and then filled.
    pub fn take(&mut self, count: usize, fill: impl FnOnce(&mut [Tile])) -> Result<Part> {
        let (mapping, first) = match self.newest.take() {
            Some((mapping, taken)) if mapping.count - taken >= count => (mapping, taken),
            _ => (Arc::new(Mapping::new(count)?), 0),
        };
        // SAFETY: the tiles lie in the mapping, behind all that were taken before, and are 0.
        fill(unsafe { std::slice::from_raw_parts_mut(mapping.start.add(first), count) });
        self.newest = Some((mapping.clone(), first + count));
        Ok(Part { mapping, first, count })
    }
}

impl Mapping {
    /// Of at least so many tiles.
    fn new(count: usize) -> Result<Self> {
        let bytes = count.checked_mul(TILE).and_then(|bytes| bytes.max(MAPPING).checked_next_multiple_of(PAGE));
        let bytes = bytes.ok_or_else(|| Error::other("a weight is too large"))?;
        let mut memory = MmapMut::map_anon(bytes + PAGE)?;
        let before = memory.as_ptr().align_offset(PAGE);
        // Without large pages all is as right, and slower.
        #[cfg(target_os = "linux")]
        let _ = memory.advise_range(memmap2::Advice::HugePage, before, bytes);
        let start = memory[before..before + bytes].as_mut_ptr().cast();
        Ok(Self { start, count: bytes / TILE, _memory: memory })
    }
}

impl Deref for Part {
    type Target = [Tile];

    fn deref(&self) -> &[Tile] {
        // SAFETY: the tiles lie in the mapping, and nothing writes them any more.
        unsafe { std::slice::from_raw_parts(self.mapping.start.add(self.first), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_apart_and_outlive_their_memory() {
        let mut memory = Memory::default();
        let counts = [3, 0, MAPPING / TILE - 4, 7, MAPPING / TILE + 1];
        let parts: Vec<Part> = counts
            .iter()
            .enumerate()
            .map(|(place, count)| {
                let fill = |tiles: &mut [Tile]| {
                    assert!(tiles.iter().all(|tile| tile.0[5] == 0));
                    tiles.fill(Tile([place as u8 + 1; TILE]));
                };
                memory.take(*count, fill).unwrap()
            })
            .collect();
        drop(memory);
        for (place, (part, count)) in parts.iter().zip(counts).enumerate() {
            assert_eq!(part.len(), count);
            assert!(part.iter().all(|tile| tile.0.iter().all(|byte| usize::from(*byte) == place + 1)));
        }
    }
}
