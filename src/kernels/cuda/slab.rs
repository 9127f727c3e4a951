//! One piece of a device's memory, parted anew by every pass: who asks for the same, in the same order, gets the same
//! addresses.

use std::ops::Range;

/// What every address is a multiple of: no kernel and no product asks for more.
const ALIGNMENT: usize = 256;

/// The part for what comes from the host.
const STAGED_SHARE: usize = 16;

/// Memory in two parts: for what is computed, whose pieces are used again once they are free, and for what comes from the
/// host, whose are not, so that it may be brought before anything is computed.
pub struct Slab {
    all: Range<u64>,
    /// What came from the host since the beginning, as it is to lie from the slab's first byte on.
    staged: Vec<u8>,
    staged_max: usize,
    /// How much of it was taken.
    taken: usize,
    /// In order, none next to another.
    free: Vec<Range<u64>>,
    /// Pieces that were given and not given back.
    live: usize,
}

impl Slab {
    /// All of it free.
    pub fn new(address: u64, bytes: usize) -> Self {
        let staged_max = bytes / STAGED_SHARE / ALIGNMENT * ALIGNMENT;
        let all = address..address + bytes as u64;
        let free = std::iter::once(address + staged_max as u64..all.end).collect();
        Self { all, staged: Vec::new(), staged_max, taken: 0, free, live: 0 }
    }

    /// Its first byte.
    pub fn address(&self) -> u64 {
        self.all.start
    }

    /// Whether a piece is one of it.
    pub fn contains(&self, address: u64) -> bool {
        self.all.contains(&address)
    }

    /// Begins anew; false, and nothing is changed, while a piece is still there.
    pub fn restart(&mut self) -> bool {
        if self.live == 0 {
            self.staged.clear();
            self.taken = 0;
        }
        self.live == 0
    }

    /// A piece of what is free, or none where there is no such piece.
    pub fn allocate(&mut self, bytes: usize) -> Option<u64> {
        let bytes = rounded(bytes);
        let place = self.free.iter().position(|range| range.end - range.start >= bytes)?;
        let address = self.free[place].start;
        self.free[place].start += bytes;
        if self.free[place].is_empty() {
            self.free.remove(place);
        }
        self.live += 1;
        Some(address)
    }

    /// Where bytes from the host are to be, or none where they do not fit.
    pub fn stage(&mut self, bytes: &[u8]) -> Option<u64> {
        let start = self.staged.len();
        if start + rounded(bytes.len()) as usize > self.staged_max {
            return None;
        }
        self.staged.extend_from_slice(bytes);
        self.staged.resize(start + rounded(bytes.len()) as usize, 0);
        self.live += 1;
        Some(self.all.start + start as u64)
    }

    /// What was staged since this was asked last, and its address.
    pub fn take_staged(&mut self) -> (u64, &[u8]) {
        let start = std::mem::replace(&mut self.taken, self.staged.len());
        (self.all.start + start as u64, &self.staged[start..])
    }

    /// A piece given back, by the address and the bytes that it was given for.
    pub fn free(&mut self, address: u64, bytes: usize) {
        self.live -= 1;
        if address < self.all.start + self.staged_max as u64 {
            return;
        }
        let mut range = address..address + rounded(bytes);
        let mut place = self.free.partition_point(|free| free.start < address);
        if place < self.free.len() && self.free[place].start == range.end {
            range.end = self.free.remove(place).end;
        }
        if place > 0 && self.free[place - 1].end == range.start {
            place -= 1;
            range.start = self.free.remove(place).start;
        }
        self.free.insert(place, range);
    }
}

/// Nothing has an address too.
fn rounded(bytes: usize) -> u64 {
    bytes.max(1).next_multiple_of(ALIGNMENT) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::below;

    const ADDRESS: u64 = 0x7000_0000;
    const BYTES: usize = 64 << 10;

    /// What is done to a slab.
    #[derive(Clone, Copy)]
    enum Step {
        Allocate(usize),
        Stage(usize),
        /// The piece in this place of those that are there, counted round.
        Free(usize),
    }

    fn steps() -> Vec<Step> {
        let step = |_| match below(5) {
            0 => Step::Stage(below(600)),
            1 | 2 => Step::Free(below(1000)),
            _ => Step::Allocate(below(9000)),
        };
        (0..400).map(step).collect()
    }

    /// Does the steps, and gives all pieces back in the end; what each step gave.
    fn done(slab: &mut Slab, steps: &[Step]) -> Vec<Option<u64>> {
        assert!(slab.restart());
        let (mut live, mut given, mut staged_end): (Vec<(u64, usize)>, _, _) = (Vec::new(), Vec::new(), ADDRESS);
        for step in steps {
            let (address, bytes) = match *step {
                Step::Free(place) => {
                    if !live.is_empty() {
                        let (address, bytes) = live.remove(place % live.len());
                        slab.free(address, bytes);
                    }
                    continue;
                }
                Step::Allocate(bytes) => (slab.allocate(bytes), bytes),
                Step::Stage(bytes) => {
                    let address = slab.stage(&vec![7; bytes]);
                    let is_new = address.is_none_or(|address| address >= staged_end);
                    assert!(is_new, "what was staged before lies there");
                    staged_end = address.map_or(staged_end, |address| address + bytes as u64);
                    (address, bytes)
                }
            };
            given.push(address);
            let Some(address) = address else { continue };
            assert!(address % 256 == 0 && address >= ADDRESS && address + bytes as u64 <= ADDRESS + BYTES as u64);
            let apart =
                |(other, size): &(u64, usize)| address + bytes as u64 <= *other || *other + *size as u64 <= address;
            assert!(live.iter().all(apart), "two pieces overlap");
            live.push((address, bytes));
            assert!(!slab.restart(), "pieces are there");
        }
        live.into_iter().for_each(|(address, bytes)| slab.free(address, bytes));
        given
    }

    #[test]
    fn live_pieces_never_overlap_and_the_same_steps_give_the_same_addresses() {
        let mut slab = Slab::new(ADDRESS, BYTES);
        let whole = slab.free.clone();
        let (mut refused, mut again) = (0, 0);
        for _ in 0..50 {
            let steps = steps();
            let given = done(&mut slab, &steps);
            assert_eq!(slab.free, whole, "all of it is free again, in one piece");
            assert_eq!(done(&mut slab, &steps), given);
            refused += given.iter().filter(|address| address.is_none()).count();
            let mut addresses: Vec<u64> = given.into_iter().flatten().collect();
            let count = addresses.len();
            addresses.sort();
            addresses.dedup();
            again += count - addresses.len();
        }
        assert!(refused > 0 && again > 0, "{refused} did not fit, {again} lie where another lay");
    }

    #[test]
    fn what_is_staged_is_taken_once_as_it_is_to_lie() {
        let mut slab = Slab::new(ADDRESS, BYTES);
        let addresses = [slab.stage(&[1; 3]), slab.stage(&[]), slab.stage(&[2; 300])];
        assert_eq!(addresses, [0, 256, 512].map(|start| Some(ADDRESS + start)));
        let (address, bytes) = slab.take_staged();
        assert_eq!((address, bytes.len()), (ADDRESS, 1024));
        assert_eq!((&bytes[..4], &bytes[512..813]), (&[1, 1, 1, 0][..], &[[2; 300].as_slice(), &[0]].concat()[..]));
        assert_eq!(slab.stage(&[3]), Some(ADDRESS + 1024));
        assert_eq!(slab.take_staged(), (ADDRESS + 1024, &[[3].as_slice(), &[0; 255]].concat()[..]));
        assert!(slab.take_staged().1.is_empty());
    }
}
