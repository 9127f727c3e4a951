//! Changes of outputs, of low rank or a factor and a shift a column, for all adapters of a batch at once: two launches a
//! projection, whatever the number of adapters, one where columns change alone, and none where no adapter of the batch
//! changes it. The CPU's twins are `packed::Update` and `scale_columns`.
//!
//! A batch has a table of tiles, rows of one adapter each with the address of that adapter's table, see [`Factors`], which
//! is made once and read by every layer.

use super::array::Array;
use super::factors::{Factors, words};
use super::launch::{Launch, suffix};
use crate::error::{Error, Result};
use candle_core::DType;
use std::ops::Range;
use std::sync::Arc;

/// Rows of a tile, at most.
const TILE: usize = 32;

/// Ranks of a block that shrinks.
const RANKS: usize = 32;

/// Columns of a block that expands.
const COLUMNS: usize = 128;

/// Sites of a projection, at most, as delta.cu has them.
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
    /// Of all factors.
    dtype: DType,
    /// Of every adapter that is there, see [`Factors::ranks`].
    ranks: Vec<Arc<[Option<usize>]>>,
}

impl Touched {
    /// Row ranges of adapters, in their order; none where there are none.
    pub fn new<'a>(segments: impl Iterator<Item = (Range<usize>, &'a Factors)>) -> Result<Option<Self>> {
        let segments: Vec<_> = segments.collect();
        let Some((_, first)) = segments.first() else { return Ok(None) };
        let tiles = tiles(segments.iter().map(|(rows, factors)| (rows.clone(), factors.table().address())));
        let ranks = segments.iter().map(|(_, factors)| factors.ranks().clone()).collect();
        let place = |numbers: &[u32]| Array::of_numbers(first.table().gpu(), numbers);
        Ok(Some(Self { tiles: place(&tiles)?, dtype: first.dtype(), ranks }))
    }

    /// The highest rank that an adapter has at a site; none where no adapter changes it.
    fn rank(&self, site: usize) -> Option<usize> {
        self.ranks.iter().filter_map(|ranks| ranks[site]).max()
    }

    /// What `x [tokens, in]` makes of the matrices `a` at a projection's sites; nothing where none of these adapters
    /// changes any.
    pub fn shrink(&self, spans: &Spans, x: &Array) -> Result<Option<Grouped>> {
        let mut width = 0;
        let changed = |(site, columns): &(usize, Range<usize>)| {
            let span = Span { site: *site, columns: columns.clone(), rank: width };
            // Every site's ranks begin at 16 bytes.
            width += self.rank(*site)?.next_multiple_of(8);
            Some(span)
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
        launch.run(&format!("shrink_{}", suffix(x.dtype())), [self.tiles.elements() / 4, width.div_ceil(RANKS)])?;
        Ok(Some(Grouped { left, tiles: self.tiles.clone(), spans }))
    }
}

/// A site that adapters change.
struct Span {
    site: usize,
    /// Of the output.
    columns: Range<usize>,
    /// Where its ranks begin among those of all.
    rank: usize,
}

/// Spans as kernels are told of them.
fn told(spans: &[Span]) -> Vec<i32> {
    let numbers = |span: &Span| [span.site, span.columns.start, span.columns.len(), span.rank].map(|n| n as i32);
    let mut told: Vec<i32> = spans.iter().flat_map(numbers).collect();
    told.resize(4 * SITES, 0);
    told
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
    /// Changes what the base made, `y [tokens, out]`, in place.
    pub fn expand(&self, y: &Array) -> Result<()> {
        let [rows, columns, stride] = y.matrix()?;
        self.check(rows, columns, y.dtype())?;
        let blocks = self.spans.iter().map(|span| span.columns.len().div_ceil(COLUMNS)).sum();
        let launch = Launch::on(y.gpu()).array(y).array(&self.left).array(&self.tiles).structure(told(&self.spans));
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
}
