//! What an adapter changes beside the base's products: on the host in one piece a type, as a GPU takes it, and on a device,
//! with a table of where it lies, a line a site.

use super::array::Array;
use super::gpu::Gpu;
use crate::error::Result;
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// Numbers of 32 bits that a line of an adapter's table takes: four addresses, a rank, and nothing.
const LINE: usize = 10;

/// Ranks of a change that is made late, at most, see [`Late`](super::late::Late).
const LATE_RANKS: u32 = 16;

/// How a site's outputs change, `(y + (x a) b) * factor + shift`; either pair may be missing.
#[derive(Clone, Copy, Debug)]
pub struct Change<T> {
    /// `a [in, rank]` and `b [rank, out]`.
    pub low_rank: Option<[T; 2]>,
    /// `factor [out]` and `shift [out]`, in f32.
    pub columns: Option<[T; 2]>,
}

impl<T> Change<T> {
    /// Its parts where they are.
    pub fn each_ref(&self) -> Change<&T> {
        let [low_rank, columns] = [&self.low_rank, &self.columns].map(|pair| pair.as_ref().map(<[T; 2]>::each_ref));
        Change { low_rank, columns }
    }

    /// What is made of every part of the one pair, and of the other.
    pub fn map<U>(
        self,
        low_rank: impl FnMut(T) -> Result<U>,
        columns: impl FnMut(T) -> Result<U>,
    ) -> Result<Change<U>> {
        Ok(Change { low_rank: both(self.low_rank, low_rank)?, columns: both(self.columns, columns)? })
    }
}

fn both<T, U>(pair: Option<[T; 2]>, mut make: impl FnMut(T) -> Result<U>) -> Result<Option<[U; 2]>> {
    let Some([first, second]) = pair else { return Ok(None) };
    Ok(Some([make(first)?, make(second)?]))
}

/// An adapter's changes on the host, in one piece a type; clones share them.
#[derive(Clone, Debug)]
pub struct HostFactors {
    /// Factors of low rank side by side, as kernels read them: of every site a row a rank, and a row an output.
    numbers: Tensor,
    /// Factors and shifts of columns side by side, f32 whatever the others are.
    columns: Tensor,
    layout: Arc<Layout>,
}

/// Where they lie there.
#[derive(Debug)]
struct Layout {
    /// Sites in the order in which they came.
    places: Vec<(usize, Change<Place>)>,
    /// By site; none where nothing changes.
    kinds: Vec<Option<Kind>>,
}

/// What changes at a site.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// 0 where columns change alone.
    pub rank: u32,
    has_columns: bool,
}

impl Kind {
    /// Whether attention makes such a change itself, where it may; delta.cuh knows it too.
    pub fn is_late(self) -> bool {
        (1..=LATE_RANKS).contains(&self.rank) && !self.has_columns
    }
}

/// Numbers among others: the first one, and how many; a vector is one row.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    rows: usize,
    columns: usize,
}

/// Matrices that are to lie side by side.
struct Row {
    dtype: DType,
    matrices: Vec<Tensor>,
    end: usize,
}

impl Row {
    fn new(dtype: DType) -> Self {
        Self { dtype, matrices: Vec::new(), end: 0 }
    }

    /// Puts a matrix `[rows, columns]` at its end.
    fn put(&mut self, matrix: Tensor) -> Result<Place> {
        let ((rows, columns), start) = (matrix.dims2()?, self.end);
        self.end += rows * columns;
        self.matrices.push(matrix);
        Ok(Place { start, rows, columns })
    }

    /// They are made to what they are there one by one, so that what that takes stays small.
    fn joined(self) -> Result<Tensor> {
        let (joined, mut start) = (Tensor::zeros(self.end, self.dtype, &candle_core::Device::Cpu)?, 0);
        for matrix in &self.matrices {
            let numbers = matrix.contiguous()?.flatten_all()?.to_dtype(self.dtype)?;
            joined.slice_set(&numbers, 0, start)?;
            start += numbers.elem_count();
        }
        Ok(joined)
    }
}

impl HostFactors {
    /// Changes of sites by number, for a model of so many; those of low rank in `dtype`.
    pub fn new(sites: usize, dtype: DType, changes: &[(usize, Change<&Tensor>)]) -> Result<Self> {
        let (mut numbers, mut columns) = (Row::new(dtype), Row::new(DType::F32));
        let (mut kinds, mut places) = (vec![None; sites], Vec::new());
        for (site, change) in changes {
            let rank = change.low_rank.map_or(0, |[a, _]| a.dims()[1] as u32);
            kinds[*site] = Some(Kind { rank, has_columns: change.columns.is_some() });
            let place = change.map(|matrix| numbers.put(matrix.t()?), |all| columns.put(all.unsqueeze(0)?))?;
            places.push((*site, place));
        }
        let layout = Arc::new(Layout { places, kinds });
        Ok(Self { numbers: numbers.joined()?, columns: columns.joined()?, layout })
    }

    /// The change of one of the sites, in the order in which they came.
    pub fn windows(&self, place: usize) -> Result<Change<Tensor>> {
        self.layout.places[place].1.map(
            |Place { start, rows, columns }| {
                Ok(self.numbers.narrow(0, start, rows * columns)?.reshape((rows, columns))?.t()?)
            },
            |Place { start, columns, .. }| Ok(self.columns.narrow(0, start, columns)?),
        )
    }
}

/// The same on a device, in memory of their exact size.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `[sites * LINE]`.
    table: Array,
    /// What the table points to.
    numbers: Array,
    columns: Array,
    layout: Arc<Layout>,
}

impl Factors {
    /// Brings them there.
    pub fn new(gpu: &Gpu, host: &HostFactors) -> Result<Self> {
        let (numbers, columns) = (Array::of(gpu, &host.numbers)?, Array::of(gpu, &host.columns)?);
        let layout = host.layout.clone();
        let mut table = vec![0; layout.kinds.len() * LINE];
        for (site, change) in &layout.places {
            let there = change.map(|place| Ok(address(&numbers, place)), |place| Ok(address(&columns, place)))?;
            let [a, b] = there.low_rank.unwrap_or_default().map(words);
            let [factor, shift] = there.columns.unwrap_or_default().map(words);
            let rank = layout.kinds[*site].map_or(0, |kind| kind.rank);
            table[site * LINE..][..LINE].copy_from_slice([a, b, factor, shift, [rank, 0]].as_flattened());
        }
        Ok(Self { table: Array::of_numbers(gpu, &table)?, numbers, columns, layout })
    }

    /// Whether a site changes.
    pub fn changes(&self, site: usize) -> bool {
        self.layout.kinds[site].is_some()
    }

    /// The change of one of the sites, in the order in which they came.
    pub fn windows(&self, place: usize) -> Result<Change<Array>> {
        self.layout.places[place].1.map(
            |Place { start, rows, columns }| {
                self.numbers.narrow(0, start, rows * columns)?.reshape(&[rows, columns])?.transposed()
            },
            |Place { start, columns, .. }| self.columns.narrow(0, start, columns),
        )
    }

    /// Of every factor of low rank.
    pub(super) fn dtype(&self) -> DType {
        self.numbers.dtype()
    }

    pub(super) fn table(&self) -> &Array {
        &self.table
    }

    /// By site; none where nothing changes.
    pub(super) fn kinds(&self) -> &[Option<Kind>] {
        &self.layout.kinds
    }
}

fn address(numbers: &Array, place: Place) -> u64 {
    numbers.address() + (place.start * numbers.dtype().size_in_bytes()) as u64
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

    /// A change of any kind of a site of `inputs`.
    #[cfg(feature = "emulated")]
    fn any_change(inputs: usize) -> Change<Tensor> {
        use crate::kernels::sample::{below, normal};
        let (rank, outputs, kind) = (1 + below(20), 1 + below(50), below(3));
        let low_rank = (kind > 0).then(|| [normal(1.0, (inputs, rank)), normal(1.0, (rank, outputs))]);
        Change { low_rank, columns: (kind < 2).then(|| [normal(1.0, outputs), normal(1.0, outputs)]) }
    }

    /// Changes of random sites and ranks take their own bytes and a table, and no more, and are found where the table says.
    #[cfg(feature = "emulated")]
    #[test]
    fn factors_lie_in_memory_of_their_exact_size_where_their_table_says() {
        use crate::kernels::sample::below;
        let gpu = Gpu::emulated(64).unwrap();
        let is_same = |there: &Tensor, own: &Tensor, dtype: DType| {
            let gap = (there.contiguous().unwrap() - own.to_dtype(dtype).unwrap()).unwrap();
            let gap = gap.to_dtype(DType::F32).unwrap().abs().unwrap().sum_all().unwrap();
            there.dtype() == dtype && gap.to_scalar::<f32>().unwrap() == 0.0
        };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for _ in 0..20 {
                let (sites, inputs) = (1 + below(30), 1 + below(50));
                let changed: Vec<usize> = (0..sites).filter(|_| below(2) == 0).collect();
                let changes: Vec<_> = changed.iter().map(|site| (*site, any_change(inputs))).collect();
                let list: Vec<_> = changes.iter().map(|(site, change)| (*site, change.each_ref())).collect();
                let host = HostFactors::new(sites, dtype, &list).unwrap();
                let (factors, bytes) = gpu.watch(|| Factors::new(&gpu.beside(), &host)).unwrap();
                let size = |pair: &Option<[Tensor; 2]>| pair.iter().flatten().map(Tensor::elem_count).sum::<usize>();
                let own = changes
                    .iter()
                    .map(|(_, change)| size(&change.low_rank) * dtype.size_in_bytes() + size(&change.columns) * 4);
                assert_eq!(bytes, own.sum::<usize>() + sites * LINE * 4);
                let table = factors.table.depart().unwrap().wait().unwrap().to_vec1::<u32>().unwrap();
                let mut lines: Vec<&[u32]> = table.chunks(LINE).collect();
                for (place, (site, change)) in changes.iter().enumerate() {
                    let (there, on_host) = (factors.windows(place).unwrap(), host.windows(place).unwrap());
                    let rank = change.low_rank.as_ref().map_or(0, |[a, _]| a.dims()[1] as u32);
                    let pairs = [
                        (&there.low_rank, &on_host.low_rank, &change.low_rank, dtype),
                        (&there.columns, &on_host.columns, &change.columns, DType::F32),
                    ];
                    let addresses = pairs.map(|(there, ..)| {
                        there.as_ref().map_or([[0; 2]; 2], |pair| pair.each_ref().map(|window| words(window.address())))
                    });
                    let line = [addresses.as_flattened(), &[[rank, 0]]].concat();
                    assert_eq!(std::mem::take(&mut lines[*site]), line.as_flattened());
                    for (there, on_host, own, dtype) in pairs {
                        assert_eq!((there.is_some(), on_host.is_some()), (own.is_some(), own.is_some()));
                        let windows = there.iter().flatten().zip(on_host.iter().flatten());
                        for ((there, on_host), own) in windows.zip(own.iter().flatten()) {
                            assert!(is_same(&there.depart().unwrap().wait().unwrap(), own, dtype));
                            assert!(is_same(on_host, own, dtype));
                        }
                    }
                }
                assert!(lines.concat().iter().all(|number| *number == 0), "a site without a change");
            }
        }
    }
}
