//! Softmax attention, with biases by distance or DeBERTa's. See the CPU twins `attention` and `disentangled`.

use super::array::{Array, Rows};
use super::gpu::Gpu;
use super::late::Late;
use super::launch::{Blocks, Launch, suffix};
use crate::error::{Error, Result};
use crate::kernels::{Attention, Disentangled};
use candle_core::DType;
use std::ops::Range;

/// Queries of a block.
const TILE: usize = 64;

/// Tokens of a sequence up to which a block has two heads of it, where there is a kernel for that.
const FEW: usize = 32;

/// Queries of a block of a long sequence's, where there is a kernel for so many.
const MANY: usize = 128;

/// Queries that a block of attention_group.cu has at most at once, if every block has so many of so many.
const MOST: usize = 256;
const ROUNDS: usize = 4;

/// Head widths that attention.cu has kernels for on tensor cores, and those of them that it has one for [`MANY`] for and one
/// for [`FEW`].
const WIDTHS: [usize; 6] = [32, 64, 96, 128, 192, 256];
const NARROW: [usize; 2] = [32, 64];

/// Of attention_group.cu: its head width, and the threads of a block and the bytes that they share.
const GROUP_WIDTH: usize = 64;
const GROUP_THREADS: u32 = 384;
const GROUP_BYTES: usize = 196_688;
/// The same where something changes late.
const LATE_GROUP_BYTES: usize = 227_328;

/// Head widths that disentangled.cu has kernels for.
const WIDTHS_OF_DISENTANGLED: [usize; 2] = [32, 64];

/// What kernels read of sequences, made once a batch.
#[derive(Clone)]
pub struct Spread {
    /// Rows of four numbers: first query, first and last-plus-one row of its sequence, and this one's number.
    tiles: Array,
    sequences: usize,
    /// Of all sequences, [`TILE`] queries each.
    all: Range<usize>,
    /// Of those among them that have no more than [`FEW`], and no more than that.
    few: Range<usize>,
    short: Range<usize>,
    /// The others once more, [`MANY`] queries each, and [`MOST`].
    long: Range<usize>,
    longest: Range<usize>,
    /// Every token's place in its sequence.
    pub positions: Array,
}

impl Spread {
    /// Of the sequences' offsets.
    pub fn new(gpu: &Gpu, offsets: &[usize]) -> Result<Self> {
        let mut positions: Vec<u32> = Vec::with_capacity(offsets.last().copied().unwrap_or(0));
        offsets.windows(2).for_each(|span| positions.extend(0..(span[1] - span[0]) as u32));
        // How a sequence is computed must not depend on those beside it.
        let sequences = offsets.windows(2).map(|span| span[0]..span[1]).enumerate();
        let (few, more): (Vec<_>, Vec<_>) = sequences.partition(|(_, rows)| rows.len() <= FEW);
        let (short, long): (Vec<_>, Vec<_>) = more.into_iter().partition(|(_, rows)| rows.len() <= TILE);
        let each = [(&few, TILE), (&short, TILE), (&long, TILE), (&long, MANY), (&long, MOST)];
        let parts = each.map(|(sequences, queries)| tiles(sequences, queries));
        let mut end = 0;
        let [few, short, plain, long, longest] = parts.each_ref().map(|tiles| {
            let first = end;
            end += tiles.len() / 4;
            first..end
        });
        let tiles = Array::of_numbers(gpu, &parts.concat())?.reshape(&[end, 4])?;
        let positions = Array::of_numbers(gpu, &positions)?;
        let sequences = offsets.len().saturating_sub(1);
        Ok(Self { tiles, sequences, all: 0..plain.end, few, short, long, longest, positions })
    }

    /// Whether nearly all of the tiles of [`MOST`] queries have so many.
    fn are_full(&self) -> bool {
        10 * MOST * self.longest.len() <= 11 * MANY * self.long.len()
    }

    /// Tiles, and how many.
    fn part(&self, part: &Range<usize>) -> Result<(Array, usize)> {
        Ok((self.tiles.narrow(0, part.start, part.len())?, part.len()))
    }
}

fn tiles(sequences: &[(usize, Range<usize>)], queries: usize) -> Vec<u32> {
    let tiles = |(number, rows): &(usize, Range<usize>)| {
        let (number, start, end) = (*number, rows.start, rows.end);
        rows.clone().step_by(queries).flat_map(move |first| [first, start, end, number].map(|number| number as u32))
    };
    sequences.iter().flat_map(tiles).collect()
}

/// See the CPU twin; `q`, `k`, `v` are of one type, which is the result's, and the bias is f32. What changes late changes here.
pub fn attention(q: &Array, k: &Array, v: &Array, attention: &Attention<Array>, late: Option<&Late>) -> Result<Array> {
    let (spread, heads) = (attention.offsets.spread()?, q.rows()?);
    let span = attention.bias.map_or(0, |bias| bias.dims()[1].div_ceil(2));
    let window = attention.window.map_or(-1, |window| window.min(i32::MAX as usize) as i32);
    let are_wide = is_wide(q)? && is_wide(k)? && is_wide(v)?;
    if let Some(late) = late {
        late.check(spread.sequences, [heads.outer, heads.width], q.dtype(), are_wide)?;
    }
    let y = Array::new(q.gpu(), q.dtype(), &[heads.outer, heads.inner * heads.width])?;
    for (kernel, part) in kernels(q, are_wide, attention)? {
        let (tiles, count) = spread.part(part)?;
        let launch = Launch::on(q.gpu()).array(&y).array(q).array(k).array(v).array(&tiles);
        let launch = launch.optional(attention.bias).sizes([heads.inner / k.dims()[1], heads.width]);
        let launch = strides(launch, [q, k, v])?.float(attention.scale).int(i32::from(attention.causal));
        let launch = launch.int(window).sizes([span]);
        let (launch, blocks) = match kernel {
            Kernel::Plain | Kernel::Warps { .. } => (launch, Blocks::usual([count, heads.inner])),
            Kernel::Two(_) => (launch.sizes([heads.inner]), Blocks::usual([count, heads.inner.div_ceil(2)])),
            Kernel::Warpgroups { multiprocessors, queries } => {
                let grid = [(count * heads.inner).min(multiprocessors), 1];
                let shared = if late.is_some() { LATE_GROUP_BYTES } else { GROUP_BYTES };
                (launch.sizes([heads.inner, count, queries]), Blocks { grid, threads: GROUP_THREADS, shared })
            }
        };
        let launch = match late {
            Some(late) => late.told(launch),
            None => launch,
        };
        launch.run_in(&kernel.name(q.dtype(), late.is_some()), &blocks)?;
    }
    Ok(y)
}

/// Kernels with their tiles, which together are all queries of a batch. How a sequence is computed depends on its own length.
fn kernels<'a>(q: &Array, are_wide: bool, attention: &Attention<'a, Array>) -> Result<Vec<(Kernel, &'a Range<usize>)>> {
    let (spread, heads) = (attention.offsets.spread()?, q.rows()?);
    if q.dtype() == DType::F32 {
        return Ok(vec![(Kernel::Plain, &spread.all)]);
    }
    let width = WIDTHS.into_iter().find(|width| heads.width <= *width);
    let width = width.ok_or_else(|| Error::Internal(format!("heads of width {} on a GPU", heads.width)))?;
    let one = Kernel::Warps { are_many: false, width };
    if !NARROW.contains(&width) || !are_wide {
        return Ok(vec![(one, &spread.all)]);
    }
    let with_long = |long: Kernel, tiles| vec![(Kernel::Two(width), &spread.few), (one, &spread.short), (long, tiles)];
    let Some(multiprocessors) = q.gpu().warpgroups().filter(|_| heads.width == GROUP_WIDTH) else {
        return Ok(with_long(Kernel::Warps { are_many: true, width }, &spread.long));
    };
    // Fewer queries together see fewer keys in vain, and occupy more multiprocessors.
    let is_most = attention.window.is_none() && !attention.causal && spread.are_full();
    let (queries, tiles) = if is_most && spread.longest.len() * heads.inner >= ROUNDS * multiprocessors {
        (MOST, &spread.longest)
    } else {
        (MANY, &spread.long)
    };
    Ok(with_long(Kernel::Warpgroups { multiprocessors, queries }, tiles))
}

/// A kernel, and what its blocks are; heads are of a width that it was compiled for.
#[derive(Clone, Copy)]
enum Kernel {
    /// A block has a head of a tile, in f32.
    Plain,
    /// The same on tensor cores, tiles of [`TILE`] or of [`MANY`] queries.
    Warps { are_many: bool, width: usize },
    /// A block has two heads.
    Two(usize),
    /// A block goes through tiles of so many queries and their heads, and is alone on its multiprocessor.
    Warpgroups { multiprocessors: usize, queries: usize },
}

impl Kernel {
    fn name(self, dtype: DType, is_late: bool) -> String {
        let (of_type, late) = (suffix(dtype), if is_late { "_late" } else { "" });
        match self {
            Self::Plain => format!("attention_{of_type}"),
            Self::Warps { are_many: false, width } => format!("attention{late}_{of_type}_{width}"),
            Self::Warps { are_many: true, width } => format!("attention_many{late}_{of_type}_{width}"),
            Self::Two(width) => format!("attention_two{late}_{of_type}_{width}"),
            Self::Warpgroups { .. } => format!("attention_group{late}_{of_type}"),
        }
    }
}

/// Whether every row of every head begins and ends at 16 bytes.
fn is_wide(heads: &Array) -> Result<bool> {
    let Rows { width, outer_stride, inner_stride, .. } = heads.rows()?;
    let bytes = [width, outer_stride, inner_stride].map(|count| count * heads.dtype().size_in_bytes());
    Ok(heads.address().is_multiple_of(16) && bytes.into_iter().all(|bytes| bytes.is_multiple_of(16)))
}

fn strides<'a>(launch: Launch<'a>, arrays: [&Array; 3]) -> Result<Launch<'a>> {
    arrays.into_iter().try_fold(launch, |launch, array| {
        let Rows { outer_stride, inner_stride, .. } = array.rows()?;
        Ok(launch.sizes([outer_stride, inner_stride]))
    })
}

/// See the CPU twin; all but the places are of one type, which is the result's.
pub fn disentangled(q: &Array, k: &Array, v: &Array, attention: &Disentangled<Array>) -> Result<Array> {
    let spread = attention.offsets.spread()?;
    let heads = q.rows()?;
    let of_type = |table: Option<&Array>| table.map(|table| table.to_dtype(q.dtype())).transpose();
    let (keys, queries) = (of_type(attention.keys)?, of_type(attention.queries)?);
    let y = Array::new(q.gpu(), q.dtype(), &[heads.outer, heads.inner * heads.width])?;
    let (tiles, count) = spread.part(&spread.all)?;
    let launch = Launch::on(q.gpu()).array(&y).array(q).array(k).array(v).array(&tiles);
    let launch = launch.optional(keys.as_ref()).optional(queries.as_ref()).array(attention.places.placed()?);
    let launch = strides(launch.sizes([heads.inner, heads.width]), [q, k, v])?;
    let launch = launch.float(attention.scale).sizes([attention.places.len() / 2]);
    let (kernel, blocks) = (format!("disentangled_{}", suffix(q.dtype())), [count, heads.inner]);
    let is_banded = q.dtype() != DType::F32 && attention.places.are_gradual();
    match WIDTHS_OF_DISENTANGLED.into_iter().find(|width| is_banded && heads.width <= *width) {
        Some(width) => {
            let rows = keys.as_ref().or(queries.as_ref()).map_or(0, |table| table.dims()[0]);
            launch.sizes([rows]).run(&format!("{kernel}_{width}"), blocks)?;
        }
        None => launch.run(&kernel, blocks)?,
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::tiles;

    #[test]
    fn every_query_is_in_one_tile_of_its_sequence() {
        let sequences = [0..3, 3..3, 3..131, 131..195, 195..260];
        for queries in [super::TILE, super::MANY, super::MOST] {
            let mut seen = vec![0; 260];
            for tile in tiles(&sequences.clone().into_iter().enumerate().collect::<Vec<_>>(), queries).chunks(4) {
                let [first, start, end, number] = [0, 1, 2, 3].map(|i| tile[i] as usize);
                assert!(sequences[number] == (start..end) && (first - start) % queries == 0);
                (first..end.min(first + queries)).for_each(|query| seen[query] += 1);
            }
            assert!(seen.iter().all(|count| *count == 1));
        }
    }
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod emulated {
    use super::*;
    use crate::kernels::cuda::asked;
    use crate::kernels::sample::{below, normal};
    use crate::kernels::{Device, Sequences};

    /// What attends to itself: packed sequences, heads of so many columns, and every kind of attention in turns.
    struct Case {
        stacked: candle_core::Tensor,
        bias: candle_core::Tensor,
        heads: usize,
        keys: usize,
        offsets: Vec<usize>,
        round: usize,
    }

    impl Case {
        fn new(round: usize, [keys, group, width]: [usize; 3], offsets: Vec<usize>) -> Self {
            let (heads, tokens) = (keys * group, offsets[offsets.len() - 1]);
            let longest = offsets.windows(2).map(|span| span[1] - span[0]).max().unwrap();
            let stacked = normal(1.0, (tokens, heads + 2 * keys, width));
            Self { stacked, bias: normal(1.0, (heads, 2 * longest - 1)), heads, keys, offsets, round }
        }

        /// What comes of some sequences, and by which kernels.
        fn attend(&self, gpu: &Gpu, dtype: DType, sequences: Range<usize>) -> (Vec<String>, Vec<f32>) {
            let offsets = &self.offsets[sequences.start..=sequences.end];
            let (first, end) = (offsets[0], offsets[offsets.len() - 1]);
            // Rounded alike, whatever it is computed in.
            let stacked = self.stacked.narrow(0, first, end - first).unwrap().to_dtype(self.dtype()).unwrap();
            let stacked = Array::of(gpu, &stacked.to_dtype(dtype).unwrap()).unwrap();
            let part = |first: usize, count: usize| stacked.narrow(1, first, count).unwrap();
            let bias = (self.round % 4 == 1).then(|| Array::of(gpu, &self.bias).unwrap());
            let offsets = offsets.iter().map(|offset| offset - first).collect();
            let sequences = Sequences::new(offsets, &Device::Gpu(gpu.clone())).unwrap();
            let op = Attention {
                offsets: &sequences,
                scale: 0.2,
                causal: self.round % 4 == 3,
                window: (self.round % 4 == 2).then_some(if self.stacked.dims()[0] > 300 { 77 } else { 7 }),
                bias: bias.as_ref(),
                is_half: false,
            };
            asked::names();
            let (k, v) = (part(self.heads, self.keys), part(self.heads + self.keys, self.keys));
            let y = attention(&part(0, self.heads), &k, &v, &op, None).unwrap();
            let names = asked::names();
            let y = y.depart().unwrap().wait().unwrap().to_dtype(DType::F32).unwrap();
            (names, y.flatten_all().unwrap().to_vec1().unwrap())
        }

        fn dtype(&self) -> DType {
            [DType::BF16, DType::F16][self.round % 2]
        }

        /// Asserts that two are about the same.
        fn compare(&self, y: &[f32], exact: &[f32]) {
            let bound = if self.dtype() == DType::BF16 { 0.02 } else { 0.003 };
            for (place, (y, exact)) in y.iter().zip(exact).enumerate() {
                let (round, offsets) = (self.round, &self.offsets);
                assert!((y - exact).abs() <= bound, "{place} of {offsets:?} in round {round}: {y} {exact}");
            }
        }

        /// Asserts that a sequence's result has the same bits alone.
        fn assert_alone(&self, gpu: &Gpu, y: &[f32], sequence: usize) {
            let (_, alone) = self.attend(gpu, self.dtype(), sequence..sequence + 1);
            let row = y.len() / self.stacked.dims()[0];
            assert_eq!(y[self.offsets[sequence] * row..][..alone.len()], alone, "round {}", self.round);
        }
    }

    fn offsets(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut end = 0;
        let ends = lengths.map(|length| {
            end += length;
            end
        });
        [0].into_iter().chain(ends).collect()
    }

    #[test]
    fn two_heads_a_block_attend_as_one_does() {
        let gpu = Gpu::emulated(64).unwrap();
        for round in 0..24 {
            let sizes = [1 + below(3), 1 + below(2), [32, 24, 64][round % 3]];
            let case = Case::new(round, sizes, offsets((0..1 + below(6)).map(|_| 1 + below(FEW + 4))));
            let all = 0..case.offsets.len() - 1;
            let ((names, y), (_, exact)) =
                (case.attend(&gpu, case.dtype(), all.clone()), case.attend(&gpu, DType::F32, all));
            let has_few = case.offsets.windows(2).any(|span| span[1] - span[0] <= FEW);
            assert_eq!(names.iter().any(|name| name.starts_with("attention_two")), has_few, "{names:?}");
            case.compare(&y, &exact);
            case.assert_alone(&gpu, &y, 0);
        }
    }

    #[test]
    fn warpgroups_attend_as_warps_do() {
        let gpu = Gpu::emulated(256).unwrap();
        for round in 0..12 {
            // Some so long that stages come round, and that blocks have the most queries; those of one alone have fewer.
            let (heads, lengths) = match round % 3 {
                0 => (ROUNDS, vec![5 * MOST - below(100), 2 * MOST - below(100)]),
                _ => (2, (0..1 + below(4)).map(|_| 1 + below(400)).collect()),
            };
            let group = 1 + below(2);
            let case = Case::new(round, [heads / group, group, GROUP_WIDTH], offsets(lengths.into_iter()));
            let all = 0..case.offsets.len() - 1;
            let (_, old) = case.attend(&gpu.clone().of_warps(), case.dtype(), all.clone());
            let (names, new) = case.attend(&gpu, case.dtype(), all.clone());
            let has_long = case.offsets.windows(2).any(|span| span[1] - span[0] > TILE);
            assert_eq!(names.iter().any(|name| name.starts_with("attention_group")), has_long, "{names:?}");
            case.compare(&new, &old);
            case.assert_alone(&gpu, &new, all.end - 1);
        }
    }
}
