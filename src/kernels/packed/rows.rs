//! The rows of a product as the units take them: as they are, split into planes, or rounded to integers, in tiles; or rounded one
//! behind the other.

use super::tiles::{Kind, TILE, Tile, WIDTH, nearest};
use crate::kernels::math::vectorized;
use crate::kernels::threads::{share_items, share_rows};

/// Blocks that one thread takes in at once.
const TOGETHER: usize = 4;

/// Numbers after which a cache of the first level puts one on the same place.
pub const SAME_PLACE: usize = 1024;

/// Rows of a product: for every 16 of them, along the inputs, for every plane, a tile; or one behind the other. What is not there
/// is 0.
#[derive(Default)]
pub struct Rows {
    tiles: Vec<Tile>,
    /// Those that are not in tiles, and how many from one to the next; 0 where all are in tiles.
    numbers: Vec<f32>,
    stride: usize,
    /// Of integers: what each row's are multiplied by, and the number that is 0.
    pub spans: Vec<Span>,
    per_block: usize,
}

/// 16 rows, or as many as there are.
#[derive(Clone, Copy)]
pub enum Block<'a> {
    /// Laid out in tiles.
    Tiles(&'a [Tile]),
    /// One behind the other, as they came or rounded: from the first one's first number on, with so many numbers from a row to
    /// the next. They have as many as tiles would hold.
    Plain(&'a [f32], usize),
}

impl<'a> Block<'a> {
    /// The tiles in which it is laid out.
    ///
    /// # Panics
    /// Where it is not.
    pub fn tiles(&self) -> &'a [Tile] {
        match self {
            Self::Tiles(tiles) => tiles,
            Self::Plain(..) => unreachable!("rows that are not laid out go to units that take them"),
        }
    }
}

/// The numbers that the 256 integers of a row stand for.
#[derive(Clone, Copy, Default)]
pub struct Span {
    pub scale: f32,
    pub lowest: f32,
}

impl Span {
    /// From the lowest to the highest number.
    #[inline(always)]
    pub fn of(lowest: f32, highest: f32) -> Self {
        Self { scale: (highest - lowest) / 255.0, lowest }
    }

    /// Integers to one; of a row that is everywhere the same, all integers are 0.
    #[inline(always)]
    pub fn per_unit(self) -> f32 {
        if self.scale > 0.0 { self.scale.recip() } else { 0.0 }
    }
}

impl Rows {
    /// Takes in `count` rows of `inputs` each.
    pub fn fill<'a>(&mut self, kind: Kind, count: usize, inputs: usize, row: impl Fn(usize) -> &'a [f32] + Sync) {
        self.stride = 0;
        if kind == Kind::Widened {
            return self.fill_rounded(count, inputs, row);
        }
        self.per_block = kind.tiles(inputs);
        let blocks = count.div_ceil(WIDTH);
        self.tiles.resize(blocks * self.per_block, Tile([0; TILE]));
        self.spans.resize(blocks * WIDTH, Span::default());
        let tiles = self.tiles.chunks_mut((TOGETHER * self.per_block).max(1));
        let some = tiles.zip(self.spans.chunks_mut(TOGETHER * WIDTH)).enumerate().collect();
        let per_block = self.per_block;
        share_items(some, |(some, (tiles, spans)): (usize, (&mut [Tile], &mut [Span]))| {
            for (place, span) in spans.iter_mut().enumerate() {
                let tiles = &mut tiles[place / WIDTH * per_block..][..per_block];
                let (number, place) = (some * TOGETHER * WIDTH + place, place % WIDTH);
                let row = if number < count { row(number) } else { &[] };
                match kind {
                    Kind::Single => write(tiles, place, row),
                    Kind::Planes => write_planes::<3>(tiles, place, row),
                    Kind::Half => write_planes::<1>(tiles, place, row),
                    Kind::Widened => unreachable!("such rows are in no tiles"),
                    Kind::Integers => *span = write_integers(tiles, place, row),
                }
            }
        });
    }

    /// The same as f32 of bf16, of as many inputs as columns have in tiles.
    fn fill_rounded<'a>(&mut self, count: usize, inputs: usize, row: impl Fn(usize) -> &'a [f32] + Sync) {
        let width = inputs.max(1).next_multiple_of(Kind::Widened.depth());
        let stride = if width.is_multiple_of(SAME_PLACE) { width + WIDTH } else { width };
        self.numbers.resize(count * stride, 0.0);
        self.stride = stride;
        share_rows(&mut self.numbers, stride, |number, numbers| {
            let (there, behind) = numbers.split_at_mut(inputs);
            vectorized(
                #[inline(always)]
                || there.iter_mut().zip(row(number)).for_each(|(to, x)| *to = rounded(*x)),
            );
            behind.fill(0.0);
        });
    }

    /// 16 rows.
    pub fn block(&self, block: usize) -> Block<'_> {
        if self.stride > 0 {
            return Block::Plain(&self.numbers[block * WIDTH * self.stride..], self.stride);
        }
        Block::Tiles(&self.tiles[block * self.per_block..(block + 1) * self.per_block])
    }
}

/// So many numbers of a row from a place on; where it ends, zeros.
#[inline(always)]
fn part<const COUNT: usize>(row: &[f32], first: usize) -> [f32; COUNT] {
    let part = row.get(first..).unwrap_or_default();
    part.first_chunk().copied().unwrap_or_else(|| {
        let mut numbers = [0f32; COUNT];
        numbers[..part.len()].copy_from_slice(part);
        numbers
    })
}

/// A row as it is.
fn write(tiles: &mut [Tile], place: usize, row: &[f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (step, tile) in tiles.iter_mut().enumerate() {
                let target = &mut tile.0[place * 64..(place + 1) * 64];
                let numbers = part::<16>(row, step * 16);
                target.chunks_exact_mut(4).zip(numbers).for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
            }
        },
    );
}

/// A row as integers, and what they stand for.
fn write_integers(tiles: &mut [Tile], place: usize, row: &[f32]) -> Span {
    #[cfg(target_arch = "x86_64")]
    if super::avx512::is_there() {
        return super::avx512::write_integers(tiles, place, row);
    }
    plain_integers(tiles, place, row)
}

/// The same by plain loops.
pub fn plain_integers(tiles: &mut [Tile], place: usize, row: &[f32]) -> Span {
    vectorized(
        #[inline(always)]
        || {
            let (lowest, highest) = range(row);
            let span = Span::of(lowest, highest);
            let per_unit = span.per_unit();
            for (step, tile) in tiles.iter_mut().enumerate() {
                let target = &mut tile.0[place * 64..(place + 1) * 64];
                // Behind the end stand zeros of the weight.
                let numbers = part::<64>(row, step * 64);
                for (to, x) in target.iter_mut().zip(numbers) {
                    *to = nearest((x - lowest) * per_unit) as u8;
                }
            }
            span
        },
    )
}

/// The lowest and the highest number of a row; where one is not finite, neither is.
#[inline(always)]
fn range(row: &[f32]) -> (f32, f32) {
    let (mut lowest, mut highest, mut nothing) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16], [0f32; 16]);
    let (chunks, rest) = row.as_chunks::<16>();
    let mut take = |numbers: &[f32]| {
        for (place, x) in numbers.iter().enumerate() {
            lowest[place] = lowest[place].min(*x);
            highest[place] = highest[place].max(*x);
            nothing[place] += x * 0.0;
        }
    };
    chunks.iter().for_each(|chunk| take(chunk));
    take(rest);
    let nothing: f32 = nothing.iter().sum();
    (lowest.into_iter().fold(f32::INFINITY, f32::min) + nothing, highest.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// A row in so many planes.
fn write_planes<const PLANES: usize>(tiles: &mut [Tile], place: usize, row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if super::avx512::has_bf16() {
        return super::avx512::write_planes::<PLANES>(tiles, place, row);
    }
    vectorized(
        #[inline(always)]
        || {
            for (step, tiles) in tiles.chunks_exact_mut(PLANES).enumerate() {
                let mut left = part::<32>(row, step * 32);
                for tile in tiles {
                    let target = &mut tile.0[place * 64..(place + 1) * 64];
                    for (to, left) in target.chunks_exact_mut(2).zip(&mut left) {
                        let high = rounded(*left);
                        to.copy_from_slice(&((high.to_bits() >> 16) as u16).to_le_bytes());
                        *left -= high;
                    }
                }
            }
        },
    );
}

/// To the nearest number of bf16, of two the even one; what is not finite stays so.
#[inline(always)]
pub fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let is_special = bits & 0x7f80_0000 == 0x7f80_0000;
    f32::from_bits(if is_special { bits & 0xffff_0000 } else { nearest })
}
