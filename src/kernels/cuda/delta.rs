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
use std::sync::Arc;

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
    ranks: Arc<[usize]>,
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
        Ok(Self { table: Array::of_numbers(gpu, &table)?, numbers, places, ranks: ranks.into() })
    }

    /// Whether there is an update of a site.
    pub fn changes(&self, site: usize) -> bool {
        self.ranks[site] > 0
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
    /// Of all factors.
    dtype: DType,
    /// Ranks of every adapter that is there.
    ranks: Vec<Arc<[usize]>>,
}

impl Touched {
    /// Row ranges of adapters; none where there are none.
    pub fn new<'a>(segments: impl Iterator<Item = (Range<usize>, &'a Factors)>) -> Result<Option<Self>> {
        let segments: Vec<_> = segments.collect();
        let Some((_, first)) = segments.first() else { return Ok(None) };
        let tiles = tiles(segments.iter().map(|(rows, factors)| (rows.clone(), factors.table.address())));
        let ranks = segments.iter().map(|(_, factors)| factors.ranks.clone()).collect();
        let dtype = first.numbers.dtype();
        Ok(Some(Self { tiles: Array::of_numbers(first.table.gpu(), &tiles)?, dtype, ranks }))
    }

    /// The most that ranks of some sites add up to in one adapter.
    fn width(&self, sites: &[usize]) -> usize {
        let width = |ranks: &Arc<[usize]>| sites.iter().map(|site| ranks[*site]).sum();
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
        if x.dtype() != self.dtype {
            return Err(Error::Internal(format!("factors of {:?} for {x:?}", self.dtype)));
        }
        let [tokens, inputs, stride] = x.matrix()?;
        let left = Array::new(x.gpu(), x.dtype(), &[tokens, width])?;
        let launch = Launch::on(x.gpu()).array(&left).array(x).array(&self.tiles).array(&spans.spans);
        let launch = launch.sizes([spans.sites.len(), inputs, stride, width]);
        launch.run(&format!("shrink_{}", suffix(x.dtype())), [self.tiles.elements() / 4, width.div_ceil(COLUMNS)])?;
        Ok(Some(Grouped { left, tiles: self.tiles.clone(), spans: spans.spans.clone(), sites: spans.sites.len() }))
    }
}

/// Row ranges with the addresses of their adapters' tables, as tiles: the address, the first row, and how many, no more
/// than [`TILE`].
fn tiles(segments: impl Iterator<Item = (Range<usize>, u64)>) -> Vec<u32> {
    let tile = |first: usize, end: usize| [first as u32, TILE.min(end - first) as u32];
    let split = |(rows, address): (Range<usize>, u64)| {
        rows.clone().step_by(TILE).flat_map(move |first| [words(address), tile(first, rows.end)])
    };
    segments.flat_map(split).flatten().collect()
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
    use crate::kernels::sample::below;

    #[test]
    fn of_any_segments_every_row_is_in_one_tile_with_its_own_adapters_address() {
        for _ in 0..200 {
            let (mut end, mut segments) = (0, Vec::new());
            for segment in 0..below(40) {
                let first = end + below(3) * below(100);
                end = first + below(200);
                segments.push((first..end, (segment as u64 + 1) << 33 | 0x1000));
            }
            let mut owners = vec![None; end];
            for tile in tiles(segments.iter().cloned()).as_chunks::<4>().0 {
                let [low, high, first, count] = *tile;
                assert!((1..=TILE as u32).contains(&count));
                for owner in &mut owners[first as usize..(first + count) as usize] {
                    let before = owner.replace(u64::from(high) << 32 | u64::from(low));
                    assert_eq!(before, None, "a row in two tiles");
                }
            }
            for (row, owner) in owners.into_iter().enumerate() {
                let segment = segments.iter().find(|(rows, _)| rows.contains(&row));
                assert_eq!(owner, segment.map(|(_, address)| *address), "row {row}");
            }
        }
    }

    #[test]
    fn an_address_is_split_as_memory_has_it() {
        let address: u64 = 0x0123_4567_89ab_cdef;
        let bytes: Vec<u8> = words(address).iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes, address.to_le_bytes());
    }

    /// Factors of random sites and ranks take their own bytes and a table, and no more, and are found where the table says.
    #[cfg(feature = "emulated")]
    #[test]
    fn factors_lie_in_memory_of_their_exact_size_where_their_table_says() {
        use crate::kernels::sample::normal;
        let gpu = Gpu::emulated(64).unwrap();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for _ in 0..20 {
                let (sites, inputs) = (1 + below(30), 1 + below(50));
                let changed: Vec<usize> = (0..sites).filter(|_| below(2) == 0).collect();
                let factor = |rank: usize| (normal(1.0, (inputs, rank)), normal(1.0, (rank, 1 + below(50))));
                let pairs: Vec<(Tensor, Tensor)> = changed.iter().map(|_| factor(1 + below(20))).collect();
                let list: Vec<Factor> = changed.iter().zip(&pairs).map(|(site, (a, b))| (*site, a, b)).collect();
                let (factors, bytes) = gpu.watch(|| Factors::new(&gpu, sites, dtype, &list)).unwrap();
                let elements: usize = pairs.iter().map(|(a, b)| a.elem_count() + b.elem_count()).sum();
                assert_eq!(bytes, elements * dtype.size_in_bytes() + sites * LINE * 4);
                let table = factors.table.depart().unwrap().wait().unwrap().to_vec1::<u32>().unwrap();
                let mut lines: Vec<&[u32]> = table.chunks(LINE).collect();
                for (place, (site, a, b)) in list.iter().enumerate() {
                    let windows = factors.windows(place).unwrap();
                    let ranks = [a.dims()[1] as u32, 0];
                    let line = [words(windows[0].address()), words(windows[1].address()), ranks];
                    assert_eq!(std::mem::take(&mut lines[*site]), line.as_flattened());
                    for (window, factor) in windows.iter().zip([a, b]) {
                        let there = window.depart().unwrap().wait().unwrap().contiguous().unwrap();
                        let gap = (there - factor.to_dtype(dtype).unwrap()).unwrap().to_dtype(DType::F32).unwrap();
                        assert_eq!(gap.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
                    }
                }
                assert!(lines.concat().iter().all(|number| *number == 0), "a site without an update");
            }
        }
    }
}
