//! Changes of outputs, of low rank or a factor and a shift a column, for all adapters of a batch at once: two launches a
//! projection, whatever the number of adapters, one where columns change alone or all is left to attention, and none where no
//! adapter of the batch changes it. The CPU's twins are `packed::Update` and `scale_columns`.
//!
//! A batch has a table of tiles, rows of one adapter each with the address of that adapter's table, see [`Factors`], which
//! is made once and read by every layer. What attention changes itself is left to it, see [`Late`].

use super::array::Array;
use super::factors::{Factors, Kind, words};
use super::late::{Attended, Late};
use super::launch::{BLOCK, Blocks, Launch, suffix};
use crate::error::{Error, Result};
use candle_core::DType;
use std::ops::Range;

/// Rows of a tile, at most.
const TILE: usize = 32;

/// Ranks of a block that shrinks.
const RANKS: usize = 32;

/// Columns of a block that expands.
const COLUMNS: usize = 128;

/// What a block of shrink.cu takes of the depth in a turn, all of its warps together, in how many turns at most, and what
/// memory each is.
const TURN: usize = 256;
const TURNS: usize = 4;
const TURN_BYTES: usize = 16 << 10;

/// Memory of its sums.
const SUMS_BYTES: usize = 4 * 4 * TILE * (RANKS + 1);

/// Blocks that have so much on a multiprocessor.
const TOGETHER: usize = 2;

/// Sites of a projection, at most, as delta_product.cuh has them.
const SITES: usize = 8;

/// The sites of a projection, each with its columns of the output.
pub struct Spans(Vec<(usize, Range<usize>)>);

impl Spans {
    /// Sites with their first column and how many.
    pub fn new(spans: &[(usize, usize, usize)]) -> Self {
        Self(spans.iter().map(|(site, first, count)| (*site, *first..first + count)).collect())
    }
}

/// Which rows of a batch are whose.
pub struct Touched {
    /// Four numbers a tile: the address of a table, the first row, and how many.
    tiles: Array,
    /// Of every sequence the address of its adapter's table, or 0.
    owners: Array,
    /// Of all factors.
    dtype: DType,
    /// By site.
    changed: Vec<Changed>,
}

/// What all adapters of a batch together change at a site.
#[derive(Clone, Copy, Default)]
struct Changed {
    /// The highest.
    rank: usize,
    /// Whether there are changes that attention makes itself, where it may, and whether there are others.
    has_late: bool,
    has_other: bool,
}

impl Changed {
    fn add(&mut self, kind: Kind) {
        self.rank = self.rank.max(kind.rank as usize);
        *(if kind.is_late() { &mut self.has_late } else { &mut self.has_other }) = true;
    }
}

impl Touched {
    /// Row ranges of adapters, in their order, of sequences with these offsets; none where there are none.
    pub fn new<'a>(
        segments: impl Iterator<Item = (Range<usize>, &'a Factors)>,
        offsets: &[usize],
    ) -> Result<Option<Self>> {
        let segments: Vec<_> = segments.collect();
        let Some((_, first)) = segments.first() else { return Ok(None) };
        let addresses: Vec<_> =
            segments.iter().map(|(rows, factors)| (rows.clone(), factors.table().address())).collect();
        let (tiles, owners) = (tiles(addresses.iter().cloned()), owners(&addresses, offsets)?);
        let numbers = Array::of_numbers(first.table().gpu(), &[tiles.as_slice(), owners.as_flattened()].concat())?;
        let mut changed = vec![Changed::default(); first.kinds().len()];
        for (_, factors) in &segments {
            let kinds = changed.iter_mut().zip(factors.kinds());
            kinds.for_each(|(changed, kind)| kind.iter().for_each(|kind| changed.add(*kind)));
        }
        Ok(Some(Self {
            tiles: numbers.narrow(0, 0, tiles.len())?,
            owners: numbers.narrow(0, tiles.len(), 2 * owners.len())?,
            dtype: first.dtype(),
            changed,
        }))
    }

    /// What `x [tokens, in]` makes of the matrices `a` at a projection's sites; nothing where none of these adapters
    /// changes any.
    pub fn shrink(&self, spans: &Spans, x: &Array) -> Result<Option<Grouped>> {
        let mut width = 0;
        let changed = |(site, columns): &(usize, Range<usize>)| {
            let Changed { rank, has_late, has_other } = self.changed[*site];
            let span = Span { site: *site, columns: columns.clone(), rank: width, is_late: false, remains: true };
            // Every site's ranks begin at 16 bytes.
            width += rank.next_multiple_of(8);
            (has_late || has_other).then_some(span)
        };
        let spans: Vec<Span> = spans.0.iter().filter_map(changed).collect();
        if spans.is_empty() {
            return Ok(None);
        }
        if x.dtype() != self.dtype || spans.len() > SITES {
            return Err(Error::Internal(format!("factors of {:?} at {} sites for {x:?}", self.dtype, spans.len())));
        }
        let [tokens, inputs, stride] = x.matrix()?;
        // Of no rank at all rows are empty, and there is nothing to launch.
        let left = Array::new(x.gpu(), x.dtype(), &[tokens, width])?;
        let launch = Launch::on(x.gpu()).array(&left).array(x).array(&self.tiles).structure(told(&spans));
        let launch = launch.sizes([spans.len(), inputs, stride, width]);
        let grid = [self.tiles.elements() / 4, width.div_ceil(RANKS)];
        let kernel = |name: &str| format!("{name}_{}", suffix(x.dtype()));
        match ahead(x, grid)? {
            Some(blocks) => launch.sizes([grid[0]]).run_in(&kernel("shrink_ahead"), &blocks)?,
            None => launch.run(&kernel("shrink"), grid)?,
        }
        Ok(Some(Grouped { left, tiles: self.tiles.clone(), spans }))
    }

    /// Leaves to attention what it changes itself of what it reads, where its kernels can and any adapter changes it so.
    /// `spans` are those of the projection.
    pub fn leave(&self, grouped: &mut Grouped, spans: &Spans, attended: &Attended) -> Option<Late> {
        if !attended.can_change(self.dtype) {
            return None;
        }
        let mut leave = |columns: Option<&Range<usize>>| {
            // Where several sites have these columns, which one is to be left must not depend on the batch.
            let mut sites = spans.0.iter().filter(|(_, own)| Some(own) == columns).map(|(site, _)| *site);
            let site = sites.next().filter(|_| sites.next().is_none())?;
            let is_so = |span: &&mut Span| span.site == site && self.changed[site].has_late;
            let span = grouped.spans.iter_mut().find(is_so)?;
            (span.is_late, span.remains) = (true, self.changed[span.site].has_other);
            Some([span.site, span.rank])
        };
        let sites = [&attended.queries, &attended.keys, &attended.values].map(|columns| leave(columns.as_ref()));
        let (left, owners) = (grouped.left.clone(), self.owners.clone());
        sites.iter().any(Option::is_some).then(|| Late::new(left, owners, sites, attended.head_width))
    }
}

/// The blocks of shrink.cu for a grid of tiles and ranks: no more than run at once, each for several tiles. None where rows are
/// not for it, or it was not compiled for the GPU: for those with warpgroups, whose multiprocessors have the memory.
fn ahead(x: &Array, [tiles, ranks]: [usize; 2]) -> Result<Option<Blocks>> {
    let [_, inputs, stride] = x.matrix()?;
    let turns = inputs.div_ceil(TURN);
    let is_aligned = [x.address() as usize / 2, inputs, stride].iter().all(|numbers| numbers.is_multiple_of(8));
    let is_for_it = x.dtype() != DType::F32 && is_aligned && turns <= TURNS && ranks > 0;
    // Those that are kept, and those on the way, as shrink.cu has them.
    let turns = turns + if turns < TURNS { 3 } else { 2 };
    Ok(x.gpu().warpgroups().filter(|_| is_for_it).map(|multiprocessors| Blocks {
        grid: [tiles.min((TOGETHER * multiprocessors / ranks).max(1)), ranks],
        threads: BLOCK,
        shared: SUMS_BYTES + turns * TURN_BYTES,
    }))
}

/// A site that adapters change.
struct Span {
    site: usize,
    /// Of the output.
    columns: Range<usize>,
    /// Where its ranks begin among those of all.
    rank: usize,
    /// Whether attention makes those changes that it can.
    is_late: bool,
    /// Whether there are others.
    remains: bool,
}

/// Spans as kernels are told of them.
fn told<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Vec<i32> {
    let numbers = |span: &Span| {
        let Span { site, columns, rank, is_late, .. } = span;
        [*site, columns.start, columns.len(), *rank, usize::from(*is_late)].map(|number| number as i32)
    };
    let mut told: Vec<i32> = spans.into_iter().flat_map(numbers).collect();
    told.resize(5 * SITES, 0);
    told
}

/// Of every sequence the address of the table of the adapter whose rows it is among, or 0.
fn owners(segments: &[(Range<usize>, u64)], offsets: &[usize]) -> Result<Vec<[u32; 2]>> {
    let mut segments = segments.iter().peekable();
    let owner = |rows: &[usize]| {
        while segments.next_if(|(owned, _)| owned.end <= rows[0]).is_some() {}
        match segments.peek() {
            Some((owned, address)) if owned.start <= rows[0] && rows[1] <= owned.end => Ok(words(*address)),
            Some((owned, _)) if owned.start < rows[1] => {
                Err(Error::Internal(format!("an adapter's rows {owned:?} are a part of a sequence, {rows:?}")))
            }
            _ => Ok([0, 0]),
        }
    };
    offsets.windows(2).map(owner).collect()
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

/// A projection's changes, with the left factors of those of low rank, for all rows of a batch.
pub struct Grouped {
    /// `[tokens, ranks]`, of every site as many as the highest of its ranks; none where columns change alone.
    left: Array,
    tiles: Array,
    spans: Vec<Span>,
}

impl Grouped {
    /// Changes what the base made, `y [tokens, out]`, in place, but for what is left to attention.
    pub fn expand(&self, y: &Array) -> Result<()> {
        let [rows, columns, stride] = y.matrix()?;
        self.check(rows, columns, y.dtype())?;
        let spans = || self.spans.iter().filter(|span| span.remains);
        let blocks = spans().map(|span| span.columns.len().div_ceil(COLUMNS)).sum();
        let launch = Launch::on(y.gpu()).array(y).array(&self.left).array(&self.tiles).structure(told(spans()));
        let launch = launch.sizes([stride, self.left.dims()[1]]);
        launch.run(&format!("expand_{}", suffix(y.dtype())), [self.tiles.elements() / 4, blocks])
    }

    fn check(&self, rows: usize, columns: usize, dtype: DType) -> Result<()> {
        let is_within = self.spans.iter().all(|span| span.columns.end <= columns);
        if rows == self.left.dims()[0] && dtype == self.left.dtype() && is_within {
            return Ok(());
        }
        Err(Error::Internal(format!("updates {:?} of [{rows}, {columns}] {dtype:?}", self.left)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::below;
    #[cfg(feature = "emulated")]
    use {
        super::super::{Change, Gpu, HostFactors, asked},
        crate::kernels::sample::normal,
        candle_core::Tensor,
    };

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
            let tiles = tiles(segments.iter().cloned());
            for tile in tiles.as_chunks::<4>().0 {
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
    fn a_sequence_has_the_adapter_of_its_rows_and_none_has_a_part_of_one() {
        let segments = [(3..9, 1 << 33), (9..10, 2), (14..20, 3)];
        let owners_of = |offsets: &[usize]| owners(&segments, offsets);
        let expected = [[0, 0], [0, 2], [0, 2], [2, 0], [0, 0], [3, 0], [0, 0]];
        assert_eq!(owners_of(&[0, 3, 5, 9, 10, 14, 20, 25]).unwrap(), expected);
        for offsets in [&[0, 4, 9][..], &[3, 10], &[0, 25], &[14, 21]] {
            assert!(matches!(owners_of(offsets), Err(Error::Internal(_))), "{offsets:?}");
        }
    }

    /// Left factors of some columns of rows by random adapters, and the kernel that made them, on each GPU.
    #[cfg(feature = "emulated")]
    fn left_factors<const N: usize>(
        gpus: [&Gpu; N],
        columns: &Range<usize>,
        dtype: DType,
    ) -> [(Vec<String>, Vec<u32>); N] {
        let inputs = columns.len();
        let mut offsets = vec![0];
        (0..12).for_each(|_| offsets.push(offsets[offsets.len() - 1] + 1 + below(90)));
        let x = normal(1.0, (offsets[offsets.len() - 1], columns.end)).to_dtype(dtype).unwrap();
        // Matrices after ones of odd sizes are not aligned.
        let change = |rank: usize| Change {
            low_rank: Some([normal(0.1, (inputs, rank)), normal(1.0, (rank, 5))]),
            columns: None::<[Tensor; 2]>,
        };
        let adapter = |_| {
            let sites = (0..3).filter(|_| below(3) > 0);
            sites.map(|site| (site, change(1 + below(24)))).collect::<Vec<_>>()
        };
        let adapters: Vec<_> = (0..offsets.len() - 1).map(adapter).collect();
        gpus.map(|gpu| {
            let factors = |changes: &Vec<(usize, Change<Tensor>)>| {
                let list: Vec<_> = changes.iter().map(|(site, change)| (*site, change.each_ref())).collect();
                Factors::new(gpu, &HostFactors::new(3, dtype, &list).unwrap()).unwrap()
            };
            let factors: Vec<_> = adapters.iter().map(factors).collect();
            let rows = offsets.windows(2).map(|rows| rows[0]..rows[1]);
            let touched = Touched::new(rows.zip(&factors).skip(1), &offsets).unwrap().unwrap();
            let x = Array::of(gpu, &x).unwrap().narrow(1, columns.start, inputs).unwrap();
            let spans = Spans::new(&[0, 1, 2].map(|site| (site, 5 * site, 5)));
            asked::names();
            let left = touched.shrink(&spans, &x).unwrap().unwrap().left;
            let left = left.depart().unwrap().wait().unwrap().flatten_all().unwrap();
            let numbers = left.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            (asked::names(), numbers.into_iter().map(f32::to_bits).collect())
        })
    }

    #[cfg(feature = "emulated")]
    #[test]
    fn what_is_asked_for_ahead_has_the_same_bits() {
        let gpu = Gpu::emulated(64).unwrap();
        // Of one warp and of all, with ends within a warp's turn and a step, and of most turns, also beside other columns; then
        // deeper, and what is not aligned.
        let ahead = [0..40, 0..256, 0..384, 0..712, 0..1000, 8..392].map(|columns| (columns, true));
        let others = [0..1032, 0..300, 4..388, 0..404].map(|columns| (columns, false));
        for (round, (columns, is_ahead)) in ahead.into_iter().chain(others).enumerate() {
            let (dtype, suffix) = [(DType::BF16, "bf16"), (DType::F16, "f16")][round % 2];
            let [(ahead, left), (usual, expected)] = left_factors([&gpu, &gpu.clone().of_warps()], &columns, dtype);
            assert_eq!(ahead, [format!("shrink_{}{suffix}", if is_ahead { "ahead_" } else { "" })]);
            assert_eq!(usual, [format!("shrink_{suffix}")]);
            assert!(left == expected, "of {columns:?}");
            assert!(left.iter().any(|bits| !f32::from_bits(*bits).is_nan()));
        }
    }
}
