//! Updates of low rank for all adapters of a batch at once: two launches a projection, whatever the number of adapters,
//! and none where no adapter of the batch changes it. The CPU's twin is `packed::Update`.
//!
//! Every adapter has a table on the device of where its factors lie, a line a site. A batch has a table of tiles, rows of
//! one adapter each with the address of that adapter's table, which is made once and read by every layer.

use super::array::Array;
use super::gpu::Gpu;
use super::launch::{Launch, suffix};
use crate::error::{Error, Result};
use crate::kernels::Factor;
use candle_core::{DType, Tensor};
use std::ops::Range;

/// Rows of a tile, at most.
const TILE: usize = 64;

/// Columns of a block.
const COLUMNS: usize = 64;

/// Numbers of 32 bits that a line of an adapter's table takes: two addresses, a rank, and nothing.
const LINE: usize = 6;

/// An adapter's factors, in one piece of memory of their exact size.
#[derive(Clone, Debug)]
pub struct Factors {
    /// The table, `[sites * LINE]`, and behind it nothing.
    table: Array,
    /// What the table points to.
    numbers: Array,
    /// First number of every site's factors, and their inputs, rank and outputs, in the order in which they came.
    places: Vec<[usize; 4]>,
    /// By site; 0 where there is no update.
    ranks: Vec<usize>,
}

impl Factors {
    /// Factors in `dtype` for a model of so many sites.
    pub fn new(gpu: &Gpu, sites: usize, dtype: DType, factors: &[Factor]) -> Result<Self> {
        // As kernels read them: a row a rank, and a row an output.
        let flat = |t: &Tensor| t.t()?.contiguous()?.flatten_all()?.to_dtype(dtype);
        let pieces = factors.iter().flat_map(|(_, a, b)| [*a, *b]).map(flat);
        let pieces = pieces.collect::<candle_core::Result<Vec<_>>>()?;
        let numbers = match pieces.as_slice() {
            [] => Array::new(gpu, dtype, &[0])?,
            pieces => Array::of(gpu, &Tensor::cat(pieces, 0)?)?,
        };
        let (mut ranks, mut table, mut places, mut start) = (vec![0; sites], vec![0; sites * LINE], Vec::new(), 0);
        for (site, a, b) in factors {
            let [inputs, rank, outputs] = [a.dims()[0], a.dims()[1], b.dims()[1]];
            let address = |start: usize| numbers.address() + (start * dtype.size_in_bytes()) as u64;
            let line = [words(address(start)), words(address(start + inputs * rank)), [rank as u32, 0]];
            table[site * LINE..][..LINE].copy_from_slice(line.as_flattened());
            ranks[*site] = rank;
            places.push([start, inputs, rank, outputs]);
            start += (inputs + outputs) * rank;
        }
        Ok(Self { table: Array::of_numbers(gpu, &table)?, numbers, places, ranks })
    }

    /// The factors of one of the sites, in the order in which they came, as `a [in, rank]` and `b [rank, out]`.
    pub fn windows(&self, place: usize) -> Result<[Array; 2]> {
        let [start, inputs, rank, outputs] = self.places[place];
        let window = |start: usize, rows: usize, columns: usize| {
            self.numbers.narrow(0, start, rows * columns)?.reshape(&[rows, columns])?.transposed()
        };
        Ok([window(start, rank, inputs)?, window(start + rank * inputs, outputs, rank)?])
    }
}

/// The halves of an address, the lower first, as memory has it.
fn words(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// The sites of a projection, each with its columns of the output.
pub struct Spans {
    spans: Array,
    sites: Vec<usize>,
}

impl Spans {
    /// Sites with their first column and how many.
    pub fn new(gpu: &Gpu, spans: &[(usize, usize, usize)]) -> Result<Self> {
        let numbers = spans.iter().flat_map(|(site, first, count)| [*site as u32, *first as u32, *count as u32, 0]);
        let sites = spans.iter().map(|(site, ..)| *site).collect();
        Ok(Self { spans: Array::of_numbers(gpu, &numbers.collect::<Vec<u32>>())?, sites })
    }
}

/// Which rows of a batch are whose.
pub struct Touched {
    /// Four numbers a tile: the address of a table, the first row, and how many.
    tiles: Array,
    /// Ranks of every adapter that is there.
    ranks: Vec<Vec<usize>>,
}

impl Touched {
    /// Row ranges of adapters; none where there are none.
    pub fn new<'a>(segments: impl Iterator<Item = (Range<usize>, &'a Factors)>) -> Result<Option<Self>> {
        let (mut tiles, mut ranks, mut gpu) = (Vec::new(), Vec::new(), None);
        for (rows, factors) in segments {
            let address = words(factors.table.address());
            tiles.extend(split(rows).flat_map(|(first, count)| [address, [first as u32, count as u32]]).flatten());
            ranks.push(factors.ranks.clone());
            gpu = Some(factors.table.gpu().clone());
        }
        let Some(gpu) = gpu else { return Ok(None) };
        Ok(Some(Self { tiles: Array::of_numbers(&gpu, &tiles)?, ranks }))
    }

    /// The most that ranks of some sites add up to in one adapter.
    fn width(&self, sites: &[usize]) -> usize {
        let width = |ranks: &Vec<usize>| sites.iter().map(|site| ranks[*site]).sum();
        self.ranks.iter().map(width).max().unwrap_or_default()
    }

    /// What `x [tokens, in]` makes of the matrices `a` at a projection's sites; nothing where none of these adapters
    /// changes any.
    pub fn shrink(&self, spans: &Spans, x: &Array) -> Result<Option<Grouped>> {
        // Rows of an even number of 16 bytes.
        let width = self.width(&spans.sites).next_multiple_of(8);
        if width == 0 {
            return Ok(None);
        }
        let [tokens, inputs, stride] = x.matrix()?;
        let left = Array::new(x.gpu(), x.dtype(), &[tokens, width])?;
        let launch = Launch::on(x.gpu()).array(&left).array(x).array(&self.tiles).array(&spans.spans);
        let launch = launch.sizes([spans.sites.len(), inputs, stride, width]);
        launch.run(&format!("shrink_{}", suffix(x.dtype())), [self.tiles.elements() / 4, width.div_ceil(COLUMNS)])?;
        Ok(Some(Grouped { left, tiles: self.tiles.clone(), spans: spans.spans.clone(), sites: spans.sites.len() }))
    }
}

/// A row range as tiles: first row and count each.
fn split(rows: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    rows.clone().step_by(TILE).map(move |first| (first, TILE.min(rows.end - first)))
}

/// The left factors of a projection's updates, for all rows of a batch.
pub struct Grouped {
    /// `[tokens, ranks]`, of every adapter the ranks of its sites side by side.
    left: Array,
    tiles: Array,
    spans: Array,
    sites: usize,
}

impl Grouped {
    /// Adds the updates to what the base made, `y [tokens, out]`, in place.
    pub fn expand(&self, y: &Array) -> Result<()> {
        let [rows, columns, stride] = y.matrix()?;
        if rows != self.left.dims()[0] || y.dtype() != self.left.dtype() {
            return Err(Error::Internal(format!("updates {:?} of {y:?}", self.left)));
        }
        let launch = Launch::on(y.gpu()).array(y).array(&self.left).array(&self.tiles).array(&self.spans);
        let launch = launch.sizes([self.sites, columns, stride, self.left.dims()[1]]);
        launch.run(&format!("expand_{}", suffix(y.dtype())), [self.tiles.elements() / 4, columns.div_ceil(COLUMNS)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_range_once_and_in_order() {
        for (start, end) in [(0, 1), (3, 67), (0, 64), (5, 70), (128, 1000), (9, 9)] {
            let rows: Vec<usize> = split(start..end).flat_map(|(first, count)| first..first + count).collect();
            assert_eq!(rows, (start..end).collect::<Vec<_>>());
            assert!(split(start..end).all(|(_, count)| (1..=TILE).contains(&count)));
        }
    }

    #[test]
    fn an_address_is_split_as_memory_has_it() {
        let address: u64 = 0x0123_4567_89ab_cdef;
        let bytes: Vec<u8> = words(address).iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes, address.to_le_bytes());
    }
}
