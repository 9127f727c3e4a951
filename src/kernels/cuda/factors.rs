//! An adapter's factors of low rank: on the host in one piece, as a GPU takes them, and on a device, with a table of where
//! they lie, a line a site.

use super::array::Array;
use super::gpu::Gpu;
use crate::error::Result;
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// Numbers of 32 bits that a line of an adapter's table takes: two addresses, a rank, and nothing.
const LINE: usize = 6;

/// One site's factors: its number, `a [in, rank]` and `b [rank, out]`.
pub type Factor<'a> = (usize, &'a Tensor, &'a Tensor);

/// Factors on the host, in one piece; clones share it.
#[derive(Clone, Debug)]
pub struct HostFactors {
    /// Side by side, as kernels read them: of every site a row a rank, and a row an output.
    numbers: Tensor,
    layout: Arc<Layout>,
}

/// Where they lie there.
#[derive(Debug)]
struct Layout {
    /// In the order in which they came.
    places: Vec<Place>,
    /// By site; 0 where there is no update.
    ranks: Arc<[usize]>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    site: usize,
    /// First number.
    start: usize,
    inputs: usize,
    rank: usize,
    outputs: usize,
}

impl Place {
    /// `a` and `b`: first number, rows and columns each.
    fn parts(&self) -> [[usize; 3]; 2] {
        let Self { start, inputs, rank, outputs, .. } = *self;
        [[start, rank, inputs], [start + rank * inputs, outputs, rank]]
    }
}

impl HostFactors {
    /// Factors in `dtype` for a model of so many sites.
    pub fn new(sites: usize, dtype: DType, factors: &[Factor]) -> Result<Self> {
        let flat = |t: &Tensor| t.t()?.contiguous()?.flatten_all()?.to_dtype(dtype);
        let pieces = factors.iter().flat_map(|(_, a, b)| [*a, *b]).map(flat);
        let pieces = pieces.collect::<candle_core::Result<Vec<_>>>()?;
        let numbers = match pieces.as_slice() {
            [] => Tensor::zeros(0, dtype, &candle_core::Device::Cpu)?,
            pieces => Tensor::cat(pieces, 0)?,
        };
        let (mut ranks, mut places, mut start) = (vec![0; sites], Vec::new(), 0);
        for (site, a, b) in factors {
            let [inputs, rank, outputs] = [a.dims()[0], a.dims()[1], b.dims()[1]];
            ranks[*site] = rank;
            places.push(Place { site: *site, start, inputs, rank, outputs });
            start += (inputs + outputs) * rank;
        }
        Ok(Self { numbers, layout: Arc::new(Layout { places, ranks: ranks.into() }) })
    }

    /// Whether there is an update of a site.
    pub fn changes(&self, site: usize) -> bool {
        self.layout.ranks[site] > 0
    }

    /// The factors of one of the sites, in the order in which they came, as `a [in, rank]` and `b [rank, out]`.
    pub fn windows(&self, place: usize) -> Result<[Tensor; 2]> {
        let window = |[start, rows, columns]: [usize; 3]| {
            self.numbers.narrow(0, start, rows * columns)?.reshape((rows, columns))?.t()
        };
        let [a, b] = self.layout.places[place].parts();
        Ok([window(a)?, window(b)?])
    }
}

/// The same on a device, in memory of their exact size.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `[sites * LINE]`.
    table: Array,
    /// What the table points to.
    numbers: Array,
    layout: Arc<Layout>,
}

impl Factors {
    /// Brings them there.
    pub fn new(gpu: &Gpu, host: &HostFactors) -> Result<Self> {
        let (numbers, layout) = (Array::of(gpu, &host.numbers)?, host.layout.clone());
        let mut table = vec![0; layout.ranks.len() * LINE];
        for place in &layout.places {
            let [a, b] = place.parts().map(|[start, ..]| words(address(&numbers, start)));
            table[place.site * LINE..][..LINE].copy_from_slice([a, b, [place.rank as u32, 0]].as_flattened());
        }
        Ok(Self { table: Array::of_numbers(gpu, &table)?, numbers, layout })
    }

    /// Whether there is an update of a site.
    pub fn changes(&self, site: usize) -> bool {
        self.layout.ranks[site] > 0
    }

    /// The factors of one of the sites, in the order in which they came, as `a [in, rank]` and `b [rank, out]`.
    pub fn windows(&self, place: usize) -> Result<[Array; 2]> {
        let window = |[start, rows, columns]: [usize; 3]| {
            self.numbers.narrow(0, start, rows * columns)?.reshape(&[rows, columns])?.transposed()
        };
        let [a, b] = self.layout.places[place].parts();
        Ok([window(a)?, window(b)?])
    }

    /// Of every factor.
    pub(super) fn dtype(&self) -> DType {
        self.numbers.dtype()
    }

    pub(super) fn table(&self) -> &Array {
        &self.table
    }

    /// By site.
    pub(super) fn ranks(&self) -> &Arc<[usize]> {
        &self.layout.ranks
    }
}

fn address(numbers: &Array, start: usize) -> u64 {
    numbers.address() + (start * numbers.dtype().size_in_bytes()) as u64
}

/// The halves of an address, the lower first, as memory has it.
pub(super) fn words(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

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
        use crate::kernels::sample::{below, normal};
        let gpu = Gpu::emulated(64).unwrap();
        let gap = |there: &Tensor, factor: &Tensor| {
            let gap = (there.contiguous().unwrap() - factor).unwrap().to_dtype(DType::F32).unwrap();
            gap.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for _ in 0..20 {
                let (sites, inputs) = (1 + below(30), 1 + below(50));
                let changed: Vec<usize> = (0..sites).filter(|_| below(2) == 0).collect();
                let factor = |rank: usize| (normal(1.0, (inputs, rank)), normal(1.0, (rank, 1 + below(50))));
                let pairs: Vec<(Tensor, Tensor)> = changed.iter().map(|_| factor(1 + below(20))).collect();
                let list: Vec<Factor> = changed.iter().zip(&pairs).map(|(site, (a, b))| (*site, a, b)).collect();
                let host = HostFactors::new(sites, dtype, &list).unwrap();
                let (factors, bytes) = gpu.watch(|| Factors::new(&gpu.beside(), &host)).unwrap();
                let elements: usize = pairs.iter().map(|(a, b)| a.elem_count() + b.elem_count()).sum();
                assert_eq!(bytes, elements * dtype.size_in_bytes() + sites * LINE * 4);
                let table = factors.table.depart().unwrap().wait().unwrap().to_vec1::<u32>().unwrap();
                let mut lines: Vec<&[u32]> = table.chunks(LINE).collect();
                for (place, (site, a, b)) in list.iter().enumerate() {
                    let windows = factors.windows(place).unwrap();
                    let ranks = [a.dims()[1] as u32, 0];
                    let line = [words(windows[0].address()), words(windows[1].address()), ranks];
                    assert_eq!(std::mem::take(&mut lines[*site]), line.as_flattened());
                    for ((window, on_host), factor) in windows.iter().zip(host.windows(place).unwrap()).zip([a, b]) {
                        let factor = factor.to_dtype(dtype).unwrap();
                        assert_eq!(gap(&window.depart().unwrap().wait().unwrap(), &factor), 0.0);
                        assert_eq!(gap(&on_host, &factor), 0.0);
                    }
                }
                assert!(lines.concat().iter().all(|number| *number == 0), "a site without an update");
            }
        }
    }
}
